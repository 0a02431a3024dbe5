"""Stage annotate: labels to preference pairs and rewrites.

Ranking pairs pass surface filters, so that the reward model cannot learn length or emoji (paper, section on
annotation). Rewrites are not filtered: they are what a person would have written, and few.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from flywheel_tasks.annotation.agreement import item_rows, question_alpha, ranking_alpha, reviews_histogram
from flywheel_tasks.annotation.annotators import FLAGGED_BY, annotator_rows
from flywheel_tasks.annotation.consensus import majority, mean_ranks, reviews_by_task, score, support
from flywheel_tasks.annotation.gold import accuracy_of, right
from flywheel_tasks.annotation.schemas import ANNOTATORS, ITEMS, PAIRS, REMOVED, REWRITES
from flywheel_tasks.annotation.tasks import GOLD, SPLIT_OF, AnnotationError, short_id, texts_of
from flywheel_tasks.evaluation.intervals import share
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.settings import Annotate, Consensus
from flywheel_tasks.storage.documents import read_jsonl
from flywheel_tasks.storage.tables import write_rows
from flywheel_tasks.style.text import emoji_count, lengths

Row = dict[str, Any]


@dataclass
class Preferences:
    """What the labels became: rows of the three tables, and pairs that sound tasks had to spare."""

    pairs: list[Row] = field(default_factory=list)
    rewrites: list[Row] = field(default_factory=list)
    removed: list[Row] = field(default_factory=list)
    spare: int = 0


def surface_reason(chosen: str, rejected: str, settings: Annotate) -> tuple[str, str] | None:
    """Why a ranking pair differs too much on the surface, and the figure; None if it does not.

    Args:
        chosen: the better reply.
        rejected: the worse one.
        settings: the limits.
    """
    found = lengths(chosen, rejected)
    shorter, longer = sorted((max(found.one, 1), max(found.other, 1)))
    if longer / shorter > settings.max_length_ratio:
        return "length_ratio", f"{longer} to {shorter} {found.unit}"
    counts = sorted((emoji_count(chosen), emoji_count(rejected)))
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


def _pair(task: Row, chosen: str, rejected: str, kind: str, agreement: float, labels: Sequence[Row]) -> Row:
    return {
        **_context(task),
        "pair_id": f"p-{short_id(task['task_id'], kind, chosen, rejected)}",
        "chosen": chosen,
        "rejected": rejected,
        "kind": kind,
        "agreement": agreement,
        "reviews": len(labels),
        "simulated": any(label["simulated"] for label in labels),
        "consensus": False,
        "one_review": None,
    }


def ordered_pairs(labels: Sequence[Row]) -> list[tuple[str, str]]:
    """Pairs (better, worse) by consensus, the widest rank distance first, then the best better one.

    Pairs that the reviews leave equal come last, in the order of their ids.
    """
    ranks = mean_ranks(labels)
    order = sorted(ranks, key=lambda candidate: (ranks[candidate], candidate))
    pairs = list(combinations(order, 2))
    return sorted(pairs, key=lambda pair: (ranks[pair[0]] - ranks[pair[1]], ranks[pair[0]], pair))


def is_consensus(reviews: int, agreement: float, settings: Consensus) -> bool:
    """Whether a pair is good enough to measure with: several reviews that agree (paper, section on annotation)."""
    return reviews >= settings.min_reviews and agreement >= settings.min_agreement


def _drawn_review(task: Row, labels: Sequence[Row]) -> Row:
    """One review of a task, by its annotator's place in an order that the task's id draws."""
    return min(labels, key=lambda label: short_id("one review", task["task_id"], label["annotator"]))


def _reason(pair: Row, both_refuse: bool, equal: bool, settings: Annotate) -> tuple[str, str] | None:
    """Why a ranking pair is not kept; None if it is."""
    if pair["chosen"].strip() == pair["rejected"].strip():
        return "equal_texts", "both replies are the same"
    if equal:
        return "tie", "the reviews leave both replies equal"
    if pair["agreement"] <= 0.5:
        return "no_majority", f"{pair['agreement']:.2f} of the reviews agree"
    if both_refuse and settings.drop_both_refusals:
        return "both_refuse", "the reviews call both replies false refusals"
    return surface_reason(pair["chosen"], pair["rejected"], settings)


def add_ranking_pairs(task: Row, labels: Sequence[Row], settings: Annotate, into: Preferences) -> None:
    """Up to ``pairs_per_prompt`` ranking pairs of a task; where a filter stops one, the next is tried."""
    texts, kept = texts_of(task), 0
    policies = {candidate["candidate_id"]: candidate["policy"] for candidate in task["candidates"]}
    ranks = mean_ranks(labels)
    ordered = ordered_pairs(labels)
    drawn = _drawn_review(task, labels)
    for number, (better, worse) in enumerate(ordered):
        if kept == settings.pairs_per_prompt:
            into.spare += len(ordered) - number
            break
        agreement = support(labels, better, worse)
        pair = _pair(task, texts[better], texts[worse], "ranking", agreement, labels)
        both_refuse = all(majority(labels, item, "false_refusal") for item in (better, worse))
        reason = _reason(pair, both_refuse, ranks[better] == ranks[worse], settings)
        if reason is None:
            consensus = is_consensus(len(labels), agreement, settings.consensus)
            into.pairs.append(
                pair
                | {
                    "consensus": consensus,
                    "one_review": score(drawn, better, worse),
                    "chosen_policy": policies[better],
                    "rejected_policy": policies[worse],
                }
            )
            kept += 1
        else:
            into.removed.append({"pair_id": pair["pair_id"], "reason": reason[0], "detail": reason[1]})


def add_rewrites(task: Row, labels: Sequence[Row], into: Preferences) -> None:
    """Rewrite pairs of a task; the same rewrite by two people is one.

    Their agreement is the share of the reviews that find a fault in the original. They are never part of the consensus
    set: nobody but its author has compared a rewrite with the original.
    """
    texts = texts_of(task)
    policies = {candidate["candidate_id"]: candidate["policy"] for candidate in task["candidates"]}
    found = sorted(
        {(label["rewrite"]["candidate_id"], label["rewrite"]["text"]) for label in labels if label["rewrite"]}
    )
    for candidate, text in found:
        fault = sum(any(_faults(label["answers"][candidate])) for label in labels) / len(labels)
        pair = _pair(task, text, texts[candidate], "rewrite", fault, labels)
        into.pairs.append(pair | {"chosen_policy": None, "rejected_policy": policies[candidate]})
        reviewed = {key: pair[key] for key in ("reviews", "simulated")}
        into.rewrites.append({**_context(task), "rejected": texts[candidate], "rewrite": text, **reviewed})


def _faults(answers: Row) -> list[bool]:
    """The yes-or-no answers; each such question asks for a fault."""
    return [answer for answer in answers.values() if isinstance(answer, bool)]


def fault_rates(tasks: Sequence[Row], labels_by_task: Mapping[str, Sequence[Row]]) -> Row:
    """Share of the drawn candidates with each fault, by source, with 95% intervals clustered by user.

    Rewrite tasks are left out: their replies were chosen for being bad.
    """
    found: dict[str, dict[str, list[tuple[float, str]]]] = {}
    for task in tasks:
        labels = labels_by_task.get(task["task_id"], ())
        if task["kind"] == "rewrite" or not labels:
            continue
        for question in task["questions"]:
            if question["choices"] is not None:
                continue
            of_question = found.setdefault(question["name"], defaultdict(list))
            for candidate in texts_of(task):
                answer = float(majority(labels, candidate, question["name"]))
                of_question[task["source"]].append((answer, task["user_id"]))
    return {
        question: {
            source: dict(share([answer for answer, _ in rows], [user for _, user in rows]))
            for source, rows in sorted(by_source.items())
        }
        for question, by_source in found.items()
    }


def _agreement(tasks: Sequence[Row], labels_by_task: Mapping[str, Sequence[Row]], seed: int) -> Row:
    asked = sorted({question["name"] for task in tasks for question in task["questions"]})
    return {
        "alpha_ordinal": ranking_alpha(labels_by_task, seed),
        "alpha_nominal": {name: question_alpha(tasks, labels_by_task, name, seed) for name in asked},
        "multi_review_tasks": sum(len(labels) > 1 for labels in labels_by_task.values()),
        "tasks_by_reviews": reviews_histogram(labels_by_task),
    }


def _counts(preferences: Preferences) -> Row:
    pairs = preferences.pairs
    counts = Counter((pair["purpose"], pair["kind"]) for pair in pairs)
    sets = Counter((pair["purpose"], pair["consensus"]) for pair in pairs if pair["kind"] == "ranking")
    return {
        "pairs": {
            purpose: {kind: counts[purpose, kind] for kind in ("ranking", "rewrite")} for purpose in SPLIT_OF
        },
        "pairs_total": len(pairs),
        "pairs_simulated": sum(pair["simulated"] for pair in pairs),
        "consensus_pairs": {purpose: sets[purpose, True] for purpose in SPLIT_OF},
        "single_review_pairs": sum(pair["reviews"] == 1 for pair in pairs),
        "rewrites": len(preferences.rewrites),
        "considered": sum(pair["kind"] == "ranking" for pair in pairs)
        + len(preferences.removed)
        + preferences.spare,
        "spare": preferences.spare,
        "removed": dict(sorted(Counter(row["reason"] for row in preferences.removed).items())),
        "removed_total": len(preferences.removed),
    }


def _without_flagged(
    labels: Sequence[Row], annotators: Sequence[Row], *, exclude: bool
) -> tuple[list[Row], int]:
    """Labels that are used, and how many of flagged annotators are not."""
    flagged = {row["annotator"] for row in annotators if row["flagged"]} if exclude else set()
    used = [label for label in labels if label["annotator"] not in flagged]
    return used, len(labels) - len(used)


def run(io: StageIO) -> Mapping[str, Any]:
    """``batch.jsonl`` and ``labels.jsonl`` to the tables of ``data/preferences``.

    Returns:
        pairs by purpose and kind, removed pairs by reason, agreement, annotators, fault rates of the candidates.

    Raises:
        AnnotationError: the labels give no pair at all.
    """
    settings = io.settings.annotate
    batch = list(read_jsonl(io.dep("data/annotation/batch.jsonl")))
    given = list(read_jsonl(io.dep("data/annotation/labels.jsonl")))
    gold = [task for task in batch if task["purpose"] == GOLD]
    tasks = [task for task in batch if task["purpose"] != GOLD]
    known = {task["task_id"] for task in gold}
    labels = [label for label in given if label["task_id"] not in known]
    annotators = annotator_rows(reviews_by_task(labels), settings.annotators, accuracy_of(gold, given))
    used, excluded = _without_flagged(labels, annotators, exclude=settings.annotators.exclude_flagged)
    labels_by_task = reviews_by_task(used)
    preferences = Preferences()
    for task in tasks:
        reviews = labels_by_task.get(task["task_id"], [])
        if reviews and task["kind"] != "rewrite":
            add_ranking_pairs(task, reviews, settings, preferences)
        if reviews and settings.rewrites:
            add_rewrites(task, reviews, preferences)
    if not preferences.pairs:
        raise AnnotationError(
            f"data/annotation/labels.jsonl: no pair of {len(tasks)} tasks passes annotate's filters"
        )
    out = io.out("data/preferences")
    write_rows(preferences.pairs, PAIRS, out / "pairs.parquet")
    write_rows(preferences.rewrites, REWRITES, out / "rewrites.parquet")
    write_rows(preferences.removed, REMOVED, out / "removed.parquet")
    write_rows(item_rows(tasks, labels_by_task), ITEMS, out / "items.parquet")
    write_rows(annotators, ANNOTATORS, out / "annotators.parquet")
    return {
        **_counts(preferences),
        "labels": {"used": len(used), "excluded_flagged": excluded},
        "annotators": {
            "all": len(annotators),
            "flagged": sum(row["flagged"] for row in annotators),
            "flagged_by": {by: sum(by in row["flagged_by"] for row in annotators) for by in FLAGGED_BY},
        },
        "gold": {"tasks": len(gold), "labels": len(given) - len(labels), **right(gold, given)},
        "agreement": _agreement(tasks, labels_by_task, io.settings.seed),
        "candidates": fault_rates(tasks, labels_by_task),
    }
