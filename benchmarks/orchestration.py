"""Wall time of a generation through ``dvc repro`` and through Airflow, against the sum of its stages' own times.

    python -m benchmarks.orchestration

The same small generation (tiny random models, every stage real) is made twice, in two fresh workspaces: once by
``dvc repro gate``, once by a started Airflow, from the trigger to the question that follows the gate. What is over the
sum is the price of orchestration: process starts and imports, hashing, locks, the push to the remote, scheduling.
"""

import tempfile
import time
from pathlib import Path

from flywheel_tasks.pipeline import generation, local, runner
from flywheel_tasks.storage.documents import read_json
from tests.conftest import PROJECT, build_tiny_models, build_workspace
from tests.dags.live import LiveAirflow
from tests.generation.small import make_repository, small_settings

_FIRST = "g0001"


def _stage_seconds(root: Path) -> dict[str, float]:
    """Seconds of each stage's own work, without its process's start."""
    timings = sorted((root / ".flywheel/timings").glob("*.json"))
    return {path.stem: float(read_json(path)["seconds"]) for path in timings if path.stem != "launch"}


def _workspace(folder: Path, models: Path) -> Path:
    """A workspace with logs and an opened generation, so that both ways start from the same."""
    root = make_repository(folder, build_workspace, small_settings(models))
    local.simulate_traffic(root, _FIRST, print)
    generation.open_generation(root, generation=_FIRST)
    return root


def _through_dvc(root: Path) -> float:
    started = time.monotonic()
    runner.reproduce(root, "gate")
    return time.monotonic() - started


def _through_airflow(root: Path, home: Path) -> float:
    with LiveAirflow.started(root, home) as airflow:
        airflow.ready()
        started = time.monotonic()
        run = airflow.trigger({"generation": _FIRST})
        airflow.question(run, "approve_launch", seconds=3600)
        return time.monotonic() - started


def _report(name: str, wall: float, stages: dict[str, float]) -> str:
    own = sum(stages.values())
    return f"{name:<12} {wall:9.1f} s {own:14.1f} s {wall / own:8.2f}   {(wall - own) / len(stages):6.1f} s"


def main() -> None:
    """Run both and print the comparison."""
    models = build_tiny_models(PROJECT)
    with tempfile.TemporaryDirectory() as folder:
        by_dvc = _workspace(Path(folder) / "dvc", models)
        dvc_wall = _through_dvc(by_dvc)
        by_airflow = _workspace(Path(folder) / "airflow", models)
        airflow_wall = _through_airflow(by_airflow, Path(folder) / "home")
        print(f"\n{'through':<12} {'wall':>11} {'sum of stages':>16} {'ratio':>8}   over, a stage")
        print(_report("dvc repro", dvc_wall, _stage_seconds(by_dvc)))
        print(_report("Airflow", airflow_wall, _stage_seconds(by_airflow)))


if __name__ == "__main__":
    main()
