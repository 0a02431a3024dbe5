"""A launched generation is closed: it is not made again, for no second test of it could start."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flywheel_tasks.pipeline import lineage, runner
from flywheel_tasks.pipeline.generation_ids import INPUTS, GenerationError
from flywheel_tasks.pipeline.graph import load_graph, project_sources
from flywheel_tasks.pipeline.params_file import FILE
from flywheel_tasks.storage.experiment_records import Experiment, ModelRef
from flywheel_tasks.storage.fast_yaml import load_yaml

_NEXT = "flywheel generation next"
_MOST = 8  # names in a message


def refuse_over(test: Experiment) -> None:
    """Refuse a generation whose test is over.

    Raises:
        GenerationError: it is.
    """
    if test.status != "running":
        raise GenerationError(
            f"{test.plan.generation} was launched, and its test is over ({test.status}): {_NEXT} opens another one"
        )


def refuse_changes(root: Path, launched: ModelRef) -> None:
    """Refuse to go on with a launched generation where DVC would run a stage of it again.

    Only while ``dvc.lock`` is that of the launch: what else ran here since, DVC may restore the generation after.

    Args:
        root: the workspace; its inputs are the generation's.
        launched: the generation's model, as the registry has it.

    Raises:
        GenerationError: a setting, a file of the project or an input is another than at the launch.
        StageFailedError: DVC cannot tell.
    """
    if not (root / "dvc.lock").exists() or lineage.data_version(root) != launched.data_version:
        return
    if changed := changes(root):
        more = f" and {len(changed) - _MOST} more" if len(changed) > _MOST else ""
        raise GenerationError(
            f"{launched.generation} is launched and closed, but would be made again, for these have changed since: "
            f"{', '.join(changed[:_MOST])}{more}. {_NEXT} opens another one; or set them back"
        )


def changes(root: Path) -> list[str]:
    """What is not as when the stages up to the launch last ran: settings, then files of the project and inputs.

    What stages made does not count: DVC restores it.

    Args:
        root: the workspace.
    """
    settings = load_yaml((root / FILE).read_text(encoding="utf-8"))
    read = {*project_sources(load_graph(root / "dvc.yaml")), INPUTS}
    names, files = set[str](), set[str]()
    for stage, found in runner.status(root, "launch").items():
        for path, what in _changed_deps(found).items():
            if path == FILE:
                before = lineage.stage_settings(root, stage)
                for section in what:
                    names.update(_differing(before.get(section), settings.get(section), section))
            elif path.split("/", 1)[0] in read:
                files.add(path)
        if "changed command" in found:
            files.add(f"dvc.yaml (stage {stage})")
    return [*sorted(names), *sorted(files)]


def _changed_deps(found: list[Any]) -> Mapping[str, Any]:
    """What a stage reads that has changed, of what DVC says of the stage."""
    return next((item["changed deps"] for item in found if "changed deps" in item), {})


def _differing(before: Any, now: Any, name: str) -> list[str]:
    """Dotted names of the settings below one that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [each for key in keys for each in _differing(before.get(key), now.get(key), f"{name}.{key}")]
    return [] if before == now else [name]
