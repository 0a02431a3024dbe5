"""One generation on this machine, from logs to a running A/B test: what ``make generation`` does."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

from flywheel_tasks.online.approval import LAUNCHABLE, made_from_the_champion
from flywheel_tasks.pipeline import runner
from flywheel_tasks.pipeline.champion_files import ensure_champion, place_champion
from flywheel_tasks.pipeline.closed import refuse_changes, refuse_over
from flywheel_tasks.pipeline.generation import open_generation
from flywheel_tasks.pipeline.generation_ids import INPUTS, current, leave, next_id, number_of, still_holds
from flywheel_tasks.pipeline.generation_lock import undisturbed
from flywheel_tasks.pipeline.process import die_with_parent
from flywheel_tasks.pipeline.trained_on import record
from flywheel_tasks.pipeline.whose_logs import MARKER, refuse_mixing
from flywheel_tasks.settings import Settings, load_settings
from flywheel_tasks.storage.digests import file_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry import open_registry
from flywheel_tasks.storage.registry_state import Approval

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How a local run ended.

    Attributes:
        generation: its id.
        status: launched; blocked by the gate; declined by whoever was asked; waiting for a person's approval; or
            labelling, while people label.
        verdict: the gate's verdict file; empty while people label.
        experiment: the running experiment's id, when launched.
        answer: the no, or the silence that was taken for one, when declined.
        labels: how far people have come, while they label (:func:`flywheel_tasks.annotation.round_trip.status`).
    """

    generation: str
    status: Literal["launched", "blocked", "declined", "waiting", "labelling"]
    verdict: dict[str, Any]
    experiment: str | None = None
    answer: Approval | None = None
    labels: dict[str, Any] | None = None


def week_of(settings: Settings, generation: str) -> date:
    """First day of the simulated week whose traffic a generation learns from."""
    first = date.fromisoformat(settings.simulation.start_date)
    return first + timedelta(days=settings.simulation.days * (number_of(generation) - 1))


def _is_simulated(location: Path, start: date) -> bool:
    """Whether the simulation wrote all partitions of a week (its marker names them before it writes them)."""
    marker = location / MARKER
    run = read_json(marker)["runs"].get(f"traffic-{start}") if marker.exists() else None
    return run is not None and all((location / path).exists() for path in run["partitions"])


def simulate_traffic(root: Path, generation: str, say: Say) -> None:
    """Let the demo's simulated users write the generation's week of logs, talking to the champion; once.

    Runs as a process of its own: the simulation is unknown to the rest of the library.

    Raises:
        BusyError: DVC is at work here, perhaps on another generation.
        GenerationError: real users would be mixed with simulated ones.
    """
    settings = load_settings(root / "params.yaml")
    refuse_mixing(root, open_registry(settings.registry.location, root), generation, settings)
    start = week_of(settings, generation)
    location = root / settings.logs.location
    if _is_simulated(location, start):
        return
    champion = ensure_champion(root)
    with undisturbed(root, generation):
        leave(root, generation)
        place_champion(root, champion)
    say(f"Simulated users talk to the champion ({champion.generation}) for the week of {start} ...")
    command = [sys.executable, "-m", "flywheel_tasks.cli", "simulate", "traffic"]
    command += ["--model", str(root / INPUTS / "champion"), "--policy", champion.generation]
    command += ["--out", str(location), "--start-date", start.isoformat(), "--root", str(root)]
    subprocess.run(command, cwd=root, check=True, env=runner.environment(), preexec_fn=die_with_parent)


def _policy_decides(root: Path, settings: Settings) -> bool:
    """Whether no person is asked; whose logs they are says the generation, for the settings may have changed since."""
    here, by = current(root), settings.approval.local
    simulated = here is not None and here.get("logs_source") == "simulated"
    return by == "policy" or (by == "policy_if_simulated" and simulated)


def _answer(root: Path, verdict: dict[str, Any]) -> Approval | None:
    """The answer to the launch of this model on this verdict: a person's, else that of ``approval.local``, if any."""
    settings = load_settings(root / "params.yaml")
    registry = open_registry(settings.registry.location, root)
    generation, shown = (
        verdict["generation"],
        (verdict["model_digest"], file_digest(root / "gate/verdict.json")),
    )
    found = registry.state().approval("launch", generation)
    if found is not None and found.shown == shown:
        return found
    if not _policy_decides(root, settings):
        return None
    made_from_the_champion(root, generation)
    return registry.record_approval(
        "launch",
        generation=generation,
        model_digest=shown[0],
        verdict_digest=shown[1],
        decision="approve",
        by="policy: approval.local, a gate that does not block",
    ).approval("launch", generation)


def _open(root: Path, generation: str | None, seed: int | None, say: Say) -> tuple[str, bool]:
    """Open the generation that is meant, its simulated week of logs written; its id, and whether it is launched."""
    settings = load_settings(root / "params.yaml")
    registry = open_registry(settings.registry.location, root)
    here = current(root)
    name = generation or (here["generation"] if here else next_id(root, registry))
    number_of(name)
    state = registry.state()
    if (test := state.tested(name)) is not None:
        refuse_over(test)
    if settings.logs.source == "simulated" and name not in registry.generations():
        simulate_traffic(root, name, say)
    open_generation(root, generation=name, seed=seed)
    if test is not None:
        refuse_changes(root, state.candidates[name])
    return name, test is not None


def run_generation(root: Path, *, generation: str | None, seed: int | None, say: Say) -> Outcome:
    """Bring one generation as far as it can go without a person.

    Args:
        root: the workspace.
        generation: its id; by default the one in ``inputs/``, or the next.
        seed: written into params.yaml first.
        say: told what happens, a line each.

    Raises:
        BusyError: DVC is at work here.
        GenerationError: it cannot be opened, or was launched and its test is over, or it would be made again; or
            another one was opened here meanwhile.
        StageFailedError: a stage failed; running again goes on from there.
    """
    name, launched = _open(root, generation, seed, say)
    say(f"Generation {name}: data, training, evaluation, gate (dvc repro gate)")
    if not launched and load_settings(root / "params.yaml").label.annotator != "simulated":
        runner.reproduce(root, "annotation_batch")
        from flywheel_tasks.annotation.round_trip import labels_ready

        labels = labels_ready(root)
        if not labels["enough"]:
            return Outcome(name, "labelling", {}, labels=labels)
        still_holds(root, name)
    runner.reproduce(root, "gate")
    record(root, name)
    verdict = read_json(root / "gate/verdict.json")
    if verdict["verdict"] not in LAUNCHABLE:
        from flywheel_tasks.online.promotion import decline_blocked

        decline_blocked(root, by="policy: a gate that blocks")
        return Outcome(name, "blocked", verdict)
    answer = _answer(root, verdict)
    if answer is None or answer.decision != "approve":
        return Outcome(name, "waiting" if answer is None else "declined", verdict, answer=answer)
    still_holds(root, name)
    runner.reproduce(root, "launch")
    from flywheel_tasks.online.launch import start

    experiment = start(root, by="flywheel generation run")
    return Outcome(name, "launched", verdict, experiment.plan.experiment)
