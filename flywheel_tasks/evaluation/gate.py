"""Stage ``gate``: the verdict on a candidate with every reason, and what people read before they approve.

A blocked candidate is a result, not an error: the stage succeeds and what follows reads the verdict.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from flywheel_tasks.evaluation.gate_rules import FILE, load_rules
from flywheel_tasks.evaluation.rules import judge, ordered, verdict_of
from flywheel_tasks.evaluation.style_rules import style_reasons
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.report.approval import render_approval
from flywheel_tasks.report.contents import Contents, read_curve
from flywheel_tasks.report.page import render_page
from flywheel_tasks.storage.digests import file_digest, tree_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.tables import read_rows


def run(io: StageIO) -> Mapping[str, Any]:
    """Write ``gate/verdict.json``, ``gate/report.html`` and ``gate/approval.md``.

    Returns:
        metrics: ``passed`` (1 where nothing blocks, else 0) and how many rules passed, warned and failed.

    Raises:
        GateRulesError: the rules themselves are wrong.
    """
    metrics = {
        PurePosixPath(dep).stem: read_json(io.dep(dep)) for dep in io.stage.deps if dep.startswith("metrics/")
    }
    rules = load_rules(io.dep(FILE))
    reasons = ordered([*judge(rules, metrics), *style_reasons(rules.style, metrics)])
    outcome = verdict_of(reasons)
    generation = read_json(io.dep("inputs/generation.json"))
    verdict = {
        "generation": generation["generation"],
        "verdict": outcome,
        "model_digest": tree_digest(io.dep("models/policy")),
        "reasons": [reason.as_dict() for reason in reasons],
    }
    verdict_path = io.out("gate/verdict.json")
    write_json(verdict, verdict_path)
    contents = Contents(
        generation=generation,
        verdict=verdict,
        verdict_digest=file_digest(verdict_path),
        metrics=metrics,
        replies=read_rows(io.dep("data/evaluation/replies.parquet")),
        curves=[read_curve(io.dep(dep)) for dep in io.stage.deps if dep.startswith("plots/")],
        simulated=simulated_parts(generation, metrics),
    )
    io.out("gate/report.html").write_text(render_page(contents), encoding="utf-8")
    io.out("gate/approval.md").write_text(render_approval(contents), encoding="utf-8")
    counts = Counter(reason.outcome for reason in reasons)
    return {
        "passed": int(outcome != "block"),
        "rules": {"passed": counts["pass"], "warned": counts["warn"], "failed": counts["block"]},
    }


def simulated_parts(generation: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, bool | None]:
    """Whether users and annotators are simulated, by the data: the settings may have changed since.

    Args:
        generation: ``inputs/generation.json``; says where the logs that it was opened with came from.
        metrics: of all stages before, by stage; ``annotate`` counts the pairs of labels that say they are simulated.

    Returns:
        ``users`` and ``annotators``; None where it is not recorded.
    """
    source, pairs = generation.get("logs_source"), metrics.get("annotate", {}).get("pairs_simulated")
    return {
        "users": None if source is None else source == "simulated",
        "annotators": None if pairs is None else pairs > 0,
    }
