import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoModelForCausalLM

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation import judge_endpoint
from flywheel_tasks.evaluation.judge import QUESTIONS, Kept, judged, open_judge
from flywheel_tasks.evaluation.judging import TRIAL, JudgeError
from flywheel_tasks.settings import Compute, Judge

COMPUTE = Compute(precision="float32", threads=1)
CARD = Card("c", "Mae", ("calm",), ("Never use emoji.", "Be kind."))
ITEM = (CARD, [{"role": "user", "content": "Hello!"}], "Ahoy!")


def settings(**values: Any) -> Judge:
    return Judge(**{"kind": "none", "model": "", "url": "", "key_variable": "TEST_JUDGE_KEY"} | values)


@pytest.fixture
def other(tiny_models: Path, tmp_path: Path) -> Path:
    """The tiny model with other weights."""
    shutil.copytree(tiny_models / "base", tmp_path / "judge")
    model = AutoModelForCausalLM.from_pretrained(tiny_models / "base")
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight").mul_(1.1)
    model.save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


def test_a_local_judge_answers_every_question(tiny_models: Path, other: Path) -> None:
    judge = open_judge(settings(kind="local", model=str(other)), COMPUTE, [tiny_models / "base"])
    first, second = judged(judge, [ITEM, ITEM])
    assert first == second
    assert set(QUESTIONS) <= set(first)
    assert all(0 < (first[name] or 0) < 1 for name in QUESTIONS)
    assert first["judged_rules"] == 1  # "Be kind."; code checks the other
    assert first["judged_broken"] in (0, 1)
    assert first["unanswered_rules"] == 0


def test_a_judge_whose_template_has_no_system_role_is_asked_all_the_same(
    tiny_models: Path, other: Path
) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    shows = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (other / "chat_template.jinja").write_text(refuses + shows)
    judge = open_judge(settings(kind="local", model=str(other)), COMPUTE, [tiny_models / "base"])
    assert judge is not None
    assert 0 < (judge.yes(["Is it wet?"])[0] or 0) < 1


def test_a_judge_without_numbers_does_not_say_yes(tiny_models: Path, other: Path) -> None:
    broken = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        broken.get_parameter("model.embed_tokens.weight").fill_(float("nan"))
    broken.save_pretrained(other)
    judge = open_judge(settings(kind="local", model=str(other)), COMPUTE, [tiny_models / "base"])
    assert judge is not None
    assert judge.yes(["a", "b"]) == [None, None]


def test_rules_without_an_answer_are_counted() -> None:
    class Silent:
        name, identity = "silent", "silent"

        def yes(self, prompts: list[str]) -> list[float | None]:
            return [None] * len(prompts)

    (found,) = judged(Silent(), [ITEM])  # type: ignore[arg-type]
    assert (found["judged_rules"], found["judged_broken"], found["unanswered_rules"]) == (0, 0, 1)


def test_the_model_that_was_trained_on_never_judges(tiny_models: Path, tmp_path: Path) -> None:
    copy = tmp_path / "renamed"
    shutil.copytree(tiny_models / "base", copy)
    with pytest.raises(JudgeError, match="a model never judges itself"):
        open_judge(settings(kind="local", model=str(copy)), COMPUTE, [tiny_models / "base"])


@pytest.mark.parametrize(
    "changes", [{"dtype": torch.bfloat16}, {"dtype": torch.float16}, {"shard": "50KB"}, {"rows": 8}]
)
def test_nor_does_a_copy_of_it_that_was_saved_in_another_way(
    changes: dict[str, Any], tiny_models: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_models / "base", copy, ignore=shutil.ignore_patterns("*.safetensors"))
    model = AutoModelForCausalLM.from_pretrained(
        tiny_models / "base", dtype=changes.get("dtype", torch.float32)
    )
    if "rows" in changes:
        model.resize_token_embeddings(model.config.vocab_size + changes["rows"])
    model.save_pretrained(copy, max_shard_size=changes.get("shard", "1GB"))
    assert (len(list(copy.glob("*.safetensors"))) > 1) == ("shard" in changes)
    with pytest.raises(JudgeError, match="a model never judges itself"):
        open_judge(settings(kind="local", model=str(copy)), COMPUTE, [tiny_models / "base"])


def test_no_judge_and_no_model(tmp_path: Path) -> None:
    assert open_judge(settings(), COMPUTE, []) is None
    assert judged(None, [ITEM]) == [{}]
    with pytest.raises(JudgeError, match="neither a folder nor a model"):
        open_judge(settings(kind="local", model=str(tmp_path / "absent")), COMPUTE, [])


class _Answers(BaseHTTPRequestHandler):
    """What an endpoint says: first to the harmless question, then to each prompt, the last one for ever."""

    trial: tuple[int, str | None]
    answers: list[tuple[int, str | None]]
    headers_sent: dict[str, str]
    seen: list[tuple[str | None, dict[str, Any]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["messages"][-1]["content"] == TRIAL:
            status, text = self.trial
        else:
            self.seen.append((self.headers.get("Authorization"), body))
            status, text = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        answer = {"choices": [{"message": {"content": text}}]}
        payload = json.dumps(answer if status == 200 else {"error": {"message": text}}).encode()
        self.send_response(status)
        for name, value in self.headers_sent.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[_Answers]]]:
    said = {"trial": (200, "Yes."), "answers": [(200, "Yes.")], "headers_sent": {}, "seen": []}
    handler = type("Handler", (_Answers,), said)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(judge_endpoint, "_PAUSE_SECONDS", 0.0)
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", handler
    server.shutdown()
    server.server_close()


def test_an_endpoint_answers_in_words(
    endpoint: tuple[str, type[_Answers]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = endpoint
    monkeypatch.setenv("TEST_JUDGE_KEY", "k")
    handler.answers = [(503, ""), (200, "Yes."), (200, "no"), (200, "perhaps"), (200, "NO")]
    judge = open_judge(settings(kind="endpoint", model="m", url=url), COMPUTE, [])
    assert judge is not None
    assert judge.yes(["a", "b", "c", "d"]) == [1.0, 0.0, None, 0.0]
    assert handler.seen[0][0] == "Bearer k"
    assert handler.seen[0][1]["model"] == "m"


def test_what_is_neither_yes_nor_no_is_not_measured(endpoint: tuple[str, type[_Answers]]) -> None:
    url, handler = endpoint
    handler.answers = [
        (200, None),
        (200, "Not sure"),
        (200, "None"),
        (200, ""),
        (200, '"No."'),
        (200, "**Yes**, it"),
    ]
    judge = open_judge(settings(kind="endpoint", model="m", url=url), COMPUTE, [])
    assert judge is not None
    assert judge.yes(["a", "b", "c", "d", "e", "f"]) == [None, None, None, None, 0.0, 1.0]


def test_an_endpoint_that_fails_is_an_error(endpoint: tuple[str, type[_Answers]]) -> None:
    url, handler = endpoint
    judge = open_judge(settings(kind="endpoint", model="m", url=url), COMPUTE, [])
    assert judge is not None
    handler.answers = [(500, "")]
    with pytest.raises(JudgeError, match=r"does not answer \(status 500; 7 attempts\)"):
        judge.yes(["a"])
    handler.answers = [(401, "no such key")]
    with pytest.raises(JudgeError, match="judge m: status 401: no such key"):
        judge.yes(["a"])


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        ((401, "Incorrect API key provided: k3y."), r"status 401: Incorrect API key provided: \[key\]\.$"),
        (
            (404, "The model m does not exist. " + "x" * 300),
            r"status 404: The model m does not exist\. x{172}$",
        ),
        ((400, "max_tokens is not supported"), "status 400: max_tokens is not supported"),
        ((503, "starting"), r"does not answer \(status 503: starting; 7 attempts\)"),
        ((200, "<think>"), "neither yes nor no .*<think>"),
    ],
)
def test_an_endpoint_that_cannot_judge_is_known_when_it_is_opened(
    endpoint: tuple[str, type[_Answers]],
    monkeypatch: pytest.MonkeyPatch,
    trial: tuple[int, str],
    message: str,
) -> None:
    url, handler = endpoint
    monkeypatch.setenv("TEST_JUDGE_KEY", "k3y")
    handler.trial = trial
    with pytest.raises(JudgeError, match=message):
        open_judge(settings(kind="endpoint", model="m", url=url), COMPUTE, [])
    assert handler.seen == []


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_an_endpoint_does_not_take_has_no_answer(
    endpoint: tuple[str, type[_Answers]], caplog: pytest.LogCaptureFixture, status: int
) -> None:
    url, handler = endpoint
    handler.answers = [
        (200, "no"),
        (status, "The content filter was triggered"),
        (status, "again"),
        (200, "no"),
    ]
    judge = open_judge(settings(kind="endpoint", model="m", url=url), COMPUTE, [])
    assert judge is not None
    assert judge.yes(["a", "b", "c", "d"]) == [0.0, None, None, 0.0]
    (told,) = caplog.messages
    assert (
        told == f"judge m: status {status}: The content filter was triggered; prompts like it have no answer"
    )


@pytest.mark.parametrize(
    ("retry_after", "pauses"),
    [
        (None, [1, 2]),
        ("20", [20, 20]),
        ("3600", [120, 120]),
        ("Wed, 21 Oct 2015 07:28:00 GMT", [1, 2]),
        ("Fri, 21 Oct 2112 07:28:00 GMT", [120, 120]),
        ("soon", [1, 2]),
    ],
)
def test_a_busy_endpoint_says_how_long_to_wait(
    endpoint: tuple[str, type[_Answers]],
    monkeypatch: pytest.MonkeyPatch,
    retry_after: str | None,
    pauses: list[float],
) -> None:
    url, handler = endpoint
    slept: list[float] = []
    monkeypatch.setattr(judge_endpoint, "_PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(judge_endpoint.time, "sleep", slept.append)
    judge = open_judge(settings(kind="endpoint", model="m", url=url), COMPUTE, [])
    assert judge is not None
    handler.answers = [(429, "slow down"), (429, "slow down"), (200, "yes")]
    handler.headers_sent = {} if retry_after is None else {"Retry-After": retry_after}
    assert judge.yes(["a"]) == [1.0]
    assert slept == pauses


def test_what_was_answered_before_a_kill_is_not_asked_again(tmp_path: Path) -> None:
    class Dying:
        name, identity = "dying", "dying"
        asked: ClassVar[list[str]] = []

        def yes(self, prompts: Sequence[str]) -> list[float | None]:
            self.asked.extend(prompts)
            if "c" in prompts and self.asked.count("c") == 1:
                raise KeyboardInterrupt
            return [None if prompt == "b" else 0.25 for prompt in prompts]

    journal = tmp_path / "judge.jsonl"
    with pytest.raises(KeyboardInterrupt):
        Kept(Dying(), journal).yes(["a", "b", "c"])
    with journal.open("ab") as file:
        file.write(b'{"prompt":')  # cut short
    assert Kept(Dying(), journal).yes(["a", "b", "c", "a"]) == [0.25, None, 0.25, 0.25]
    assert Dying.asked == ["a", "b", "c", "c"]


@pytest.mark.parametrize("template", [None, "{{ raise_exception('never') }}"])
def test_a_judge_that_no_question_can_be_put_to_is_known_when_it_is_opened(
    tiny_models: Path, other: Path, template: str | None
) -> None:
    (other / "chat_template.jinja").unlink()
    if template:
        (other / "chat_template.jinja").write_text(template)
    with pytest.raises(JudgeError, match="takes no question: never" if template else "has no chat template"):
        open_judge(settings(kind="local", model=str(other)), COMPUTE, [tiny_models / "base"])


def test_a_judge_of_the_hub_comes_with_its_chat_template(
    tiny_models: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(model: str, allow_patterns: list[str]) -> str:
        kept = set(
            filter_repo_objects([path.name for path in other.iterdir()], allow_patterns=allow_patterns)
        )
        for path in other.iterdir():
            if path.name not in kept:
                path.unlink()
        return str(other)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    judge = open_judge(settings(kind="local", model="someone/judge"), COMPUTE, [tiny_models / "base"])
    assert judge is not None
    assert judge.yes(["Is it wet?"]) != [None]


@pytest.mark.parametrize("values", [{"kind": "local"}, {"kind": "endpoint", "model": "m", "url": "ftp://x"}])
def test_a_judge_without_a_name_is_a_wrong_setting(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="judge kind"):
        settings(**values)
