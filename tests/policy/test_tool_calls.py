import json

import pytest

from flywheel_tasks.policy.tool_calls import ToolCall, ToolCallError, measure, parse


def call(**body: object) -> str:
    return f"<tool_call>{json.dumps(body)}</tool_call>"


GOOD = call(name="draw_picture", arguments={"prompt": "a boat"})


def test_a_call_is_the_whole_reply() -> None:
    assert parse(f" {GOOD}\n") == ToolCall("draw_picture", {"prompt": "a boat"})
    assert parse("A boat, you say?") is None


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (f"Here you are. {GOOD}", "whole reply"),
        ("<tool_call>{", "whole reply"),
        ("<tool_call>{</tool_call>", "no JSON"),
        (GOOD + GOOD, "no JSON"),
        (call(name="shell", arguments={"prompt": "rm"}), "none of draw_picture"),
        (call(name="draw_picture", arguments={"prompt": "a", "size": "b"}), "takes prompt"),
        (call(name="draw_picture", arguments={"prompt": " "}), "prompt is no text"),
        (call(name="draw_picture", arguments={"prompt": 3}), "prompt is no text"),
        (call(name="draw_picture"), "none of"),
        ("<tool_call>[]</tool_call>", "none of"),
    ],
)
def test_a_broken_call_is_an_error(reply: str, complaint: str) -> None:
    with pytest.raises(ToolCallError, match=complaint):
        parse(reply)


def test_recall_false_triggers_and_broken_calls_are_counted_apart() -> None:
    replies = [GOOD, "No.", GOOD, "Hm.", GOOD, "Hello.", "<tool_call>oops"]
    expected = ["explicit", "explicit", "implicit", "implicit", "none", "none", "none"]
    found = measure(replies, expected, [f"u{n}" for n in range(7)])  # type: ignore[arg-type]
    values = {name: (estimate["value"], estimate["n"]) for name, estimate in found.items()}
    assert values == {
        "explicit_recall": (0.5, 2),
        "implicit_recall": (0.5, 2),
        "false_trigger": (1 / 3, 3),
        "malformed": (1 / 7, 7),
    }
    assert measure([], [], [])["malformed"]["value"] is None
