"""The analysis of an A/B test: lifts with intervals, or the reasons why it proves nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import tea_tasting as tt

from flywheel_tasks.online.approval import analysis_name, registry_of
from flywheel_tasks.online.assignment import assign
from flywheel_tasks.online.exposed import COUNTED, Exposed, Reading, read_exposed
from flywheel_tasks.settings import Ab, load_settings
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.documents import finite
from flywheel_tasks.storage.registry_state import Analysis, Plan, RegistryError

ANALYSIS = "launch/analysis.json"
# Below this the two arms' sizes are taken as wrongly drawn or wrongly logged (sample ratio mismatch).
SRM_PVALUE = 0.001
# Without a lift in these the test says nothing about engagement.
_REQUIRED = ("breadth", "depth")


def _metrics(alpha: float) -> dict[str, Any]:
    """Breadth and depth as the paper has them, per exposed user, and rates of signals per reply."""
    level = 1 - alpha
    per_reply = {
        f"{name}_per_reply": tt.RatioOfMeans(name, "replies", confidence_level=level) for name in COUNTED
    }
    return {
        "breadth": tt.Proportion("active", method="norm", confidence_level=level),
        "depth": tt.Mean("messages", confidence_level=level),
        "messages_per_active_user": tt.RatioOfMeans("messages", "active", confidence_level=level),
        **per_reply,
    }


def _table(users: Sequence[Exposed]) -> pa.Table:
    return pa.table(
        {
            "arm": [user.arms[0] for user in users],
            "active": [int(user.messages > 0) for user in users],
            "messages": [user.messages for user in users],
            "replies": [user.replies for user in users],
            **{name: [user.signals[name] for user in users] for name in COUNTED},
        }
    )


def _lifts(users: Sequence[Exposed], alpha: float) -> dict[str, Any]:
    """Each metric's value in both arms and its lift in percent, relative to control."""
    experiment = tt.Experiment(_metrics(alpha), variant="arm")
    with np.errstate(divide="ignore", invalid="ignore"):  # an event that nobody had: its figures are null
        result = experiment.analyze(_table(users), control="control")
    found = {}
    for name, metric in result.items():
        found[name] = {
            "control": float(metric.control),
            "candidate": float(metric.treatment),
            "lift_percent": {
                "value": 100 * float(metric.rel_effect_size),
                "low": 100 * float(metric.rel_effect_size_ci_lower),
                "high": 100 * float(metric.rel_effect_size_ci_upper),
                "n": len(users),
            },
            "pvalue": float(metric.pvalue),
        }
    return finite(found)


def _sample_ratio(users: Sequence[Exposed], plan: Plan) -> float:
    """P-value of the arms' sizes under the plan's shares."""
    shares = {arm.name: arm.share for arm in plan.arms}
    check = tt.SampleRatio(shares["candidate"] / shares["control"])
    return float(check.analyze(_table(users), "control", "candidate", "arm").pvalue)


def _exposure_faults(users: Sequence[Exposed], plan: Plan) -> list[str]:
    """What is wrong with who saw what, as sentences."""
    document = plan.model_dump(mode="json")
    known = {arm.name for arm in plan.arms}
    unknown = sum(not known.issuperset(user.arms) for user in users)
    both = sum(len(user.arms) > 1 for user in users)
    misplaced = sum(user.arms != [assign(document, user.user_id)] for user in users if len(user.arms) == 1)
    faults = [
        (unknown, "were exposed to an arm that the plan does not have"),
        (both, "were exposed to more than one arm"),
        (misplaced, "were exposed to an arm that the plan does not give them"),
    ]
    return [f"{number} users {what}" for number, what in faults if number]


def analyse_exposed(plan: Plan, reading: Reading, settings: Ab, *, simulated: bool) -> dict[str, Any]:
    """Analyse a test.

    Args:
        plan: of the test.
        reading: what the logs hold of it.
        settings: section ``ab``.
        simulated: whether the users are the demo's.

    Returns:
        a document: ``result`` (valid, invalid), ``reasons``, ``users``, ``sample_ratio``, ``logs``, and
        ``metrics``, each with control, candidate, lift in percent with its interval at 1 - alpha, pvalue;
        a missing figure is null.
    """
    users = reading.users
    reasons = _exposure_faults(users, plan)
    known = [user for user in users if user.arms[0] in ("control", "candidate")]
    sizes = {arm: sum(user.arms[0] == arm for user in known) for arm in ("control", "candidate")}
    for arm, size in sizes.items():
        if size < settings.min_users_per_arm:
            reasons.append(f"{size} users in arm {arm}, at least {settings.min_users_per_arm} are needed")
    metrics: dict[str, Any] = {}
    pvalue = None
    if min(sizes.values()) > 1:
        metrics = _lifts(known, settings.alpha)
        pvalue = _sample_ratio(known, plan)
        if not pvalue >= SRM_PVALUE:
            reasons.append(f"the arms' sizes do not fit their shares (p = {pvalue:.2g} < {SRM_PVALUE})")
        reasons += [
            f"{name} has no lift with an interval"
            for name in _REQUIRED
            if None in metrics[name]["lift_percent"].values()
        ]
    return {
        "experiment": plan.experiment,
        "generation": plan.generation,
        "model_digest": plan.model_digest,
        "simulated": simulated,
        "result": "invalid" if reasons else "valid",
        "reasons": reasons,
        "confidence": 1 - settings.alpha,
        "users": sizes,
        "sample_ratio": {"pvalue": pvalue},
        "metrics": metrics,
        "logs": {
            "partitions": reading.partitions,
            "digest": reading.logs_digest,
            "unreadable_lines": reading.unreadable,
            "repeated_events": reading.repeated,
        },
    }


def analyse(root: Path, generation: str, by: str) -> dict[str, Any]:
    """Analyse the running test of a generation, keep the result and record it.

    Args:
        root: the workspace.
        generation: whose test.
        by: who analyses it.

    Returns:
        the document of :func:`analyse_exposed`, also in ``launch/analysis.json`` and kept by the registry.

    Raises:
        RegistryError: no test of this generation is running.
        LogsError: the logs cannot be read.
    """
    settings = load_settings(root / "params.yaml")
    registry = registry_of(root)
    experiment = registry.state().running()
    if experiment is None or experiment.plan.generation != generation:
        raise RegistryError(f"no experiment of generation {generation} is running")
    reading = read_exposed(
        settings.logs.location,
        root,
        experiment.plan.experiment,
        max_line_bytes=settings.ingest.max_line_bytes,
    )
    simulated = settings.logs.source == "simulated"
    document = analyse_exposed(experiment.plan, reading, settings.ab, simulated=simulated)
    data = orjson.dumps(
        document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    )
    digest = bytes_digest(data)
    registry.put_generation(generation, analysis_name(digest), data)
    with atomic_path(root / ANALYSIS) as temporary:
        temporary.write_bytes(data)
    found = Analysis(result=document["result"], digest=digest, reasons=tuple(document["reasons"]))
    if experiment.analysis != found:
        registry.record_analysis(generation, found, by=by)
    return document
