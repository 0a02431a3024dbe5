"""The online half of a campaign's generation: the simulated A/B test, its analysis, and the answer by policy.

Everything is the ordinary code of :mod:`flywheel_tasks.online`; only the answers are given by a policy, and recorded
as such.
"""

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from flywheel_tasks.online import simulated
from flywheel_tasks.online.analysis import analyse, analyse_population, look_at
from flywheel_tasks.online.approval import POLICY, VERDICT, record_answer, registry_of, request_of
from flywheel_tasks.online.event_source import rule_of
from flywheel_tasks.online.launch import make_plan
from flywheel_tasks.online.metrics import decisive
from flywheel_tasks.online.promotion import promote, rollback
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.digests import file_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.registry_state import Experiment
from flywheel_tasks.storage.simulated import MARKER

BY = "policy: campaign"
Answer = tuple[Literal["promoted", "rolled_back"], str]


def lifts(analysis: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Lift of each primary metric in percent, with its interval, by the estimate that decides."""
    rule = analysis["rule"]
    return {
        name: decisive(analysis["metrics"][name], rule["estimate"])["lift_percent"]
        for name in rule["primary"]
        if name in analysis["metrics"]
    }


def mean_lift(analysis: Mapping[str, Any]) -> float | None:
    """Mean of the primary lifts in percent; None where one is missing."""
    values = [lift["value"] for lift in lifts(analysis).values()]
    return None if not values or None in values else sum(values) / len(values)


def answer_of(analysis: Mapping[str, Any], inconclusive: Literal["promote_if_better", "roll_back"]) -> Answer:
    """What the policy answers to an analysis, and why.

    Args:
        analysis: the document of :func:`flywheel_tasks.online.analysis.analyse`.
        inconclusive: the setting of that name.
    """
    if analysis["result"] != "valid":
        return "rolled_back", "the test is invalid: " + "; ".join(analysis["reasons"])
    if analysis["advice"] == "promote":
        return "promoted", "the analysis advises it: " + "; ".join(analysis["advice_reasons"])
    if analysis["advice"] == "reject":
        return "rolled_back", "the analysis rejects it: " + "; ".join(analysis["advice_reasons"])
    mean = mean_lift(analysis)
    shown = "unknown" if mean is None else f"{mean:+.1f}%"
    if inconclusive == "promote_if_better" and mean is not None and mean > 0:
        return "promoted", f"inconclusive, but the mean of the primary lifts is {shown}"
    return "rolled_back", f"inconclusive, and the mean of the primary lifts is {shown}"


def run_test(root: Path, generation: str) -> dict[str, Any]:
    """Simulate the running test of a generation and analyse it; what is done is not done again.

    Args:
        root: the workspace.
        generation: whose test.

    Returns:
        the analysis.
    """
    location = root / load_settings(root / "params.yaml").logs.location
    if not is_written(location, f"ab-{generation}"):
        simulated.simulate_ab(root)
    return analyse(root, generation, by=BY)


def is_written(location: Path, run: str) -> bool:
    """Whether the simulation wrote all partitions of a run (its marker names them before it writes them)."""
    marker = location / MARKER
    found = read_json(marker)["runs"].get(run) if marker.exists() else None
    return found is not None and all((location / path).exists() for path in found["partitions"])


def answer(root: Path, generation: str, analysis: Mapping[str, Any], inconclusive: Any) -> Answer:
    """Give the policy's answer to a tested generation: promote, or roll back.

    Args:
        root: the workspace.
        generation: whose test.
        analysis: of its test.
        inconclusive: the setting of that name.
    """
    decision, why = answer_of(analysis, inconclusive)
    if analysis["result"] == "valid":
        found = registry_of(root).state().approval("promotion", generation)
        shown = request_of(root, "promotion", generation)
        if found is None or found.shown != (shown.model_digest, shown.evidence_digest):
            given: Literal["approve", "reject"] = "approve" if decision == "promoted" else "reject"
            record_answer(root, shown, decision=given, by=f"{BY}: {why}"[:200])
    if decision == "promoted":
        promote(root, generation, by=BY)
    else:
        rollback(root, generation, why, by=BY)
    return decision, why


def counterfactual(root: Path, folder: Path) -> dict[str, Any]:
    """Test the workspace's model as if it had been launched; neither the registry nor any log of its own knows.

    The logs so far are copied, so that the same past is there; simulated users talk to both arms; the same rule
    analyses. Nothing of it is promoted, and no generation reads it.

    Args:
        root: the workspace, with the model that the gate blocked.
        folder: where the copy of the logs and ``analysis.json`` go.

    Returns:
        the analysis, with ``counterfactual: true``.
    """
    logs = folder / "logs"
    if (folder / "analysis.json").exists():
        shutil.rmtree(logs, ignore_errors=True)  # which a kill right after the analysis has left
        found: dict[str, Any] = read_json(folder / "analysis.json")
        return found
    settings, verdict = load_settings(root / "params.yaml"), read_json(root / VERDICT)
    generation = read_json(root / "inputs/generation.json")
    plan = make_plan(generation, verdict, file_digest(root / VERDICT), settings.launch, rule_of(settings))
    plan = plan.model_copy(update={"experiment": f"{plan.experiment}-counterfactual"})
    if not is_written(logs, f"ab-{plan.experiment}"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(root / settings.logs.location, logs)
        write_json(plan.model_dump(mode="json"), folder / "plan.json")
        simulated.simulate(
            root,
            folder / "plan.json",
            logs,
            control=root / "inputs/champion",
            candidate=root / POLICY,
        )
    now = datetime.now(UTC)
    experiment = Experiment(
        plan=plan,
        status="running",
        started_at=now,
        ends_at=now + timedelta(minutes=plan.rule.duration_minutes),
        started_by=BY,
    )
    elsewhere = settings.model_copy(
        update={"logs": settings.logs.model_copy(update={"location": str(logs.resolve())})}
    )
    with look_at(root, elsewhere, experiment, now) as look:
        analysis = analyse_population(plan, look.population, simulated=True)
    analysis["counterfactual"] = True
    write_json(analysis, folder / "analysis.json")
    shutil.rmtree(logs)
    return analysis
