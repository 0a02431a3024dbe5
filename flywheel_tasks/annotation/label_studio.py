"""Tasks to Label Studio's import format, and one annotator's entries back to a label.

What an annotator sees is in ``data``; which policy wrote a reply, and who the user is, is not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from flywheel_tasks.annotation.checking import Problem, best_of
from flywheel_tasks.annotation.interface import EQUAL, LETTERS, NO_VIOLATION, YES, better, interface_id
from flywheel_tasks.annotation.tasks import VIOLATES_CARD, rules_of, texts_of

Row = dict[str, Any]
_TYPES = {"choices": "choices", "textarea": "text"}


class EntryError(ValueError):
    """What an annotator entered breaks a rule.

    Args:
        problem: the rule and what is wrong.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def card_html(card: Mapping[str, Any], *, highlighted: bool) -> str:
    """The card as HTML, every text of it escaped.

    Args:
        card: name, traits, instructions.
        highlighted: mark what a reply may violate, as steerability tasks do.
    """
    form = Markup("<li><mark>{}</mark></li>") if highlighted else Markup("<li>{}</li>")
    parts = [Markup("<h3>{}</h3>").format(card["name"])]
    for title, texts in (("Instructions", card["instructions"]), ("Traits", card["traits"])):
        if texts:
            items = Markup("").join(form.format(text) for text in texts)
            parts.append(Markup("<p>{}</p><ul>{}</ul>").format(title, items))
    return str(Markup("").join(parts))


def conversation_html(task: Mapping[str, Any]) -> str:
    """What was said so far as HTML, every text of it escaped."""
    parts = []
    for turn in task["history"]:
        author = task["card"]["name"] if turn["role"] == "assistant" else "User"
        parts.append(Markup("<p><strong>{}:</strong> {}</p>").format(author, turn["content"]))
    return str(Markup("").join(parts))


def rule_choices(card: Mapping[str, Any]) -> dict[str, str]:
    """The choice shown for each rule of a card, by rule id; equal texts stay apart by their number."""
    return {
        row["rule_id"]: f"{row['rule_id'].replace('-', ' ').capitalize()}: {row['text']}"
        for row in rules_of(card)
    }


def task_data(task: Mapping[str, Any]) -> Row:
    """The ``data`` of a Label Studio task.

    Args:
        task: a row of ``batch.jsonl``.
    """
    data: Row = {
        "task_id": task["task_id"],
        "interface": interface_id(task),
        "card": card_html(task["card"], highlighted=task["kind"] == "steerability"),
        "conversation": conversation_html(task),
    }
    data |= {f"reply_{number}": text for number, text in enumerate(texts_of(task).values())}
    if task["kind"] == "steerability":
        # Label Studio shows ``html`` and stores ``value``.
        choices = [*rule_choices(task["card"]).values(), NO_VIOLATION]
        data["rules"] = [{"value": choice, "html": str(escape(choice))} for choice in choices]
    return data


def values_of_result(result: Sequence[Any]) -> dict[str, list[str]]:
    """What was entered in each control, from the ``result`` of an annotation (format JSON).

    Raises:
        EntryError: an entry is malformed, or of a kind that the interface does not have.
    """
    values: dict[str, list[str]] = {}
    for region in result:
        kind = region.get("type") if isinstance(region, dict) else None
        key = _TYPES.get(str(kind))
        name, value = (region.get("from_name"), region.get("value")) if key else (None, None)
        entered = value.get(key) if isinstance(value, dict) else None
        if not isinstance(name, str) or not isinstance(entered, list) or not _is_texts(entered):
            raise EntryError(Problem("malformed", f"result of type {kind!r} cannot be read"))
        if name in values:
            raise EntryError(Problem("malformed", f"{name} is entered twice"))
        values[name] = list(entered)
    return values


def values_of_record(record: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, list[str]]:
    """What was entered in each control, from a record of format JSON_MIN: whatever is neither data nor about it.

    One choice or text stands there as it is, several as ``{"choices": [...]}`` or ``{"text": [...]}``.

    Raises:
        EntryError: an entry is malformed.
    """
    about = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}
    values: dict[str, list[str]] = {}
    for name, entered in record.items():
        if name in about or name in data:
            continue
        if isinstance(entered, list) and len(entered) == 1:
            entered = entered[0]
        if isinstance(entered, dict):
            entered = entered.get("choices", entered.get("text"))
        entered = [entered] if isinstance(entered, str) else entered
        if not _is_texts(entered):
            raise EntryError(Problem("malformed", f"{name} cannot be read"))
        values[name] = list(entered)
    return values


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


class _Entries:
    """Takes the values out one by one; what is left in the end has no place in the interface."""

    def __init__(self, values: Mapping[str, list[str]]) -> None:
        self._left = dict(values)

    def take(self, name: str, allowed: Sequence[str] | None, *, required: bool = True) -> list[str]:
        found = self._left.pop(name, [])
        if required and not found:
            raise EntryError(Problem("missing_answer", f"{name} is not answered"))
        if allowed is not None and (unknown := [value for value in found if value not in allowed]):
            raise EntryError(Problem("unknown_choice", f"{name}: {unknown[0]!r} is not among its choices"))
        return found

    def one(self, name: str, allowed: Sequence[str]) -> str:
        found = self.take(name, allowed)
        if len(found) > 1:
            raise EntryError(Problem("several_answers", f"{name} has {len(found)} answers"))
        return found[0]

    def end(self) -> None:
        if self._left:
            raise EntryError(
                Problem("unknown_control", f"{min(self._left)} is not in the interface of this task")
            )


def label_of(values: Mapping[str, list[str]], task: Mapping[str, Any], annotator: str) -> Row:
    """The label (a row of ``labels.jsonl``) that the entered values mean.

    Args:
        values: by control.
        task: its task.
        annotator: who entered them.

    Raises:
        EntryError: an answer is missing, unknown, or has no place in the interface.
    """
    if not values:
        raise EntryError(Problem("empty", "the annotation holds no answers at all"))
    entries, shown = _Entries(values), list(texts_of(task))
    answers: dict[str, dict[str, bool | str]] = {}
    violations: dict[str, list[str]] = {}
    for number, candidate in enumerate(shown):
        if task["kind"] == "steerability":
            violations[candidate] = _violations(entries, number, task)
        answers[candidate] = {
            question["name"]: bool(violations[candidate])
            if candidate in violations and question["name"] == VIOLATES_CARD
            else _answer(entries, question, number)
            for question in task["questions"]
        }
    ranking = _ranking(entries, shown) if task["kind"] != "rewrite" else []
    texts = [text for text in entries.take("rewrite", None, required=False) if text.strip()]
    if len(texts) > 1:
        raise EntryError(Problem("several_answers", f"rewrite has {len(texts)} texts"))
    skipped = bool(entries.take("rewrite_skipped", None, required=False))
    entries.end()
    best = best_of(ranking, shown) if ranking else shown[0]
    return {
        "task_id": task["task_id"],
        "annotator": annotator,
        "simulated": False,
        "ranking": ranking,
        "answers": answers,
        "violations": violations,
        "rewrite": {"candidate_id": best, "text": texts[0].strip()} if texts else None,
        "rewrite_skipped": skipped and not texts,
    }


def _answer(entries: _Entries, question: Mapping[str, Any], number: int) -> bool | str:
    control = f"{question['name']}_{number}"
    if question["choices"] is None:
        return entries.one(control, (YES, "No")) == YES
    return entries.one(control, question["choices"])


def _violations(entries: _Entries, number: int, task: Mapping[str, Any]) -> list[str]:
    choices = rule_choices(task["card"])
    control = f"violated_{number}"
    found = entries.take(control, [*choices.values(), NO_VIOLATION])
    if NO_VIOLATION in found and len(found) > 1:
        raise EntryError(Problem("contradiction", f"{control} says none and names some"))
    return [rule for rule, choice in choices.items() if choice in found]


def _ranking(entries: _Entries, shown: Sequence[str]) -> list[str | list[str]]:
    if len(shown) == 2:
        first, second = (better(letter) for letter in LETTERS[:2])
        chosen = entries.one("preference", (first, second, EQUAL))
        if chosen == EQUAL:
            return [list(shown)]
        return list(shown) if chosen == first else list(reversed(shown))
    numbers = [str(place) for place in range(1, len(shown) + 1)]
    by_place: dict[int, list[str]] = {}
    for number, candidate in enumerate(shown):
        by_place.setdefault(int(entries.one(f"place_{number}", numbers)), []).append(candidate)
    groups = [group for _, group in sorted(by_place.items())]
    return [group[0] if len(group) == 1 else group for group in groups]
