"""Runs a campaign: generation after generation, each by the ordinary pipeline, until enough were launched.

Every step can be repeated without harm: what it needs to know it asks the registry, the logs' marker and the files of
``results``. So a campaign that was killed anywhere goes on where it stopped.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flywheel_tasks.campaign import online
from flywheel_tasks.campaign.clock import Clock, words_of
from flywheel_tasks.campaign.folder import CampaignError, Folder, write_settings
from flywheel_tasks.campaign.records import is_over, launches, records
from flywheel_tasks.campaign.space import made, prune
from flywheel_tasks.online.approval import POLICY, VERDICT, registry_of
from flywheel_tasks.online.promotion import why_blocked
from flywheel_tasks.pipeline import runner
from flywheel_tasks.pipeline.champion_files import ensure_champion
from flywheel_tasks.pipeline.generation_ids import number_of
from flywheel_tasks.pipeline.local import run_generation
from flywheel_tasks.pipeline.process import die_with_parent
from flywheel_tasks.settings import Campaign
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json, write_json

Say = Callable[[str], None]


def _lock(folder: Folder) -> Path:
    return folder.home / ".lock"


@contextmanager
def _alone(folder: Folder) -> Iterator[None]:
    """One process a campaign; the kernel lets go of the lock when its owner dies."""
    try:
        with FileLock(_lock(folder), timeout=1):  # a look at whether it runs holds it for an instant
            yield
    except Timeout:
        raise CampaignError(f"{folder.home}: another process runs this campaign") from None


def is_running(folder: Folder) -> bool:
    """Whether a process runs this campaign now."""
    if not _lock(folder).exists():
        return False
    try:
        with FileLock(_lock(folder), timeout=0):
            return False
    except Timeout:
        return True


def run(folder: Folder, say: Say, after: Callable[[], object] = lambda: None) -> None:
    """Run a campaign to its end, from wherever it is.

    Args:
        folder: of a campaign that :func:`~flywheel_tasks.campaign.folder.create` made.
        say: told what happens, a line each.
        after: called after each generation, for the table.

    Raises:
        CampaignError: another process runs it, or a generation ended in a way that a campaign cannot have.
        StageFailedError: a stage failed; running again goes on from there.
    """
    plan = Campaign.model_validate(read_json(folder.plan))
    with _alone(folder):
        # A kill may have come right after the last record.
        if (found := records(folder)) and is_over(plan, found):
            folder.now.unlink(missing_ok=True)
            _free(folder, plan, found[-1]["generation"], say)
        while not is_over(plan, found := records(folder)):
            clock = Clock(folder, plan, found)
            name = f"g{len(found) + 1:04d}"
            write_json(_generation(folder, plan, name, clock, say), folder.generation(name))
            folder.now.unlink(missing_ok=True)
            after()
            _free(folder, plan, name, say)
        after()
    say(f"The campaign is over: {launches(found)} launches in {len(found)} generations.")


def _free(folder: Folder, plan: Campaign, name: str, say: Say) -> None:
    """Free the disk of models that nothing will read, and say how much is left."""
    found = records(folder)
    freed = prune(folder, plan, found, over=is_over(plan, found))
    left = shutil.disk_usage(folder.home).free
    say(
        f"[{name}] {freed / 1e9:.1f} GB of models removed that nothing will read again; {left / 1e9:.0f} GB free"
    )


def _generation(folder: Folder, plan: Campaign, name: str, clock: Clock, say: Say) -> dict[str, Any]:
    """One generation from its settings to its record."""
    root, hard = folder.workspace, number_of(name) == plan.overoptimise_at
    write_settings(folder, plan.overlay, plan.overoptimise if hard else {})

    def step(title: str) -> Any:
        note = ", deliberately over-optimised" if hard else ""
        left = clock.left(name)
        say(
            f"[{name}{note}; {clock.launches} of {plan.launches} launches done; "
            f"over at about {datetime.now(UTC) + timedelta(seconds=left):%H:%M} UTC, {words_of(left)} left] {title}"
        )
        return clock.step(name, title)

    with step("logs, data, training, evaluation, gate"):
        champion = ensure_champion(root)
        tested = registry_of(root).state().experiments.get(name)
        # A kill right after the start of the test may have left its records unkept: the launch is gone through again.
        if tested is None or tested.status == "running":
            outcome = run_generation(root, generation=name, seed=None, say=say)
            if outcome.status not in ("launched", "blocked"):
                raise CampaignError(f"{name} is {outcome.status}: a campaign has nobody to wait for")
    control = tested.plan.arms[0] if tested else None
    record = describe(root, name) | {
        "over_optimised": hard,
        "champion": control.model if control else champion.generation,
        "champion_digest": control.digest if control else champion.digest,
    }
    for digest, model in (
        (record["champion_digest"], "inputs/champion"),
        (record["candidate_digest"], POLICY),
    ):
        if not folder.panel(digest).exists():
            with step(f"the panel talks to {model}"):
                measure(folder, root / model, folder.panel(digest), plan.panel_users)
    if record["verdict"] == "block":
        record |= {"status": "blocked", "decision": "declined", "why": why_blocked(record)}
        if hard or plan.counterfactuals:
            with step("what would have happened: an A/B test outside the registry"):
                record["counterfactual"] = _kept(online.counterfactual(root, folder.counterfactual(name)))
    else:
        with step("A/B test with simulated users, analysis, answer by policy"):
            record |= {"status": "launched"} | _tested(root, name, plan)
    record |= {"seconds": clock.of(name), "resumed": clock.resumed(name)}
    say(f"[{name}] {record['decision']}: {record['why']}")
    return record


def _tested(root: Path, name: str, plan: Campaign) -> dict[str, Any]:
    """The test of a launched generation and what became of it; one that has its answer is only read."""
    registry = registry_of(root)
    experiment = registry.state().experiments[name]
    if experiment.status == "running":
        analysis = online.run_test(root, name)
        decision, why = online.answer(root, name, analysis, plan.inconclusive)
    else:
        analysis = read_json(root / "launch/analysis.json")
        decision, why = online.answer_of(analysis, plan.inconclusive)
        if decision != experiment.status or analysis["generation"] != name:
            raise CampaignError(f"{name} is {experiment.status}, but launch/analysis.json says otherwise")
        # A kill in between may have left no model card; all else is done, and is not done again.
        if decision == "promoted":
            online.promote(root, name, by=online.BY)
        else:
            online.rollback(root, name, why, by=online.BY)
    approvals = [a for a in registry.state().approvals if a.generation == name]
    given = [{"kind": a.kind, "decision": a.decision, "by": a.by} for a in approvals]
    return {"analysis": _kept(analysis), "decision": decision, "why": why, "approvals": given}


def _kept(analysis: Mapping[str, Any]) -> dict[str, Any]:
    """What a record keeps of an analysis; all of it is in the registry."""
    names = ("result", "reasons", "advice", "advice_reasons", "rule", "users", "metrics")
    return {name: analysis[name] for name in names}


def describe(root: Path, name: str) -> dict[str, Any]:
    """What the workspace's metrics say of a generation: verdict, win rates, production metrics, style, counts."""
    verdict = read_json(root / VERDICT)
    if verdict["generation"] != name:
        raise CampaignError(f"{root / VERDICT} is of {verdict['generation']}, not of {name}")
    metrics = {path.stem: read_json(path) for path in (root / "metrics").glob("*.json")}
    return {
        "generation": name,
        "verdict": verdict["verdict"],
        "reasons": [reason for reason in verdict["reasons"] if reason["outcome"] != "pass"],
        "candidate_digest": tree_digest(root / POLICY),
        "win_rate": metrics["evaluate"]["win_rate"],
        "production": metrics["evaluate"]["production"],
        "rl": metrics["rl"]["checkpoint"],
        "reward_accuracy": metrics["train_pointwise_rm"]["heldout"]["accuracy"],
        "pairs": metrics["annotate"]["pairs_total"],
        "rewrites": metrics["annotate"]["rewrites"],
        "models": made(root),
    }


def measure(folder: Folder, model: Path, out: Path, users: int) -> None:
    """Let the panel of simulated users talk to a model, in a process of its own: nothing here knows them.

    Raises:
        CampaignError: it failed.
    """
    command = [sys.executable, "-m", "flywheel_tasks.cli", "simulate", "panel", "--model", str(model)]
    command += ["--out", str(out), "--users", str(users), "--root", str(folder.workspace)]
    done = subprocess.run(
        command, cwd=folder.workspace, env=runner.environment(), check=False, preexec_fn=die_with_parent
    )
    if done.returncode:
        raise CampaignError(f"flywheel simulate panel ended with {done.returncode}")


def environment(folder: Folder) -> Mapping[str, str]:
    """The environment in which the campaign's own copy of the code runs, and no settings of a user's reach it."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return kept | {"PYTHONPATH": str(folder.workspace.resolve())}


def status(folder: Folder) -> dict[str, Any]:
    """How far a campaign is: whether it runs, its step (or the one it stopped in), its generations, the time left."""
    plan = Campaign.model_validate(read_json(folder.plan))
    found = records(folder)
    now = read_json(folder.now) if folder.now.exists() else None
    name = now["generation"] if now else f"g{len(found) + 1:04d}"
    over = is_over(plan, found)
    return {
        "over": over,
        "running": is_running(folder),
        "launches": launches(found),
        "wanted": plan.launches,
        "now": now,
        "generations": found,
        "seconds_left": 0.0 if over else Clock(folder, plan, found).left(name),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
