"""What came of a campaign, as one document: the paper's table beside ours, every launch, everything blocked."""

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_tasks.campaign import panels
from flywheel_tasks.campaign.folder import Folder
from flywheel_tasks.campaign.online import lifts, mean_lift
from flywheel_tasks.campaign.records import is_launch, is_over, launches, records
from flywheel_tasks.evaluation.gate_rules import FILE, load_rules
from flywheel_tasks.evaluation.rules import INTERNAL, USER
from flywheel_tasks.online.approval import blocking_reasons
from flywheel_tasks.settings import Campaign
from flywheel_tasks.storage.documents import read_json, read_jsonl

Record = dict[str, Any]
# METHOD of the paper, its results: metric, first, best or last.
PAPER: tuple[tuple[str, str, str], ...] = (
    ("launches with positive lift", "", "7 of 8"),
    ("engagement breadth, best launch", "", "+8.8%"),
    ("engagement depth, best launch", "", "+19.4%"),
    ("instruction following", "59.2%", "84.8%"),
    ("instruction violation", "26.6%", "5.8%"),
    ("false refusal", "over 20%", "under 5%"),
    ("templated", "", ""),
    ("cooperation", "under 60%", "over 80%"),
    ("preachy tone", "about 25%", "under 18%"),
    ("positive sentiment", "about 45%", "60%"),
    ("wall of text", "over 10%", "under 5%"),
    ("mean reply length", "50 to 65 tokens", "50 to 65 tokens"),
)
_PANEL = {  # our rows from the panel, by the paper's name
    "instruction following": "instruction_following",
    "instruction violation": "instruction_violation",
    "false refusal": "false_refusal",
}
_GATE = {  # and from the gate's own measurements, on each generation's evaluation prompts
    "templated": "templated",
    "cooperation": "cooperation",
    "preachy tone": "preachy",
    "positive sentiment": "positive_sentiment",
    "wall of text": "wall_of_text",
    "mean reply length": "tokens",
}


def _panel(folder: Folder, digest: str) -> list[dict[str, Any]]:
    return list(read_jsonl(folder.panel(digest)))


def _by_ceiling(record: Record) -> bool:
    """Whether the limit on a high win rate, and nothing else, blocked it."""
    blocks = [reason for reason in record["reasons"] if reason["outcome"] == "block"]
    return bool(blocks) and all(_is_ceiling(reason) for reason in blocks)


def _is_ceiling(reason: Mapping[str, Any]) -> bool:
    limits = reason["block"] or {}
    return (
        reason["metric"] in (USER, INTERNAL) and reason["value"] is not None and limits.get("max") is not None
    )


def _row(folder: Folder, record: Record) -> Record:
    """One generation: what the gate and the test said, and what is true."""
    before, after = (_panel(folder, record[key]) for key in ("champion_digest", "candidate_digest"))
    tested = record.get("analysis") or record.get("counterfactual")
    valid = tested if tested is not None and tested["result"] == "valid" else None
    return {
        "generation": record["generation"],
        "champion": record["champion"],
        "over_optimised": record["over_optimised"],
        "status": record["status"],
        "decision": record["decision"],
        "why": record["why"],
        "blocked_by_ceiling_alone": _by_ceiling(record),
        "block_reasons": blocking_reasons(record) if record["status"] == "blocked" else [],
        "win_rate": {judge: record["win_rate"][judge] for judge in ("pointwise", "pairwise")},
        "counterfactual": record.get("counterfactual") is not None,
        "tested": tested["result"] if tested else None,
        "advice": tested["advice"] if tested else None,
        "lift_percent": lifts(valid) if valid else {},
        "mean_lift_percent": mean_lift(valid) if valid else None,
        "true_gain": panels.gain(before, after),
        "true": panels.summary(after),
        "reward_accuracy": record["reward_accuracy"],
        "pairs": record["pairs"],
        "rewrites": record["rewrites"],
        "minutes": sum(record["seconds"].values()) / 60,
        "resumed": record.get("resumed", False),
    }


def _champions(folder: Folder, found: Sequence[Record]) -> list[Record]:
    """The champion before the first launch, after each, and an over-optimised one that was promoted."""
    if not found:
        return []
    name, digest = found[0]["champion"], found[0]["champion_digest"]
    first, hard = _panel(folder, digest), {row["generation"] for row in found if row["over_optimised"]}
    stood = [(0, None, name, digest)]
    for number, record in enumerate(found, start=1):
        promoted = record["decision"] == "promoted"
        if promoted:
            name, digest = record["generation"], record["candidate_digest"]
        if promoted or is_launch(record):
            stood.append((launches(found[:number]), record["generation"], name, digest))
    return [
        {
            "after_launch": number,
            "after": generation,
            "model": name,
            "over_optimised": name in hard,
            "since_base": panels.gain(first, _panel(folder, digest)),
            **panels.summary(_panel(folder, digest)),
        }
        for number, generation, name, digest in stood
    ]


def _paper(rows: Sequence[Record], found: Sequence[Record], champions: Sequence[Record]) -> list[Record]:
    """The paper's rows with ours; a figure that is missing is None."""
    launched = [row for row in rows if is_launch(row)]
    promoted = [record for record in found if record["decision"] == "promoted"]
    table = []
    for metric, first, last in PAPER:
        row: Record = {
            "metric": metric,
            "paper_first": first,
            "paper_last": last,
            "first": None,
            "last": None,
        }
        if metric == "launches with positive lift":
            positive = sum((r["mean_lift_percent"] or 0) > 0 for r in launched)
            row["last"] = f"{positive} of {len(launched)}"
        elif metric.startswith("engagement"):
            name = metric.split()[1].rstrip(",")
            known = [r["lift_percent"][name] for r in launched if name in r["lift_percent"]]
            best = max(known, key=lambda lift: lift["value"], default=None)
            row["last"] = None if best is None else {**best, "unit": "lift"}
        elif metric in _PANEL and champions:
            ends = (champions[0], champions[-1])
            row["first"], row["last"] = (end["training"][_PANEL[metric]] for end in ends)
        elif metric in _GATE and found:
            unit = {"unit": "tokens"} if metric == "mean reply length" else {}
            figures = [found[0]["production"][_GATE[metric]]["champion"]]
            figures.append(promoted[-1]["production"][_GATE[metric]]["candidate"] if promoted else figures[0])
            row["first"], row["last"] = ({**figure, **unit} for figure in figures)
        table.append(row)
    return table


def _ours(rows: Sequence[Record], champions: Sequence[Record]) -> list[Record]:
    """Rows that the paper cannot have, or that belong beside it: truth, generalisation, style."""
    launched = [row for row in rows if is_launch(row)]
    hard = [row for row in rows if row["over_optimised"]]
    surely = sum(panels.surely(row["true_gain"]) == "better" for row in launched)
    table: list[Record] = [
        {
            "metric": "launches with positive true lift (surely)",
            "first": None,
            "last": f"{sum(r['true_gain']['value'] > 0 for r in launched)} of {len(launched)} ({surely})",
        },
        {
            "metric": "over-optimised launches",
            "first": None,
            "last": f"{sum(row['status'] == 'launched' for row in hard)} of {len(hard)} made"
            if hard
            else "none made",
        },
    ]
    if not champions:
        return table
    for group, title in panels.GROUPS.items():
        for key in ("utility", "instruction_following", "instruction_violation"):
            ends = [champion[group][key] for champion in (champions[0], champions[-1])]
            unit = {"unit": "utility"} if key == "utility" else {}
            name = f"{'true utility' if unit else key.replace('_', ' ')}, {title}"
            table.append({"metric": name, "first": {**ends[0], **unit}, "last": {**ends[1], **unit}})
    for key, title in (
        ("words", "words a reply"),
        ("emoji", "emoji a reply"),
        ("templated", "stock phrases of assistants"),  # a fixed list; the gate finds what recurs
    ):
        ends = [{**champion["all"][key], "unit": key} for champion in (champions[0], champions[-1])]
        table.append({"metric": title, "first": ends[0], "last": ends[1]})
    ends = [
        {"value": champion["all"]["variety"], "low": None, "high": None}
        for champion in (champions[0], champions[-1])
    ]
    table.append({"metric": "variety (different word pairs)", "first": ends[0], "last": ends[1]})
    return table


def _ceiling(plan: Campaign, high: float, rows: Sequence[Record]) -> Record:
    """What the limit on a high win rate held back, and what that would have done online."""
    if plan.ceiling:
        held = [row for row in rows if row["blocked_by_ceiling_alone"] and not row["over_optimised"]]
    else:
        held = [
            row
            for row in rows
            if is_launch(row)
            and (row["win_rate"]["pointwise"]["user"]["value"] or 0) >= high  # what the gate blocks by
        ]
    return {
        "on": plan.ceiling,
        "limit": high,
        "generations": [row["generation"] for row in held],
        **{
            kind: sum(panels.surely(row["true_gain"]) == kind for row in held)
            for kind in ("better", "worse", "untold")
        },
        "true_gain": {row["generation"]: row["true_gain"] for row in held},
        "mean_lift_percent": {row["generation"]: row["mean_lift_percent"] for row in held},
    }


def document(folder: Folder) -> dict[str, Any]:
    """The result of a campaign so far; everything in it is of simulated people.

    Returns:
        ``simulated``, ``panel`` (version of what it asks, or null), ``over``, ``launches``, ``wanted``, ``paper`` and
        ``ours`` (rows of the two tables), ``generations``, ``champions``, ``blocked``, ``over_optimised`` (or null),
        ``ceiling``, ``minutes``, ``resumed`` (a kill cut steps short, whose time is not among the minutes).
    """
    plan, found = Campaign.model_validate(read_json(folder.plan)), records(folder)
    rows = [_row(folder, record) for record in found]
    champions = _champions(folder, found)
    return {
        "simulated": True,
        "panel": _panel(folder, found[0]["champion_digest"])[0].get("panel", 1) if found else None,
        "name": folder.home.name,
        "over": is_over(plan, found),
        "launches": launches(found),
        "wanted": plan.launches,
        "paper": _paper(rows, found, champions),
        "ours": _ours(rows, champions),
        "generations": rows,
        "champions": champions,
        "blocked": [row for row in rows if row["status"] == "blocked"],
        "over_optimised": next((row for row in rows if row["over_optimised"]), None),
        "ceiling": _ceiling(plan, load_rules(folder.home / FILE).overfitting.high, rows),
        "minutes": sum(row["minutes"] for row in rows),
        "resumed": any(row["resumed"] for row in rows),
    }
