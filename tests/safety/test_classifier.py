import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from flywheel_tasks.safety import endpoint
from flywheel_tasks.safety.classifier import SafetyError, open_classifier, unsafe, unsafe_prompts
from flywheel_tasks.safety.words import BlockedWords
from flywheel_tasks.settings import load_settings

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = load_settings(PROJECT / "params.yaml").safety
WORDS = PROJECT / "safety_words"


class Fixed:
    """A classifier that answers what it is told."""

    def __init__(self, *answers):
        self.answers = answers

    def classify(self, texts):
        return self.answers


def open_with(folder=WORDS, blocked=(), **changes):
    return open_classifier(SETTINGS.model_copy(update=changes), folder, blocked=blocked)


def test_word_lists_find_whole_words_however_they_are_written():
    lists = open_with(blocked=["gun", "+", "bad  Word"])
    texts = ["GUN shop", "I begun.", "a + b", "so bad\nword", "a gսn", "g\u200bun", "I want to DIE", "hello"]
    assert unsafe(lists, texts, 0.5) == {
        "GUN shop": "blocked",
        "a + b": "blocked",
        "so bad\nword": "blocked",
        "g\u200bun": "blocked",
        "I want to DIE": "self_harm",
    }


def test_a_last_star_stands_for_any_ending():
    lists = open_with(blocked=["steal*", "*", "bad thing*"])
    texts = ["Stealing is fun", "I steal", "a * b", "bad things", "bad thin", "mysteal", "hello"]
    assert list(unsafe(lists, texts, 0.5)) == ["Stealing is fun", "I steal", "a * b", "bad things"]


@pytest.mark.parametrize(
    "content", ["- a list", "Self Harm: [x]", "harm: word", "harm: ['']", "harm: [1]", ":\n::"]
)
def test_a_list_of_another_form_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(SafetyError, match=r"own\.yaml"):
        open_with(tmp_path)


def test_no_list_at_all_is_an_error(tmp_path):
    with pytest.raises(SafetyError, match="there is no word list"):
        open_with(tmp_path)
    (tmp_path / "a.yaml").write_text("harm: [x]\n")
    (tmp_path / "b.yaml").write_text("harm: [y]\nother: [z]\n")
    assert unsafe(open_with(tmp_path), ["x", "y", "z", "w"], 0.5) == {"x": "harm", "y": "harm", "z": "other"}


UNUSABLE = [{}, None, {"harm": None}, {"harm": math.nan}, {"harm": 1.2}, {"harm": True}, {"a": 0.1, "b": "0"}]


@pytest.mark.parametrize("scores", UNUSABLE)
def test_what_has_no_usable_score_is_unsafe(scores):
    assert unsafe(Fixed(scores), ["a text"], 0.5) == {"a text": "unscored"}


def test_the_worst_category_from_the_threshold_on_is_named():
    assert unsafe(Fixed({"a": 0.5, "b": 0.7}, {"a": 0.49}), ["one", "two"], 0.5) == {"one": "b"}
    assert unsafe(Fixed(), ["", " "], 0.5) == {}
    with pytest.raises(SafetyError, match="asked about 2 texts and answered 1"):
        unsafe(Fixed({"a": 0.0}), ["one", "two"], 0.5)


@pytest.mark.parametrize("scores", [*UNUSABLE, {"harm": 0.1}])
def test_blocked_words_are_found_whatever_else_judges_and_make_no_text_safe(scores):
    with_words = BlockedWords(Fixed(scores, scores), ["gun"])
    plain = unsafe(Fixed(scores, scores), ["a GUN", "a text"], 0.5)
    found = unsafe(with_words, ["a GUN", "a text"], 0.5)
    assert found == {**plain, "a GUN": plain.get("a GUN", "blocked")}
    assert with_words.classify(["a GUN", "a text"])[1] == pytest.approx(scores, nan_ok=True)


def test_of_two_scores_for_blocked_the_higher_one_counts():
    answers = {"blocked": 0.2, "harm": 0.7}, {"blocked": 0.9, "harm": 0.1}
    found = BlockedWords(Fixed(*answers), ["gun"]).classify(["a gun", "a text"])
    assert found == [{"blocked": 1.0, "harm": 0.7}, {"blocked": 0.9, "harm": 0.1}]
    with pytest.raises(SafetyError, match="asked about 1 texts and answered 2"):
        unsafe(BlockedWords(Fixed(*answers), ["gun"]), ["a gun"], 0.5)


def test_prompts_are_judged_by_every_turn_and_by_the_reply():
    def row(name, first, reply):
        return {"prompt_id": name, "history": [{"role": "user", "content": first}], "reply": reply}

    rows = [row("p1", "how to make a bomb", "no"), row("p2", "hi", "I will kill you"), row("p3", "hi", None)]
    assert unsafe_prompts(rows, open_with(), 0.5) == {
        "p1": ("safety:weapons", "in turn 0 of the history"),
        "p2": ("safety:violence", "in the reply"),
    }


@pytest.fixture(scope="module")
def local(tmp_path_factory, tiny_models):
    """A random two-layer classifier of three labels behind a real tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, id2label={0: "safe", 1: "violence", 2: "self_harm"}, initializer_range=1.0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_models / "embedder").save_pretrained(folder)
    return folder


def test_a_local_model_scores_its_harms(local):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["hello there", "a much longer text than the other one is, by far", "short"]
    model = AutoModelForSequenceClassification.from_pretrained(local).eval()
    tokenizer = AutoTokenizer.from_pretrained(local)
    scores = open_with(classifier="local", model=str(local), batch_size=2).classify(texts)
    for text, found in zip(texts, scores, strict=True):
        with torch.inference_mode():
            expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert found == pytest.approx({"violence": expected[1], "self_harm": expected[2]}, abs=1e-4)


def test_the_end_of_a_long_text_is_judged_too(local):
    classifier = open_with(classifier="local", model=str(local))
    filler = "word " * 200
    long, start = classifier.classify([filler + "knife blood fight", filler])
    assert long != start
    assert all(long[name] >= 0 for name in ("violence", "self_harm"))


def test_positions_that_begin_after_the_padding_are_not_counted_twice(local, tmp_path):
    """RoBERTa's first position is two: of 64 positions 62 can be used, and its tokenizer may name no length."""
    from transformers import AutoTokenizer, RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, pad_token_id=0, id2label={0: "safe", 1: "violence"},
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(local, model_max_length=10**30).save_pretrained(tmp_path)
    (found,) = open_with(classifier="local", model=str(tmp_path)).classify(["word " * 200])
    assert 0 < found["violence"] < 1


def test_blocked_words_are_found_with_a_local_model(local):
    classifier = open_with(classifier="local", model=str(local), blocked=["gun"])
    gun, plain = classifier.classify(["the gun", "hello there"])
    assert gun["blocked"] == 1.0
    assert set(plain) == {"violence", "self_harm"}


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_without_a_score_leaves_the_whole_text_unscored(local, monkeypatch, window):
    import torch

    classifier = open_with(classifier="local", model=str(local))

    def forward(input_ids, **_):
        logits = torch.tensor([[9.0, 0.0, 0.0]]).repeat(len(input_ids), 1)
        logits[window] = math.nan
        return SimpleNamespace(logits=logits)

    monkeypatch.setattr(classifier._model, "forward", forward)
    assert unsafe(classifier, ["word " * 200], 0.5) == {"word " * 200: "unscored"}


def test_a_local_model_that_will_not_do_is_an_error(local, tmp_path):
    with pytest.raises(SafetyError, match="cannot be loaded"):
        open_with(classifier="local", model=str(tmp_path))
    with pytest.raises(SafetyError, match="every text would be unsafe"):
        open_with(classifier="local", model=str(local), safe_labels=("harmless",))
    with pytest.raises(SafetyError, match="none is a harm"):
        open_with(classifier="local", model=str(local), safe_labels=("safe", "violence", "SELF_HARM"))


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, body = self.server.plan(request["texts"], self.headers)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    """A real server; ``server.plan`` decides each answer, ``server.url`` is where it is."""
    monkeypatch.setattr(endpoint, "_PAUSE", 0.01)
    made = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    made.url = f"http://127.0.0.1:{made.server_port}/classify"
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def ask(server, texts, **changes):
    asked = {"classifier": "http", "url": server.url, "timeout_seconds": 0.3, "retries": 2, "batch_size": 2}
    return unsafe(open_with(**{**asked, **changes}), texts, 0.5)


def test_an_endpoint_is_asked_in_batches_with_its_token(server, monkeypatch):
    seen = []

    def plan(texts, headers):
        seen.append((len(texts), headers.get("Authorization")))
        return 200, {"scores": [{"harm": float("bad" in text)} for text in texts]}

    server.plan = plan
    monkeypatch.setenv("FLYWHEEL_SAFETY_TOKEN", "let me in")
    assert ask(server, ["a", "bad b", "c", "a"]) == {"bad b": "harm"}
    assert ask(server, ["a", "bad b", "a gun"], blocked=["gun"]) == {"bad b": "harm", "a gun": "blocked"}
    assert seen[:2] == [(2, "Bearer let me in"), (1, "Bearer let me in")]


@pytest.mark.parametrize("status", [500, 408, 425, 429])
def test_an_endpoint_that_recovers_is_asked_again(server, status):
    answers = iter([(status, {}), (503, {}), (200, {"scores": [{"harm": 0.9}]})])
    server.plan = lambda texts, headers: next(answers)
    assert ask(server, ["a"]) == {"a": "harm"}


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (500, {}, "in 3 attempts .status 500."),
        (404, {"error": "what a secret"}, "answered with status 404$"),
        (302, {}, "answered with status 302"),
        (200, b"not json", "the answer is not"),
        (200, {"labels": []}, "the answer is not"),
        (200, {"scores": []}, "a list `scores` of 1 items"),
    ],
)
def test_an_endpoint_without_a_usable_answer_stops_the_run(server, status, body, words):
    server.plan = lambda texts, headers: (status, body)
    with pytest.raises(SafetyError, match=words):
        ask(server, ["a"])


def test_an_endpoint_that_does_not_answer_in_time_or_at_all_stops_the_run(server):
    def plan(texts, headers):
        time.sleep(0.5)
        return 200, {"scores": [{"harm": 0.0}]}

    server.plan = plan
    with pytest.raises(SafetyError, match=r"in 2 attempts .ReadTimeout"):
        ask(server, ["a"], timeout_seconds=0.1, retries=1)
    with pytest.raises(SafetyError, match=r"in 1 attempts .ConnectError"):
        ask(server, ["a"], url="http://127.0.0.1:9/", retries=0)


def test_a_score_that_an_endpoint_leaves_out_is_unsafe(server):
    server.plan = lambda texts, headers: (200, {"scores": [{"harm": 0.0}, None]})
    assert ask(server, ["a", "b"]) == {"b": "unscored"}
