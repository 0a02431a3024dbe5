"""From the open generation's batch to annotators and back: export to files, push to and pull from Label Studio."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.annotation.delivery import PIN, location_of, pin_labels, read_pinned
from flywheel_tasks.annotation.interface import interface_id, interface_of
from flywheel_tasks.annotation.label_studio import task_data
from flywheel_tasks.annotation.progress import done_share, progress
from flywheel_tasks.annotation.reading import Reading
from flywheel_tasks.annotation.studio import Studio, StudioError, UnsureError, same_interface
from flywheel_tasks.annotation.tasks import AnnotationError
from flywheel_tasks.settings import Label, LabelStudio, Privacy, load_settings
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.documents import read_json, read_jsonl
from flywheel_tasks.storage.objects import Exists, open_store

BATCH = "data/annotation/batch.jsonl"
_LOOKS = 5  # at a project, while requests get no answer
Row = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Tasks that go into one Label Studio project: they share an interface and the number of reviews.

    Attributes:
        name: interface and reviews, such as ``comparison-3-0f3a52e09b1c-x1``.
        interface: the labelling configuration.
        reviews: annotations for each task.
        tasks: rows of the batch.
    """

    name: str
    interface: str
    reviews: int
    tasks: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Round:
    """The open generation's batch.

    Attributes:
        root: the workspace.
        generation: its id.
        settings: ``label`` of params.yaml.
        privacy: ``privacy`` of params.yaml.
        tasks: rows of the batch.
    """

    root: Path
    generation: str
    settings: Label
    privacy: Privacy
    tasks: tuple[Row, ...]

    @property
    def location(self) -> str:
        """Where this generation's labels are delivered."""
        return location_of(self.settings, self.generation)


def open_round(root: Path) -> Round:
    """The open generation's batch.

    Raises:
        AnnotationError: no generation is open, or its batch is not made yet.
    """
    if not (root / "inputs/generation.json").exists():
        raise AnnotationError(f"{root}: no generation is open: flywheel generation open")
    if not (root / BATCH).exists():
        raise AnnotationError(f"{root / BATCH}: is not made yet: dvc repro annotation_batch")
    generation = read_json(root / "inputs/generation.json")["generation"]
    settings = load_settings(root / "params.yaml")
    return Round(root, generation, settings.label, settings.privacy, tuple(read_jsonl(root / BATCH)))


def groups(tasks: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Tasks by interface and reviews, sorted by name."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for task in tasks:
        found.setdefault(f"{interface_id(task)}-x{task['reviews']}", []).append(task)
    return [
        Group(name, interface_of(rows[0]), rows[0]["reviews"], tuple(rows))
        for name, rows in sorted(found.items())
    ]


def export(tasks: Sequence[Mapping[str, Any]], folder: Path) -> list[Group]:
    """Write ``<group>.json`` (Label Studio's import format) and ``<group>.xml`` (the interface) for each group.

    Args:
        tasks: rows of the batch.
        folder: made if it is not there.
    """
    made = groups(tasks)
    for group in made:
        rows = [{"data": task_data(task)} for task in group.tasks]
        with atomic_path(folder / f"{group.name}.json") as temporary:
            temporary.write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
        with atomic_path(folder / f"{group.name}.xml") as temporary:
            temporary.write_text(group.interface, encoding="utf-8")
    return made


def title_of(work: Round, group: Group) -> str:
    """A project's title; Label Studio allows 50 characters."""
    return f"{_begin(work.settings.label_studio)}{work.generation} {group.name}"


def _begin(settings: LabelStudio) -> str:
    """How the titles of all generations' projects begin."""
    return f"{settings.project} "


def push(work: Round, studio: Studio) -> list[Row]:
    """Create the projects that are missing, and import the tasks that they miss; a second push adds nothing.

    Returns:
        for each group title, project id, tasks and how many of them were added.

    Raises:
        StudioError: the server refuses, or somebody changed a project's labelling interface.
    """
    return [_handed_out(work, studio, group) for group in groups(work.tasks)]


def _handed_out(work: Round, studio: Studio, group: Group) -> Row:
    """Send what a project misses; after a request without an answer look again, and send what it misses then."""
    problem: UnsureError | None = None
    for attempt in range(_LOOKS):
        if attempt:
            studio.pause(attempt)
        try:
            return _completed(work, studio, group)
        except UnsureError as error:
            problem = error
    raise StudioError(f"{problem}, {_LOOKS} attempts")


def _completed(work: Round, studio: Studio, group: Group) -> Row:
    title = title_of(work, group)
    project = studio.project(title)
    if project is None:
        description = (
            f"Generation {work.generation}: {len(group.tasks)} tasks, {group.reviews} review(s) each"
        )
        project = studio.create_project(title, group.interface, group.reviews, description)
    elif not same_interface(project["label_config"], group.interface):
        raise StudioError(f"{studio.url}: the labelling interface of project {title!r} was changed")
    present = _each_once(studio, project["id"])
    missing = [task_data(task) for task in group.tasks if task["task_id"] not in present]
    studio.import_tasks(project["id"], missing)
    return {"title": title, "project": project["id"], "tasks": len(group.tasks), "added": len(missing)}


def _each_once(studio: Studio, project: int) -> set[Any]:
    """The ids of our tasks in a project; of one that arrived twice, copies that nobody has labelled are deleted."""
    copies: dict[Any, list[Row]] = defaultdict(list)
    for row in studio.tasks(project):
        copies[row["data"].get("task_id")].append(row)
    for rows in (rows for task_id, rows in copies.items() if task_id):
        spare = [row for row in rows if row.get("total_annotations") == 0]
        for row in spare[1:] if len(spare) == len(rows) else spare:
            studio.delete_task(row["id"])
    return set(copies)


def pull(work: Round, studio: Studio) -> list[str]:
    """Fetch the annotations of every project of the batch, put them where labels are delivered, and pin them.

    Returns:
        names of the files.

    Raises:
        StudioError: a project is missing, or the server refuses.
        AnnotationError: the place of delivery is a single file.
    """
    names = []
    for group in groups(work.tasks):
        title = title_of(work, group)
        project = studio.project(title)
        if project is None:
            raise StudioError(f"{studio.url}: there is no project {title!r}: flywheel annotation push")
        names.append(_deliver(work, f"label-studio-{project['id']}", studio.export(project["id"])))
    pin_labels(work.settings, work.generation, work.root)
    return names


def delete_tasks(
    settings: LabelStudio, studio: Studio, task_ids: Collection[str], dry_run: bool = False
) -> dict[str, int]:
    """Delete tasks, with what people entered for them, from the projects whose titles begin as those of today do.

    Args:
        settings: ``label.label_studio`` of params.yaml.
        studio: the server.
        task_ids: ours, as in ``batch.jsonl``; one may be in several projects.
        dry_run: only count them.

    Returns:
        how many were deleted, by the project's address, where there were any.

    Raises:
        StudioError: the server refuses; the same call goes on with what is left.
    """
    wanted, deleted = set(task_ids), {}
    for project in studio.projects(_begin(settings)) if wanted else ():
        # Listed to the end first: pages move up when a task goes.
        numbers = [row["id"] for row in studio.tasks(project["id"]) if row["data"].get("task_id") in wanted]
        for number in () if dry_run else numbers:
            studio.delete_task(number)
        if numbers:
            deleted[f"{studio.url}/projects/{project['id']} {project['title']}"] = len(numbers)
    return deleted


def _deliver(work: Round, name: str, data: bytes) -> str:
    """Write an export under a name that tells its contents, and remove the project's older ones.

    An export is complete, so what it lacks was deleted by people. The newest one is there first: whoever is killed
    between the two leaves one export too many, and the next pull removes it.
    """
    folder = work.root / work.location
    key = f"{name}-{bytes_digest(data).removeprefix('sha256:')[:12]}.json"
    if "://" not in work.location and folder.is_file():
        raise AnnotationError(f"{work.location}: is a file; label.location must be a folder to pull into")
    store = open_store(work.location, work.root)
    with suppress(Exists):  # the same export again
        store.create(key, data)
    for older in store.list(f"{name}-"):
        if older != key and older.endswith(".json"):
            store.delete(older)
    return key


def delivered(work: Round) -> Reading:
    """Pin what is delivered by now, and read it."""
    pin_labels(work.settings, work.generation, work.root)
    return read_pinned(work.root / PIN, work.root, work.tasks, work.privacy)


def status(work: Round) -> Row:
    """How far the labelling has come, by what is delivered.

    Returns:
        tasks and reviews by purpose, labels read, used and quarantined, share done and whether that is enough.
    """
    reading = delivered(work)
    share = done_share(work.tasks, reading.labels)
    return {
        "generation": work.generation,
        "location": work.location,
        "purposes": progress(work.tasks, reading.labels),
        "read": reading.read,
        "labels": len(reading.labels),
        "quarantined": reading.quarantined,
        "done": share,
        "enough": bool(reading.labels) and share >= work.settings.min_done,
    }


def labels_ready(root: Path) -> Row:
    """What a waiting generation does now and then: hand out what is missing, fetch what is done, see if it is enough.

    With files it only looks at what is delivered.

    Returns:
        see :func:`status`.
    """
    work = open_round(root)
    if work.settings.annotator == "label_studio":
        with Studio(work.settings.label_studio) as studio:
            push(work, studio)
            pull(work, studio)
    return status(work)
