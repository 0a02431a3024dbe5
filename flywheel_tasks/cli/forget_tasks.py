"""What ``flywheel forget`` does about the tasks that annotators hold."""

from collections.abc import Sequence

from flywheel_tasks.cli.forget_report import show_table
from flywheel_tasks.cli.whom import Who
from flywheel_tasks.settings import Label


def show_tasks(settings: Label, who: Who, task_ids: Sequence[str], dry_run: bool) -> str | None:
    """Name the users' tasks, and delete them in Label Studio, if people label there.

    A server that cannot be reached stops nothing: the rows are gone by now; the tasks are named, to be deleted later.

    Args:
        settings: ``label`` of params.yaml.
        who: the users.
        task_ids: of them.
        dry_run: delete nothing.

    Returns:
        why Label Studio still holds them; None: it does not, or nobody labels there.
    """
    from flywheel_tasks.annotation.round_trip import delete_tasks
    from flywheel_tasks.annotation.studio import Studio, StudioError

    if settings.annotator == "simulated":
        return None
    rows = [(task,) for task in task_ids]
    show_table(f"Tasks about {who.them} that annotators may hold", ("task_id",), rows, "none")
    if settings.annotator != "label_studio" or not task_ids:
        return None
    try:
        with Studio(settings.label_studio) as studio:
            deleted = delete_tasks(settings.label_studio, studio, task_ids, dry_run)
    except StudioError as error:
        return str(error)
    done = "would be deleted" if dry_run else "deleted"
    shown = [(title, str(count)) for title, count in deleted.items()]
    show_table(f"Tasks {done} in {settings.label_studio.url}", ("project", "tasks"), shown, "none")
    return None
