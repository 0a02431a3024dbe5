"""Rules that a character can be given: their sentences in several wordings, each with the check behind it."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from flywheel_tasks.storage.fast_yaml import load_yaml

_SPELLED = {12: "twelve", 15: "fifteen", 18: "eighteen", 20: "twenty", 25: "twenty-five", 30: "thirty"}


@dataclass(frozen=True)
class Check:
    """What an instruction asks, in a form that code can test.

    Attributes:
        kind: one of :data:`flywheel_tasks.simulation.checks.KINDS`.
        value: a number or a word, where the kind needs one.
    """

    kind: str
    value: int | str | None = None


@dataclass(frozen=True)
class Rule:
    """One thing that cards ask for.

    Attributes:
        family: its key in ``rules.yaml``; ``call`` is a ``mention`` of how the user is called.
        check: what it asks.
        wordings: sentences that ask it.
    """

    family: str
    check: Check
    wordings: tuple[str, ...]


def _filled(wording: str, value: int | str | None) -> str:
    slots = {"{n}": str(value), "{spelled}": _SPELLED.get(value, "") if isinstance(value, int) else ""}
    slots |= {"{w}": str(value), "{W}": str(value).capitalize()}
    for slot, text in slots.items():
        wording = wording.replace(slot, text)
    return wording


def _of_family(family: str, row: dict[str, Any]) -> list[Rule]:
    found = []
    for value in row.get("values", [None]):
        by_value = row["wordings"]
        texts = by_value[value] if isinstance(by_value, dict) else by_value
        check = Check("mention" if family == "call" else family, value)
        found.append(Rule(family, check, tuple(_filled(text, value) for text in texts)))
    return found


@cache
def rules() -> tuple[Rule, ...]:
    """All rules of ``rules.yaml``, in its order."""
    text = files("flywheel_tasks.simulation").joinpath("rules.yaml").read_text(encoding="utf-8")
    return tuple(rule for family, row in load_yaml(text).items() for rule in _of_family(family, row))


@cache
def names_for_users() -> frozenset[str]:
    """What a user can be called by a rule: words that can be put into any reply."""
    return frozenset(str(rule.check.value) for rule in rules() if rule.family == "call")
