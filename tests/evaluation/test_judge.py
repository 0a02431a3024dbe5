import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation import judge as judges
from flywheel_tasks.evaluation.judge import QUESTIONS, JudgeError, judged, open_judge
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
        name = "silent"

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
    answers: list[tuple[int, str | None]]
    seen: list[tuple[str | None, dict[str, Any]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.headers.get("Authorization"), body))
        status, text = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        payload = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[_Answers]]]:
    handler = type("Handler", (_Answers,), {"answers": [(200, "Yes.")], "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(judges, "_PAUSE_SECONDS", 0.0)
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
    with pytest.raises(JudgeError, match=r"does not answer \(status 500, 4 attempts\)"):
        judge.yes(["a"])
    handler.answers = [(401, "")]
    with pytest.raises(JudgeError, match="status 401"):
        judge.yes(["a"])


@pytest.mark.parametrize("values", [{"kind": "local"}, {"kind": "endpoint", "model": "m", "url": "ftp://x"}])
def test_a_judge_without_a_name_is_a_wrong_setting(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="judge kind"):
        settings(**values)
