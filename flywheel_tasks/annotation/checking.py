"""Labels of a batch, read and checked line by line: what people or tools wrote is never taken on trust."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictBool, StrictStr, ValidationError

from flywheel_tasks.annotation.tasks import AnnotationError, texts_of
from flywheel_tasks.storage.documents import read_jsonl

Row = dict[str, Any]


class _Rewrite(BaseModel):
    model_config = ConfigDict(extra="forbid")
    candidate_id: StrictStr
    text: StrictStr


class _Label(BaseModel):
    model_config = ConfigDict(extra="forbid")
    task_id: StrictStr
    annotator: StrictStr
    simulated: StrictBool
    ranking: list[StrictStr]
    answers: dict[StrictStr, dict[StrictStr, StrictBool]]
    rewrite: _Rewrite | None


def broken_rule(label: _Label, task: Mapping[str, Any] | None) -> str | None:
    """The rule that a well-formed label breaks, in words; None if it is sound.

    Args:
        label: the label.
        task: its task, or None if the batch has no such task.
    """
    if task is None:
        return f"task_id {label.task_id} is not in the batch"
    texts = texts_of(task)
    if not label.annotator.strip():
        return "annotator is empty"
    if strangers := sorted({*label.ranking, *label.answers} - set(texts)):
        return f"candidate_id {strangers[0]} is not in task {label.task_id}"
    if sorted(label.ranking) != sorted(texts):
        return "ranking must name every candidate of the task once"
    for candidate in texts:
        given = set(label.answers.get(candidate, ()))
        if given != set(task["questions"]):
            return f"answers of {candidate} must be exactly {', '.join(task['questions'])}"
    if label.rewrite is None:
        return None
    if label.rewrite.candidate_id not in texts:
        return f"rewrite: candidate_id {label.rewrite.candidate_id} is not in task {label.task_id}"
    if not label.rewrite.text.strip():
        return "rewrite: text is empty"
    if label.rewrite.text.strip() == texts[label.rewrite.candidate_id].strip():
        return "rewrite: text is the same as the candidate's"
    return None


def read_labels(path: Path, tasks: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Read and check a labels file.

    Args:
        path: JSON Lines, one label a line.
        tasks: rows of the batch.

    Returns:
        the labels, in the file's order.

    Raises:
        AnnotationError: the file is missing or empty, or a line breaks a rule (``file:line: rule``).
    """
    if not path.is_file():
        raise AnnotationError(f"{path}: no such file of labels")
    by_id = {task["task_id"]: task for task in tasks}
    seen: dict[tuple[str, str], int] = {}
    labels: list[Row] = []
    for number, row in read_numbered(path):
        try:
            label = _Label.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise AnnotationError(f"{path}:{number}: {where}: {first['msg']}") from error
        rule = broken_rule(label, by_id.get(label.task_id))
        if rule is not None:
            raise AnnotationError(f"{path}:{number}: {rule}")
        key = (label.task_id, label.annotator)
        if key in seen:
            raise AnnotationError(
                f"{path}:{number}: {label.annotator} labelled this task in line {seen[key]} already"
            )
        seen[key] = number
        labels.append(label.model_dump())
    if not labels:
        raise AnnotationError(f"{path}: no labels")
    return labels


def read_numbered(path: Path) -> list[tuple[int, Row]]:
    """Rows of a JSON Lines file with their line numbers (blank lines are counted, not returned)."""
    with path.open("rb") as file:
        numbers = [number for number, line in enumerate(file, start=1) if line.strip()]
    return list(zip(numbers, read_jsonl(path), strict=True))
