"""Tool calls in replies: their format, and how well a policy calls (paper, section on image generation).

A call is the whole reply: ``<tool_call>{"name": "draw_picture", "arguments": {"prompt": "..."}}</tool_call>``, the
format of chat templates with tools. Explicit: the user asks for a picture. Implicit: the character decides that
one fits.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flywheel_tasks.evaluation.intervals import Estimate, share

Trigger = Literal["explicit", "implicit", "none"]
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
TOOLS = {"draw_picture": ("prompt",)}
# How a card tells the policy of the tool, as in sets/tool_calls.jsonl.
_EXAMPLE = '{"name": "draw_picture", "arguments": {"prompt": "..."}}'
INSTRUCTION = f"To show a picture, reply only with {_OPEN}{_EXAMPLE}{_CLOSE}."


class ToolCallError(ValueError):
    """A reply starts a tool call that is not well formed."""


@dataclass(frozen=True)
class ToolCall:
    """A call.

    Attributes:
        name: of the tool.
        arguments: by name.
    """

    name: str
    arguments: dict[str, str]


def marked(reply: str) -> bool:
    """Whether a reply has the mark of a call, whole or not."""
    return _OPEN in reply or _CLOSE in reply


def parse(reply: str) -> ToolCall | None:
    """The call that a reply is, or None for plain text.

    Raises:
        ToolCallError: there is a mark of a call, but no whole one, or one beside other text, of an unknown tool or
            with other arguments than the tool has.
    """
    if not marked(reply):
        return None
    text = reply.strip()
    if not (text.startswith(_OPEN) and text.endswith(_CLOSE)):
        raise ToolCallError("a tool call must be the whole reply")
    try:
        body: Any = json.loads(text.removeprefix(_OPEN).removesuffix(_CLOSE))
    except json.JSONDecodeError as error:
        raise ToolCallError(f"a tool call holds no JSON ({error})") from error
    if not isinstance(body, dict) or set(body) != {"name", "arguments"} or body["name"] not in TOOLS:
        raise ToolCallError(f"a tool call names none of {', '.join(TOOLS)}")
    arguments = body["arguments"]
    wanted = TOOLS[body["name"]]
    if not isinstance(arguments, dict) or set(arguments) != set(wanted):
        raise ToolCallError(f"{body['name']} takes {', '.join(wanted)}")
    if empty := [
        name for name in wanted if not isinstance(arguments[name], str) or not arguments[name].strip()
    ]:
        raise ToolCallError(f"{body['name']}: {empty[0]} is no text")
    return ToolCall(body["name"], arguments)


def is_broken(reply: str) -> bool:
    """Whether :func:`parse` refuses a reply."""
    return _calls(reply)[1]


def _calls(reply: str) -> tuple[bool, bool]:
    """Whether a reply calls, and whether its call is broken."""
    try:
        return parse(reply) is not None, False
    except ToolCallError:
        return False, True


def measure(replies: Sequence[str], expected: Sequence[Trigger], users: Sequence[str]) -> dict[str, Estimate]:
    """How well replies call.

    Args:
        replies: one to each prompt.
        expected: what each prompt should trigger.
        users: clusters of the intervals.

    Returns:
        ``explicit_recall`` and ``implicit_recall`` (share of prompts that should trigger a call and did),
        ``false_trigger`` (share of the others that did) and ``malformed`` (share of replies with a broken call),
        each with a 95% interval.
    """
    called, broken = zip(*map(_calls, replies), strict=True) if replies else ((), ())

    def of(trigger: Trigger) -> Estimate:
        rows = [row for row, kind in enumerate(expected) if kind == trigger]
        return share([float(called[row]) for row in rows], [users[row] for row in rows])

    return {
        "explicit_recall": of("explicit"),
        "implicit_recall": of("implicit"),
        "false_trigger": of("none"),
        "malformed": share([float(each) for each in broken], list(users)),
    }
