"""What ``flywheel forget`` does about the tasks that annotators hold."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flywheel_tasks.cli.forget_report import show_table
from flywheel_tasks.cli.whom import Who
from flywheel_tasks.settings import Label


class Held(NamedTuple):
    """Tasks about users, and what became of them in Label Studio.

    Attributes:
        task_ids: of them.
        deleted: how many of them were deleted, by project; None: Label Studio was not asked.
        problem: why it still holds them, if it does.
    """

    task_ids: Sequence[str]
    deleted: Mapping[str, int] | None = None
    problem: str | None = None


def delete_in_label_studio(settings: Label, task_ids: Sequence[str], dry_run: bool) -> Held:
    """Delete users' tasks there, if people label there.

    Must come before delivered labels are looked through, for whoever waits for labels may fetch them at any moment. A
    server that cannot be reached stops nothing.

    Args:
        settings: ``label`` of params.yaml.
        task_ids: of the users.
        dry_run: only count them.
    """
    from flywheel_tasks.annotation.round_trip import delete_tasks
    from flywheel_tasks.annotation.studio import Studio, StudioError

    if settings.annotator != "label_studio" or not task_ids:
        return Held(task_ids)
    try:
        with Studio(settings.label_studio) as studio:
            return Held(task_ids, delete_tasks(settings.label_studio, studio, task_ids, dry_run))
    except StudioError as error:
        return Held(task_ids, problem=str(error))


def show_tasks(held: Held, settings: Label, who: Who, dry_run: bool) -> None:
    """Name the users' tasks, and what was deleted of them.

    Args:
        held: of :func:`delete_in_label_studio`.
        settings: ``label`` of params.yaml.
        who: the users.
        dry_run: whether nothing was changed.
    """
    if settings.annotator == "simulated":
        return
    rows = [(task,) for task in held.task_ids]
    show_table(f"Tasks about {who.them} that annotators may hold", ("task_id",), rows, "none")
    if held.deleted is not None:
        done = "would be deleted" if dry_run else "deleted"
        title = f"Tasks {done} in projects called {settings.label_studio.project!r} of Label Studio"
        shown = [(place, str(count)) for place, count in held.deleted.items()]
        show_table(title, ("project", "tasks"), shown, "none of them is there")
