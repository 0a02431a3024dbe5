"""Stage curate: which prompts of the traffic go on, and why each other one does not.

The traffic curation of the paper: filter, diversity, constraints. In order: readable, privacy, safety, exact and near
duplicates, caps per user and character, constrained sample (docs/curation.md).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_tasks.curation.constrained import draw, sample_metrics, sample_table
from flywheel_tasks.curation.diversity import (
    add_topics,
    clusters_table,
    diversify,
    diversity_metrics,
    duplicates_table,
    vectors_table,
)
from flywheel_tasks.curation.tables import CARDS, CurationError
from flywheel_tasks.curation.traffic import Traffic, read_traffic
from flywheel_tasks.pipeline.stage_io import STATE, StageIO
from flywheel_tasks.privacy.detector import Detector
from flywheel_tasks.privacy.policy import Conversations, protect, protect_card, still_identified
from flywheel_tasks.safety.classifier import classifier_of, unsafe_prompts
from flywheel_tasks.storage.tables import read_rows, write_rows, write_table

Row = dict[str, Any]
Reasons = dict[str, tuple[str, str]]  # prompt id -> reason, detail


def unusable(rows: Sequence[Row], cards: Mapping[str, Row]) -> Reasons:
    """Prompts without a known card or without any text in the last user turn."""
    found: Reasons = {}
    for row in rows:
        if row["card_id"] not in cards:
            found[row["prompt_id"]] = ("missing_card", f"card {row['card_id']} is not in the logs")
        elif not row["history"][-1]["content"].strip():
            found[row["prompt_id"]] = ("empty", "the user's turn has no text")
    return found


class _Rules:
    """The rules on the text of a prompt, for some conversations at once; the first one that holds is its reason."""

    def __init__(self, io: StageIO, cards: Mapping[str, Row], detector: Detector) -> None:
        self._cards, self._detector = cards, detector
        self._names = [card["name"] for card in cards.values()]
        self._privacy, self._safety = io.settings.privacy.policy, io.settings.safety
        self._classifier = classifier_of(io.settings, io.dep("safety_words"))
        self.privacy: dict[str, dict[str, Any]] = {}
        self._conversations = Conversations()

    def __call__(self, rows: list[Row]) -> tuple[list[Row], Reasons]:
        """The rows that stay, identifiers replaced, and why the others do not; the last conversation may go on."""
        last = rows[-1]["conversation_id"]
        out = unusable(rows, self._cards)
        rows = [row for row in rows if row["prompt_id"] not in out]
        protected = protect(
            rows, self._detector, self._privacy, characters=self._names, before=self._conversations
        )
        self._conversations.keep(last)
        self._count(protected.counts)
        out |= protected.reasons
        rows = [row for row in protected.rows if row["prompt_id"] not in out]
        out |= still_identified(rows, self._privacy)
        rows = [row for row in rows if row["prompt_id"] not in out]
        out |= unsafe_prompts(rows, self._classifier, self._safety.threshold)
        return [row for row in rows if row["prompt_id"] not in out], out

    def _count(self, counts: Mapping[str, Mapping[str, Any]]) -> None:
        """Add up: of a conversation that went on, only identifiers that are new were counted."""
        for kind, found in counts.items():
            before = self.privacy.setdefault(kind, {**found, "identifiers": 0, "prompts": 0})
            for name in ("identifiers", "prompts"):
                before[name] += found[name]


def _metrics(traffic: Traffic, rules: _Rules, signals: Mapping[str, int]) -> dict[str, Any]:
    removed, alive = traffic.counts(), traffic.alive.tolist()
    return {
        "read": {"prompts": len(traffic)},
        "kept": len(alive),
        "removed": removed,
        "removed_total": sum(removed.values()),
        "privacy": rules.privacy,
        "users": len({traffic.ids["user_id"][row] for row in alive}),
        "signals": dict(signals),
    }


def run(io: StageIO) -> Mapping[str, Any]:
    """Prompts of ``data/conversations`` to those of ``data/curated``.

    Returns:
        counts read, kept and removed by reason; what is alike; the sample's shares against their targets.

    Raises:
        CurationError: there is no prompt, none is left, a bound cannot be met, or the counts do not add up.
    """
    settings, seed, threads = io.settings.curate, io.settings.seed, io.settings.compute.threads
    detector = Detector(io.settings.privacy)
    cards = {
        row["card_id"]: protect_card(row, detector, io.settings.privacy.policy)
        for row in read_rows(io.dep("data/conversations/cards.parquet"))
    }
    rules, clean = _Rules(io, cards, detector), io.scratch() / "prompts.parquet"
    traffic = read_traffic(io.dep("data/conversations/prompts.parquet"), clean, cards, rules)
    cache = io.root / STATE / "cache" / "embeddings"
    found = diversify(traffic, io.dep("models/embedder"), settings, io.settings.compute, seed, cache)
    if found is None:
        raise CurationError(f"data/curated: all {len(traffic)} prompts were removed: {traffic.counts()}")
    out = io.out("data/curated")
    write_table(duplicates_table(traffic, found), out / "duplicates.parquet")
    write_table(clusters_table(found), out / "clusters.parquet")
    diversity = diversity_metrics(traffic, found, seed, threads)
    add_topics(traffic, found, settings.sample.topics, seed, threads)
    achieved = draw(traffic, settings, seed)
    write_table(sample_table(achieved), out / "sample.parquet")
    write_table(vectors_table(traffic, found), out / "vectors.parquet")
    write_rows(list(cards.values()), CARDS, out / "cards.parquet")
    kept, signals = traffic.write(clean, out / "prompts.parquet", out / "removed.parquet")
    metrics = _metrics(traffic, rules, signals)
    if kept + metrics["removed_total"] != len(traffic):
        removed = metrics["removed_total"]
        raise CurationError(
            f"data/curated: {kept} prompts kept and {removed} removed, but {len(traffic)} read"
        )
    return {**metrics, "diversity": diversity, "sample": sample_metrics(achieved, kept)}
