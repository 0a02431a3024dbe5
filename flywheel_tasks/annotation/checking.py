"""One label against its task: what people or tools wrote is never taken on trust."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from flywheel_tasks.annotation.tasks import VIOLATES_CARD, places, rules_of, texts_of
from flywheel_tasks.policy.tool_calls import ToolCallError, parse

Row = dict[str, Any]


class Rewrite(BaseModel):
    """A better text for one candidate."""

    model_config = ConfigDict(extra="forbid")
    candidate_id: StrictStr
    text: StrictStr


class Label(BaseModel):
    """What one annotator says about one task (a row of ``labels.jsonl``; docs/annotation.md).

    Attributes:
        task_id: of the batch.
        annotator: who.
        simulated: True only for the demo's annotators.
        ranking: candidates, best first; a list within it holds equal ones. Empty for a rewrite task.
        answers: by candidate and question: True or False, or one of the question's choices.
        violations: of a steerability task: rules of the card that each candidate violates.
        rewrite: a better text for one candidate, if one was written.
        rewrite_skipped: a rewrite was asked for and the annotator cannot write a better text.
        seconds: how long it took, where known.
    """

    model_config = ConfigDict(extra="forbid")
    task_id: StrictStr
    annotator: StrictStr
    simulated: StrictBool
    ranking: list[StrictStr | list[StrictStr]]
    answers: dict[StrictStr, dict[StrictStr, StrictBool | StrictStr]]
    violations: dict[StrictStr, list[StrictStr]] = Field(default_factory=dict)
    rewrite: Rewrite | None
    rewrite_skipped: StrictBool = False
    seconds: float | None = None


class Problem(NamedTuple):
    """A rule that a label breaks: its short name, and what is wrong in words."""

    rule: str
    detail: str


def problem_of(label: Label, task: Mapping[str, Any] | None) -> Problem | None:
    """The first rule that a well-formed label breaks; None if it is sound.

    Args:
        label: the label.
        task: its task, or None if the batch has no such task.
    """
    if task is None:
        return Problem("unknown_task", f"task_id {label.task_id} is not in the batch")
    if not label.annotator.strip():
        return Problem("no_annotator", "annotator is empty")
    for check in (_ranking, _answers, _violations, _rewrite):
        if (problem := check(label, task)) is not None:
            return problem
    return None


def _ranking(label: Label, task: Mapping[str, Any]) -> Problem | None:
    texts = texts_of(task)
    ranked = [item for entry in label.ranking for item in ([entry] if isinstance(entry, str) else entry)]
    if strangers := sorted({*ranked, *label.answers, *label.violations} - set(texts)):
        return Problem("unknown_candidate", f"candidate_id {strangers[0]} is not in task {label.task_id}")
    if task["kind"] == "rewrite":
        return Problem("ranking", "a rewrite task has no ranking") if ranked else None
    if sorted(ranked) != sorted(texts):
        return Problem("ranking", "ranking must name every candidate of the task once")
    return None


def _answers(label: Label, task: Mapping[str, Any]) -> Problem | None:
    asked = {question["name"]: question["choices"] for question in task["questions"]}
    for candidate in texts_of(task):
        given = label.answers.get(candidate, {})
        if set(given) != set(asked):
            return Problem("answers", f"answers of {candidate} must be exactly {', '.join(asked)}")
        for name, answer in given.items():
            choices = asked[name]
            if choices is None and not isinstance(answer, bool):
                return Problem("answers", f"answers.{candidate}.{name} must be true or false, not {answer!r}")
            if choices is not None and answer not in choices:
                return Problem(
                    "unknown_choice", f"answers.{candidate}.{name}: {answer!r} is not among its choices"
                )
    return None


def _violations(label: Label, task: Mapping[str, Any]) -> Problem | None:
    if task["kind"] != "steerability":
        return Problem("violations", "only a steerability task has violations") if label.violations else None
    known = {rule["rule_id"] for rule in rules_of(task["card"])}
    for candidate in texts_of(task):
        found = label.violations.get(candidate)
        if found is None:
            return Problem("violations", f"violations of {candidate} are missing")
        if unknown := sorted(set(found) - known):
            return Problem(
                "unknown_choice", f"violations of {candidate}: {unknown[0]} is no rule of the card"
            )
        if bool(found) != label.answers[candidate][VIOLATES_CARD]:
            return Problem("violations", f"violations of {candidate} contradict its answer {VIOLATES_CARD}")
    return None


def _rewrite(label: Label, task: Mapping[str, Any]) -> Problem | None:
    texts = texts_of(task)
    if label.rewrite is None:
        if rewrite_due(label, task) and not label.rewrite_skipped:
            return Problem("rewrite_missing", "rewrite: the task asks for one, or for rewrite_skipped")
        return None
    if label.rewrite_skipped:
        return Problem("rewrite", "rewrite: there is one, yet rewrite_skipped is set")
    if label.rewrite.candidate_id not in texts:
        return Problem(
            "unknown_candidate",
            f"rewrite: candidate_id {label.rewrite.candidate_id} is not in task {label.task_id}",
        )
    if not label.rewrite.text.strip():
        return Problem("rewrite", "rewrite: text is empty")
    if label.rewrite.text.strip() == texts[label.rewrite.candidate_id].strip():
        return Problem("rewrite", "rewrite: text is the same as the candidate's")
    try:
        parse(label.rewrite.text)  # it will be learned
    except ToolCallError as error:
        return Problem("rewrite", f"rewrite: {error}")
    return None


def rewrite_due(label: Label, task: Mapping[str, Any]) -> bool:
    """Whether the task needs a rewrite: a rewrite task does, and a steerability task whose replies all violate."""
    if task["kind"] == "rewrite":
        return True
    return task["kind"] == "steerability" and all(label.violations.get(item) for item in texts_of(task))


def best_of(ranking: list[str | list[str]], shown: list[str]) -> str:
    """The best candidate of a ranking; of equal ones the first as shown."""
    found = places(ranking)
    return min(shown, key=lambda candidate: found[candidate])
