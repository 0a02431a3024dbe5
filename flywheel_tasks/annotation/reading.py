"""Labels from files, in our own JSON Lines or as Label Studio exports them (JSON, JSON_MIN).

Nothing is dropped in silence: what is read is either a label or a quarantine row that names file, place, task,
annotator and the rule that it breaks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flywheel_tasks.annotation.checking import Label, Problem, problem_of
from flywheel_tasks.annotation.label_studio import (
    EntryError,
    label_of,
    task_data,
    values_of_record,
    values_of_result,
)
from flywheel_tasks.annotation.tasks import AnnotationError, short_id
from flywheel_tasks.privacy.said import identifiers_said
from flywheel_tasks.settings import Privacy
from flywheel_tasks.storage.documents import read_json, read_numbered

Row = dict[str, Any]


@dataclass
class Reading:
    """What a set of files holds.

    Attributes:
        labels: the sound ones, in the order read.
        quarantined: rows of ``file``, ``place``, ``task_id``, ``annotator``, ``rule`` and ``detail``.
        read: labels that came in, sound or not. One that counts without its rewrite has a row among both others.
        unlabelled: exported tasks that nobody has annotated.
    """

    labels: list[Row] = field(default_factory=list)
    quarantined: list[Row] = field(default_factory=list)
    read: int = 0
    unlabelled: int = 0


@dataclass(frozen=True)
class _Entry:
    """One annotator's work on one task, not yet judged."""

    file: str
    place: str
    task_id: str
    annotator: str
    updated: str
    label: Row | None
    problem: Problem | None


def read_files(
    files: Sequence[tuple[str, Path]], tasks: Sequence[Mapping[str, Any]], privacy: Privacy | None = None
) -> Reading:
    """Read and judge all labels of a batch.

    Of several sound labels by one annotator for one task the newest counts (the first, where no times are known),
    unless the annotator skipped the task after it; the others are quarantined as ``duplicate``. What is not sound is
    quarantined under its own rule and takes no label's place.

    Args:
        files: the name to show and the path of each.
        tasks: rows of the batch.
        privacy: the section ``privacy``: a rewrite with an identifier is quarantined, and what else its label says of
            several replies counts; None: it is not looked for.

    Raises:
        AnnotationError: a file is in no known format.
        DocumentError: a file is not JSON.
    """
    by_id = {task["task_id"]: task for task in tasks}
    reading = Reading()
    entries: list[_Entry] = []
    for name, path in files:
        for entry in _entries(name, path, by_id):
            if entry is None:
                reading.unlabelled += 1
            else:
                entries.append(entry)
    reading.read = len(entries)
    if privacy is not None:
        entries, aside = _without_identifiers(entries, privacy, by_id)
        reading.quarantined += aside
    newest = _newest(entries)
    for entry in entries:
        problem = entry.problem
        if problem is None and (winner := newest[entry.task_id, entry.annotator]) is not entry:
            where = winner.place if winner.file == entry.file else f"{winner.file}, {winner.place}"
            did = f"labelled this task in {where} already"
            if winner.problem is not None:
                did = f"skipped this task later, in {where}"
            problem = Problem("duplicate", f"{entry.annotator} {did}")
        if problem is None and entry.label is not None:
            reading.labels.append(entry.label)
        elif problem is not None:
            reading.quarantined.append(_quarantined(entry, problem))
    return reading


def _rewrite_of(entry: _Entry) -> str:
    """The text of a sound label's rewrite; empty where there is none."""
    sound = entry.problem is None and entry.label is not None and entry.label["rewrite"] is not None
    return str(entry.label["rewrite"]["text"]) if sound and entry.label else ""


def _without_identifiers(
    entries: Sequence[_Entry], privacy: Privacy, tasks: Mapping[str, Mapping[str, Any]]
) -> tuple[list[_Entry], list[Row]]:
    """The entries without rewrites that hold an identifier, and rows for quarantine, which never tell it.

    A label of several replies counts for what else it says; one of a rewrite task says nothing else, so it is judged as
    unsound, and an earlier one counts.
    """
    characters = {task["card"]["name"] for task in tasks.values()}
    said = identifiers_said(map(_rewrite_of, entries), privacy, characters)
    kept, aside = [], []
    for entry in entries:
        found = said.get(_rewrite_of(entry))
        if found is not None:
            problem = Problem("identifier", f"rewrite: holds an identifier ({found})")
            if tasks[entry.task_id]["kind"] == "rewrite":
                entry = replace(entry, problem=problem)
            elif entry.label is not None:
                aside.append(_quarantined(entry, problem))
                entry = replace(entry, label={**entry.label, "rewrite": None})
        kept.append(entry)
    return kept, aside


def _newest(entries: Sequence[_Entry]) -> dict[tuple[str, str], _Entry]:
    """The sound label that counts, by task and annotator, or the skip that took it back.

    A skip is a decision, so a newer one counts; a draft or a broken label says nothing of an earlier sound one.
    """
    found: dict[tuple[str, str], _Entry] = {}
    for entry in entries:
        key = (entry.task_id, entry.annotator)
        if entry.problem is None and (key not in found or entry.updated > found[key].updated):
            found[key] = entry
    for entry in entries:
        key = (entry.task_id, entry.annotator)
        skipped = entry.problem is not None and entry.problem.rule == "cancelled"
        if skipped and key in found and entry.updated > found[key].updated:
            found[key] = entry
    return found


def _quarantined(entry: _Entry, problem: Problem) -> Row:
    return {
        "file": entry.file,
        "place": entry.place,
        "task_id": entry.task_id,
        "annotator": entry.annotator,
        "rule": problem.rule,
        "detail": problem.detail,
    }


def message_of(row: Mapping[str, Any]) -> str:
    """A quarantine row as one line: ``file:place: what is wrong``."""
    place = row["place"].removeprefix("line ")
    return f"{row['file']}:{place}: {row['detail']}"


def _entries(name: str, path: Path, tasks: Mapping[str, Row | Mapping[str, Any]]) -> Iterator[_Entry | None]:
    if path.suffix == ".jsonl":
        yield from _own_format(name, path, tasks)
        return
    document = read_json(path)
    if not isinstance(document, list):
        raise AnnotationError(
            f"{name}: expected Label Studio's export, a JSON list (format JSON or JSON_MIN)"
        )
    for number, row in enumerate(document):
        place = f"entry {number}"
        if not isinstance(row, dict):
            raise AnnotationError(f"{name}: {place} is not an object")
        if isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list):
            yield from _exported(name, place, row, tasks)
        elif "annotation_id" in row or "annotator" in row:
            yield _exported_min(name, place, row, tasks)
        else:
            raise AnnotationError(f"{name}: {place} is neither of Label Studio's format JSON nor of JSON_MIN")


def _own_format(name: str, path: Path, tasks: Mapping[str, Any]) -> Iterator[_Entry]:
    for number, row in read_numbered(path):
        place, problem, label = f"line {number}", None, None
        if isinstance(row.get("annotator"), str):
            row = {**row, "annotator": annotator_of(row["annotator"])}
        try:
            label = Label.model_validate(row)
            problem = problem_of(label, tasks.get(label.task_id))
        except ValidationError as error:
            first = error.errors()[0]
            problem = Problem("malformed", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        yield _Entry(
            file=name,
            place=place,
            task_id=str(row.get("task_id")),
            annotator=str(row.get("annotator")),
            updated="",
            label=None if label is None else label.model_dump(),
            problem=problem,
        )


def annotator_of(completed_by: Any) -> str:
    """An annotator's id: of format JSON a number, or an object with one; of JSON_MIN a number or an e-mail address.

    An address is an identifier, which may not leave with the labels: a hash of it stands in its place, the same
    however the address is capitalised.
    """
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("id", completed_by.get("email"))
    name = "" if completed_by is None else str(completed_by)
    return f"a-{short_id(name.strip().casefold())}" if "@" in name else name


def _exported(name: str, place: str, row: Row, tasks: Mapping[str, Any]) -> Iterator[_Entry | None]:
    """The annotations of one task of format JSON; its drafts are half-done ones."""
    drafts = row.get("drafts") if isinstance(row.get("drafts"), list) else []
    if not row["annotations"] and not drafts:
        yield None
    work = [(item, False) for item in row["annotations"]] + [(item, True) for item in drafts or ()]
    for annotation, draft in work:
        if not isinstance(annotation, dict):  # ids alone, as some exports list drafts
            annotation = {}
        who = annotator_of(annotation.get("completed_by", annotation.get("user")))
        where = f"{place}, {'draft' if draft else 'annotation'} {annotation.get('id')}"

        def values(annotation: Row = annotation) -> dict[str, list[str]]:
            return values_of_result(annotation.get("result") or [])

        problem = None
        if draft:
            problem = Problem("draft", "half-done: a draft that was not submitted")
        elif annotation.get("was_cancelled"):
            problem = Problem("cancelled", "the annotator skipped this task")
        yield _judged(name, where, row["data"], who, annotation, tasks, values, problem)


def _exported_min(name: str, place: str, row: Row, tasks: Mapping[str, Any]) -> _Entry | None:
    """One record of format JSON_MIN; a task that nobody annotated has no ``annotation_id``."""
    if row.get("annotation_id") is None:
        return None
    task = tasks.get(str(row.get("task_id")))
    known = set(task_data(task)) if task else set()
    data = {key: value for key, value in row.items() if key in known} if task else row
    where = f"{place}, annotation {row['annotation_id']}"
    who = annotator_of(row.get("annotator"))
    return _judged(name, where, data, who, row, tasks, lambda: values_of_record(row, data), None)


def _judged(
    name: str,
    place: str,
    data: Mapping[str, Any],
    annotator: str,
    annotation: Mapping[str, Any],
    tasks: Mapping[str, Any],
    values: Any,
    problem: Problem | None,
) -> _Entry:
    task = tasks.get(str(data.get("task_id")))
    label = None
    if problem is None:
        problem = _data_problem(data, task)
    if problem is None and task is not None:
        try:
            seconds = annotation.get("lead_time")
            entered = label_of(values(), task, annotator)
            entered["seconds"] = float(seconds) if isinstance(seconds, int | float) else None
            made = Label.model_validate(entered)
            problem, label = problem_of(made, task), made.model_dump()
        except EntryError as error:
            problem = error.problem
    return _Entry(
        file=name,
        place=place,
        task_id=str(data.get("task_id")),
        annotator=annotator,
        updated=str(annotation.get("updated_at") or annotation.get("created_at") or ""),
        label=label,
        problem=problem,
    )


def _data_problem(data: Mapping[str, Any], task: Mapping[str, Any] | None) -> Problem | None:
    """Whether the exported task is the one that was handed out."""
    if task is None:
        return Problem("unknown_task", f"task_id {data.get('task_id')} is not in the batch")
    given = task_data(task)
    if data.get("interface") != given["interface"]:
        return Problem(
            "interface_version",
            f"made with interface {data.get('interface')}, this batch has {given['interface']}",
        )
    changed = sorted(key for key, value in given.items() if data.get(key) != value)
    if changed:
        return Problem("text_changed", f"{changed[0]} is not the text that was handed out")
    return None


def strict(reading: Reading) -> list[Row]:
    """The labels of a reading in which nothing may be wrong.

    Raises:
        AnnotationError: something is (the first is named), or there is no label.
    """
    # The detector takes some numbers for identifiers, so that one is no fault of whoever labels.
    if faults := [row for row in reading.quarantined if row["rule"] != "identifier"]:
        raise AnnotationError(message_of(faults[0]))
    return reading.labels
