"""Stage annotate: labels to preference pairs and rewrites.

Ranking pairs pass surface filters, so that the reward model cannot learn length or emoji (paper, section on
annotation). Rewrites are not filtered: they are what a person would have written, and few.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import emoji

from flywheel_tasks.annotation.consensus import majority, mean_ranks, ranking_alpha, support
from flywheel_tasks.annotation.schemas import PAIRS, REMOVED, REWRITES
from flywheel_tasks.annotation.tasks import QUESTIONS, SPLIT_OF, AnnotationError, short_id, texts_of
from flywheel_tasks.evaluation.intervals import share
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.settings import Annotate
from flywheel_tasks.storage.documents import read_jsonl
from flywheel_tasks.storage.tables import write_rows

Row = dict[str, Any]


@dataclass
class Preferences:
    """What the labels became: rows of the three tables."""

    pairs: list[Row] = field(default_factory=list)
    rewrites: list[Row] = field(default_factory=list)
    removed: list[Row] = field(default_factory=list)


def surface_reason(chosen: str, rejected: str, settings: Annotate) -> tuple[str, str] | None:
    """Why a ranking pair differs too much on the surface, and the figure; None if it does not.

    Args:
        chosen: the better reply.
        rejected: the worse one.
        settings: the limits.
    """
    lengths = sorted((max(len(chosen.split()), 1), max(len(rejected.split()), 1)))
    if lengths[1] / lengths[0] > settings.max_length_ratio:
        return "length_ratio", f"{lengths[1]} to {lengths[0]} words"
    counts = sorted((emoji.emoji_count(chosen), emoji.emoji_count(rejected)))
    if counts[1] - counts[0] > settings.max_emoji_difference:
        return "emoji_difference", f"{counts[1]} to {counts[0]} emoji"
    return None


def _context(task: Row) -> Row:
    card = task["card"]
    return {
        "prompt_id": task["prompt_id"],
        "user_id": task["user_id"],
        "source": task["source"],
        "purpose": task["purpose"],
        "card_id": card["card_id"],
        "card_name": card["name"],
        "traits": card["traits"],
        "instructions": card["instructions"],
        "history": task["history"],
    }


def _pair(task: Row, chosen: str, rejected: str, kind: str, agreement: float) -> Row:
    return {
        **_context(task),
        "pair_id": f"p-{short_id(task['task_id'], kind, chosen, rejected)}",
        "chosen": chosen,
        "rejected": rejected,
        "kind": kind,
        "agreement": agreement,
    }


def ordered_pairs(labels: Sequence[Row]) -> list[tuple[str, str]]:
    """Pairs (better, worse) by consensus, the widest rank distance first, then the best better one.

    Pairs that the reviews leave equal are not among them.
    """
    ranks = mean_ranks(labels)
    order = sorted(ranks, key=lambda candidate: (ranks[candidate], candidate))
    pairs = [(a, b) for a, b in combinations(order, 2) if ranks[a] < ranks[b]]
    return sorted(pairs, key=lambda pair: (ranks[pair[0]] - ranks[pair[1]], ranks[pair[0]], pair))


def add_ranking_pairs(task: Row, labels: Sequence[Row], settings: Annotate, into: Preferences) -> None:
    """Up to ``pairs_per_prompt`` ranking pairs of a task; where a filter stops one, the next is tried."""
    texts, kept = texts_of(task), 0
    for better, worse in ordered_pairs(labels):
        if kept == settings.pairs_per_prompt:
            break
        pair = _pair(task, texts[better], texts[worse], "ranking", support(labels, better, worse))
        if pair["chosen"].strip() == pair["rejected"].strip():
            reason: tuple[str, str] | None = ("equal_texts", "both replies are the same")
        elif pair["agreement"] <= 0.5:
            reason = ("no_majority", f"{pair['agreement']:.2f} of the reviews agree")
        else:
            reason = surface_reason(pair["chosen"], pair["rejected"], settings)
        if reason is None:
            into.pairs.append(pair)
            kept += 1
        else:
            into.removed.append({"pair_id": pair["pair_id"], "reason": reason[0], "detail": reason[1]})


def add_rewrites(task: Row, labels: Sequence[Row], into: Preferences) -> None:
    """Rewrite pairs of a task; the same rewrite by two people is one.

    Their agreement is the share of the reviews that find a fault in the original.
    """
    texts = texts_of(task)
    found = sorted(
        {(label["rewrite"]["candidate_id"], label["rewrite"]["text"]) for label in labels if label["rewrite"]}
    )
    for candidate, text in found:
        fault = sum(any(label["answers"][candidate].values()) for label in labels) / len(labels)
        into.pairs.append(_pair(task, text, texts[candidate], "rewrite", fault))
        into.rewrites.append({**_context(task), "rejected": texts[candidate], "rewrite": text})


def fault_rates(tasks: Sequence[Row], labels_by_task: Mapping[str, Sequence[Row]]) -> Row:
    """Share of the champion's candidates with each fault, by source, with 95% intervals clustered by user."""
    found: dict[str, dict[str, list[tuple[float, str]]]] = {
        question: defaultdict(list) for question in QUESTIONS
    }
    for task in tasks:
        labels = labels_by_task.get(task["task_id"], ())
        for candidate in texts_of(task) if labels else ():
            for question in QUESTIONS:
                answer = float(majority(labels, candidate, question))
                found[question][task["source"]].append((answer, task["user_id"]))
    return {
        question: {
            source: dict(share([answer for answer, _ in rows], [user for _, user in rows]))
            for source, rows in sorted(by_source.items())
        }
        for question, by_source in found.items()
    }


def _counts(preferences: Preferences) -> Row:
    counts = Counter((pair["purpose"], pair["kind"]) for pair in preferences.pairs)
    return {
        "pairs": {
            purpose: {kind: counts[purpose, kind] for kind in ("ranking", "rewrite")} for purpose in SPLIT_OF
        },
        "pairs_total": len(preferences.pairs),
        "rewrites": len(preferences.rewrites),
        "removed": dict(sorted(Counter(row["reason"] for row in preferences.removed).items())),
        "removed_total": len(preferences.removed),
    }


def run(io: StageIO) -> Mapping[str, Any]:
    """``batch.jsonl`` and ``labels.jsonl`` to the tables of ``data/preferences``.

    Returns:
        pairs by purpose and kind, removed pairs by reason, agreement, fault rates of the champion.

    Raises:
        AnnotationError: the labels give no pair at all.
    """
    tasks = list(read_jsonl(io.dep("data/annotation/batch.jsonl")))
    labels_by_task: dict[str, list[Row]] = defaultdict(list)
    for label in read_jsonl(io.dep("data/annotation/labels.jsonl")):
        labels_by_task[label["task_id"]].append(label)
    preferences = Preferences()
    for task in tasks:
        labels = sorted(labels_by_task.get(task["task_id"], ()), key=lambda label: label["annotator"])
        if labels:
            add_ranking_pairs(task, labels, io.settings.annotate, preferences)
            add_rewrites(task, labels, preferences)
    if not preferences.pairs:
        raise AnnotationError(
            f"data/annotation/labels.jsonl: no pair of {len(tasks)} tasks passes annotate's filters"
        )
    out = io.out("data/preferences")
    write_rows(preferences.pairs, PAIRS, out / "pairs.parquet")
    write_rows(preferences.rewrites, REWRITES, out / "rewrites.parquet")
    write_rows(preferences.removed, REMOVED, out / "removed.parquet")
    return {
        **_counts(preferences),
        "agreement": {
            "alpha_ordinal": ranking_alpha(labels_by_task),
            "multi_review_tasks": sum(len(labels) > 1 for labels in labels_by_task.values()),
        },
        "champion": fault_rates(tasks, labels_by_task),
    }
