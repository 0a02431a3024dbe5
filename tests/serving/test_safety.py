"""The check on the way in and out: what is refused is not shown, and no verdict is a no."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.serving.safety import BlockedWords, Verdict
from tests.serving.conftest import Live, logged, start_experiment, user_of
from tests.serving.stub import Stub

Start = Callable[..., Live]


class Check:
    """Refuses what holds the word; may break or hang."""

    slow = True

    def __init__(self, word: str = "poison", breaks: str = "") -> None:
        self.word, self.breaks = word, breaks

    def check(self, text: str, role: str) -> Verdict:
        if self.breaks == role:
            raise RuntimeError("the classifier is gone")
        if self.breaks == f"{role} hangs":
            time.sleep(1.0)
        return Verdict(self.word not in text, ("harm",) if self.word in text else ())


def refusal(gateway: Live) -> str:
    return gateway.gateway.settings.serve.refusal


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_that_may_not_be_said_reaches_no_model(
    live: Start, root: Path, stub: Stub, stream: bool
) -> None:
    start_experiment(root)
    gateway = live(check=Check())
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
        None,
        "content_filter",
    )
    text = gateway.client.get("/metrics").text
    assert 'flywheel_safety_blocks_total{category="harm",side="input"} 1' in text
    assert gateway.chat("How to brew poison?", refusal(gateway), "Sorry.").status_code == 200


def test_a_reply_that_may_not_be_shown_is_not_and_counts_as_exposure(
    live: Start, root: Path, stub: Stub
) -> None:
    plan = start_experiment(root)
    gateway = live(check=Check())
    stub.replies["g0001"] = "Take poison."
    user = user_of(plan, "candidate")
    choice = gateway.chat("Hi", user=user).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (refusal(gateway), "content_filter")
    reply = logged(root, "message")[-1]
    assert (reply["model"], reply["refused_model"]) == (None, "g0001")
    assert "poison" not in str(logged(root))
    assert [row["arm"] for row in logged(root, "exposure")] == ["candidate"]


def test_a_stream_stops_before_the_sentence_that_may_not_be_shown(
    live: Start, root: Path, stub: Stub
) -> None:
    gateway = live(check=Check())
    stub.replies["base"] = "The tea is ready. It is poison. Drink."
    _, parts = gateway.stream("Hi")
    assert [part["choices"][0]["delta"].get("content") for part in parts] == ["The tea is ready.", None]
    assert parts[-1]["choices"][0]["finish_reason"] == "content_filter"
    reply = logged(root, "message")[-1]
    assert (reply["text"], reply["model"]) == ("The tea is ready.", "base")
    stub.replies["base"] = "It is poison."
    assert gateway.stream("Hi")[1][0]["choices"][0]["delta"]["content"] == refusal(gateway)


@pytest.mark.parametrize("breaks", ["user", "assistant", "user hangs", "assistant hangs"])
def test_a_check_that_fails_is_a_no(make_live: Start, breaks: str) -> None:
    gateway = make_live(check=Check(breaks=breaks), safety_seconds=0.2)
    choice = gateway.chat("Hi").json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (refusal(gateway), "content_filter")
    side = "input" if breaks.startswith("user") else "output"
    text = gateway.client.get("/metrics").text
    assert f'flywheel_safety_blocks_total{{category="check_failed",side="{side}"}} 1' in text


@pytest.mark.parametrize(
    ("text", "allowed"),
    [("Poison!", False), ("poisonous", True), ("a RAT TRAP here", False), ("rat-trap", True), ("", True)],
)
def test_blocked_words(text: str, allowed: bool) -> None:
    check: Any = BlockedWords(["poison", "rat trap"])
    assert check.check(text, "user").allowed is allowed
    assert BlockedWords([]).check(text, "user").allowed
