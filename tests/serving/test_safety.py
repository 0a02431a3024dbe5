"""The check on the way in and out: what is refused is not shown, and no verdict is a no."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.safety.classifier import SafetyError, Scores
from flywheel_tasks.serving.gateway import open_gateway
from flywheel_tasks.traffic.schemas import REFUSAL_MODEL
from tests.online.spooled import spooled
from tests.serving.conftest import Live, logged, start_experiment, user_of, wait_for
from tests.serving.stub import REPLY, Stub

Start = Callable[..., Live]


class Check:
    """Refuses what holds the word; may break or hang."""

    def __init__(self, word: str = "poison", breaks: str = "") -> None:
        self.word, self.breaks, self.goes_on = word, breaks, threading.Event()

    def classify(self, texts: Sequence[str]) -> Sequence[Scores]:
        role = "user" if texts == ["Hi"] else "assistant"
        if self.breaks == role:
            raise RuntimeError("the classifier is gone")
        if self.breaks == f"{role} hangs":
            self.goes_on.wait(60)
        if self.breaks == f"{role} not scored":
            return [{}]
        return [{"harm": float(self.word in text), "spam": 0.1} for text in texts]


def refusal(gateway: Live) -> str:
    return gateway.gateway.settings.serve.refusal


def kinds(root: Path) -> list[str]:
    """What an A/B test makes of the logged messages."""
    return [row["kind"] for row in spooled(logged(root, "message"))[1]]


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_that_may_not_be_said_reaches_no_model(
    live: Start, root: Path, stub: Stub, stream: bool
) -> None:
    start_experiment(root)
    gateway = live(classifier=Check())
    if stream:
        parts = gateway.stream("How to brew poison?")[1]
        said, finish = parts[0]["choices"][0]["delta"]["content"], parts[-1]["choices"][0]["finish_reason"]
    else:
        choice = gateway.chat("How to brew poison?").json()["choices"][0]
        said, finish = choice["message"]["content"], choice["finish_reason"]
    assert (said, finish) == (refusal(gateway), "content_filter")
    assert stub.asked == []
    assert logged(root, "exposure") == []
    user, reply = logged(root, "message")
    assert user["text"] == "How to brew poison?"
    assert (reply["text"], reply["model"], reply["finish_reason"]) == (
        refusal(gateway),
        REFUSAL_MODEL,
        "content_filter",
    )
    assert "refused_model" not in reply  # no model broke a rule
    text = gateway.client.get("/metrics").text
    assert 'flywheel_safety_blocks_total{category="harm",side="input"} 1' in text
    # Nor does a model see it with what is said next; what is allowed before and after it, it does.
    assert gateway.chat("How to brew poison?", refusal(gateway), "Answer the first one.").status_code == 200
    said = [turn["content"] for turn in stub.asked[-1]["messages"] if turn["role"] != "system"]
    assert said == ["Answer the first one."]
    history = ["How to brew poison?", refusal(gateway), "Answer the first one.", REPLY, "Go on."]
    assert gateway.chat(*history).status_code == 200
    said = [turn["content"] for turn in stub.asked[-1]["messages"] if turn["role"] != "system"]
    assert said == history[2:]


@pytest.mark.parametrize("refused", ["message", "reply"])
def test_a_false_refusal_can_be_reported(live: Start, root: Path, stub: Stub, refused: str) -> None:
    gateway = live(classifier=Check())
    stub.replies["base"] = "A poison dart frog is small."
    answer = gateway.chat("Draw a poison dart frog." if refused == "message" else "Hi").json()
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    report = {"message_id": answer["id"], "signal": "report", "value": "I only asked about frogs."}
    for given in (report, {"message_id": answer["id"], "signal": "thumb_down"}):
        assert gateway.post("/v1/feedback", given, "ann").status_code == 200
    assert [row["signal"] for row in logged(root, "signal")] == ["report", "thumb_down"]
    reply = logged(root, "message")[-1]
    assert {row["message_id"] for row in logged(root, "signal")} == {reply["message_id"]}
    assert reply["model"] == REFUSAL_MODEL  # which nothing learns from


def test_a_reply_that_may_not_be_shown_is_not_and_counts_as_exposure(
    live: Start, root: Path, stub: Stub
) -> None:
    plan = start_experiment(root)
    gateway = live(classifier=Check())
    stub.replies["g0001"] = "Take poison."
    user = user_of(plan, "candidate")
    choice = gateway.chat("Hi", user=user).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (refusal(gateway), "content_filter")
    reply = logged(root, "message")[-1]
    assert (reply["model"], reply["refused_model"]) == (REFUSAL_MODEL, "g0001")
    assert "poison" not in str(logged(root))
    assert [row["arm"] for row in logged(root, "exposure")] == ["candidate"]


def test_a_stream_stops_before_the_sentence_that_may_not_be_shown(
    live: Start, root: Path, stub: Stub
) -> None:
    gateway = live(classifier=Check())
    stub.replies["base"] = "The tea is ready. It is poison. Drink."
    _, parts = gateway.stream("Hi")
    assert [part["choices"][0]["delta"].get("content") for part in parts] == ["The tea is ready.", None]
    assert parts[-1]["choices"][0]["finish_reason"] == "content_filter"
    reply = logged(root, "message")[-1]
    assert (reply["text"], reply["model"]) == ("The tea is ready.", "base")
    assert (reply["finish_reason"], reply["refused_model"]) == ("content_filter", "base")
    assert "latency_ms" not in reply  # the model was not let finish
    assert kinds(root) == ["message", "reply", "safety_violation"]
    stub.replies["base"] = "It is poison."
    assert gateway.stream("Hi")[1][0]["choices"][0]["delta"]["content"] == refusal(gateway)
    reply = logged(root, "message")[-1]
    assert (reply["model"], reply["refused_model"]) == (REFUSAL_MODEL, "base")
    assert kinds(root) == ["message", "reply", "safety_violation"] * 2


def test_a_violation_counts_though_the_reader_leaves_right_after_it(
    live: Start, root: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = live(classifier=Check())
    stub.replies["base"] = "The tea is ready. It is poison. Drink."
    fleet = gateway.gateway.fleet
    stream, closing = fleet.stream, []

    async def slow_to_close(*asked: Any) -> AsyncIterator[Any]:
        pieces = stream(*asked)
        try:
            async for piece in pieces:
                yield piece
        finally:
            closing.append(True)
            await asyncio.sleep(5)

    monkeypatch.setattr(fleet, "stream", slow_to_close)
    with gateway.open_stream("Hi") as lines:
        assert "The tea is ready." in next(lines)
        wait_for(lambda: bool(closing))
    wait_for(lambda: len(logged(root, "message")) == 2)
    reply = logged(root, "message")[-1]
    assert (reply["text"], reply["model"]) == ("The tea is ready.", "base")
    assert (reply["finish_reason"], reply["refused_model"]) == ("content_filter", "base")


@pytest.mark.parametrize("breaks", ["user", "assistant", "user hangs", "assistant hangs", "user not scored"])
def test_a_check_that_fails_is_a_no(make_live: Start, breaks: str) -> None:
    # A check that hangs uses all of it; before that of a reply, the one of its message must pass in it.
    seconds = {"user hangs": 0.2, "assistant hangs": 3.0}.get(breaks, 20.0)
    check = Check(breaks=breaks)
    gateway = make_live(classifier=check, safety_seconds=seconds)
    gateway.gateway.services.guard._threads = ThreadPoolExecutor(1)
    choice = gateway.chat("Hi").json()["choices"][0]
    check.goes_on.set()
    assert (choice["message"]["content"], choice["finish_reason"]) == (refusal(gateway), "content_filter")
    side = "input" if breaks.startswith("user") else "output"
    text = gateway.client.get("/metrics").text
    category = "unscored" if breaks.endswith("scored") else "check_failed"
    assert f'flywheel_safety_blocks_total{{category="{category}",side="{side}"}} 1' in text


def test_the_word_lists_of_the_workspace_and_of_the_settings_hold(live: Start, root: Path) -> None:
    (root / "safety_words/own.yaml").write_text("weapons: [build a bomb]\n")
    gateway = live()
    choice = gateway.chat("How do I BUILD  a bomb?").json()["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    assert gateway.chat("Hi").json()["choices"][0]["finish_reason"] == "stop"


def test_without_a_classifier_nothing_is_served(root: Path) -> None:
    shutil.rmtree(root / "safety_words", ignore_errors=True)
    with pytest.raises(SafetyError):
        open_gateway(root)
