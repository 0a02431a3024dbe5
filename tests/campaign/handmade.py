"""Handmade panels, records and a folder of a campaign, without a model."""

from pathlib import Path

from flywheel_tasks.campaign.folder import Folder
from flywheel_tasks.simulation.panel import measure
from flywheel_tasks.storage.documents import write_json, write_jsonl
from tests.simulation.replies import PoolSampler

PROJECT = Path(__file__).resolve().parents[2]
GOOD = ("I hear you, dear, and my tea is getting cold over it. What happened then?",)
BAD = ("I'm sorry, but as an AI I can't have feelings. I can't have feelings. I can't",)
PLAN = {
    "launches": 2,
    "max_generations": 5,
    "overoptimise_at": 2,
    "ceiling": True,
    "counterfactuals": True,
    "inconclusive": "promote_if_better",
    "panel_users": 4,
    "minutes_per_generation": 20.0,
    "keep_models": False,
    "overlay": {},
    "overoptimise": {"rl.steps": 16},
    "without_ceiling": {},
    "ablations": {},
}


def digest(letter):
    return "sha256:" + letter * 64


def estimate(value, n=40):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n, "clusters": n}


def analysis(lift=5.0, advice="promote", result="valid"):
    figure = {"lift_percent": {"value": lift, "low": lift - 4, "high": lift + 4, "n": 80}, "cuped": None}
    return {
        "result": result,
        "reasons": [] if result == "valid" else ["the arms differ"],
        "advice": advice if result == "valid" else None,
        "advice_reasons": ["Breadth: significantly better"],
        "rule": {"primary": ["breadth", "depth"], "estimate": "cuped"},
        "users": {"control": 40, "candidate": 40},
        "metrics": {"breadth": figure, "depth": figure},
    }


def reason(metric="evaluate.win_rate.pointwise.user", value=0.7, limit=("max", 0.65)):
    limits = {"min": None, "max": None, limit[0]: limit[1]}
    text = f"{metric} is {value}, not below {limit[1]}"
    return {
        "metric": metric,
        "outcome": "block",
        "value": value,
        "block": limits,
        "warn": None,
        "reason": text,
    }


def record(number, *, champion="a", candidate="b", reasons=(), hard=False, tested=None, decision="promoted"):
    blocked = bool(reasons)
    names = ("cooperation", "preachy", "positive_sentiment", "wall_of_text", "tokens")
    one = {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}
    production = {
        name: {"champion": estimate(0.2), "candidate": estimate(0.1)}
        if name != "cooperation"
        else {"champion": one, "candidate": one}
        for name in names
    } | {"templated": {"champion": estimate(0.3), "candidate": estimate(0.15)}}
    rates = {source: estimate(0.7 if blocked else 0.58) for source in ("user", "internal", "all")}
    return {
        "generation": f"g{number:04d}",
        "verdict": "block" if blocked else "pass",
        "reasons": list(reasons),
        "candidate_digest": digest(candidate),
        "champion": f"model-{champion}",
        "champion_digest": digest(champion),
        "win_rate": {"pointwise": rates, "pairwise": rates},
        "production": production,
        "rl": {"step": 6},
        "reward_accuracy": estimate(0.7),
        "pairs": 100,
        "rewrites": 30,
        "over_optimised": hard,
        "status": "blocked" if blocked else "launched",
        "decision": "declined" if blocked else decision,
        "why": "because",
        "seconds": {"a": 600.0, "b": 60.0},
    } | ({"counterfactual": tested} if blocked else {"analysis": tested or analysis(), "approvals": []})


def write_panel(folder, letter, pool):
    write_jsonl(measure(PoolSampler(pool), 4), folder.panel(digest(letter)))


def make_campaign(home, records, plan=None):
    """A folder with panels of a bad model ``a`` and good ones ``b`` and ``c``, and these records."""
    folder = Folder(home)
    write_json(PLAN | (plan or {}), folder.plan)
    for name in ("params.yaml", "gate_rules.yaml"):
        (home / name).write_text((PROJECT / name).read_text())
    for letter, pool in (("a", BAD), ("b", GOOD), ("c", GOOD)):
        write_panel(folder, letter, pool)
    for item in records:
        write_json(item, folder.generation(item["generation"]))
    return folder
