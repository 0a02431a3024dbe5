"""Stage curate: which prompts of the traffic go on, and why each other one does not.

The traffic curation of the paper: filter, diversity, constraints. In order: readable, privacy, safety,
exact and near duplicates, cap per user, stratified sample.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_tasks.curation.duplicates import embed, exact_duplicates, near_duplicates, prompt_text
from flywheel_tasks.curation.sampling import over_cap, stratified
from flywheel_tasks.curation.tables import CARDS, PROMPTS, REMOVED, CurationError
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.privacy.detector import Detector
from flywheel_tasks.privacy.policy import protect, protect_card
from flywheel_tasks.safety.classifier import open_classifier, unsafe_prompts
from flywheel_tasks.storage.tables import read_rows, write_rows

Row = dict[str, Any]
Reasons = dict[str, tuple[str, str]]  # prompt id -> reason, detail


class _Sieve:
    """Rows that are still in, and why the others are out."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.kept = list(rows)
        self.removed: list[Row] = []
        self.privacy: dict[str, dict[str, Any]] = {}

    def drop(self, reasons: Mapping[str, tuple[str, str]]) -> None:
        """Take out the named prompts."""
        for row in self.kept:
            if row["prompt_id"] in reasons:
                reason, detail = reasons[row["prompt_id"]]
                ids = {key: row[key] for key in ("prompt_id", "conversation_id", "user_id")}
                self.removed.append({**ids, "reason": reason, "detail": detail})
        self.kept = [row for row in self.kept if row["prompt_id"] not in reasons]


def unusable(rows: Sequence[Row], cards: Mapping[str, Row]) -> Reasons:
    """Prompts without a known card or without any text in the last user turn."""
    found: Reasons = {}
    for row in rows:
        if row["card_id"] not in cards:
            found[row["prompt_id"]] = ("missing_card", f"card {row['card_id']} is not in the logs")
        elif not row["history"][-1]["content"].strip():
            found[row["prompt_id"]] = ("empty", "the user's turn has no text")
    return found


def _near(io: StageIO, rows: Sequence[Row], cards: Mapping[str, Row]) -> Reasons:
    texts = [prompt_text(row, cards[row["card_id"]]["name"]) for row in rows]
    if not texts:
        return {}
    vectors = embed(texts, io.dep("models/embedder"), io.settings.compute, progress=sys.stderr.isatty())
    found = near_duplicates(vectors, io.settings.curate.duplicate_cosine)
    return {
        rows[row]["prompt_id"]: ("near_duplicate", f"cosine {cosine:.3f} to {rows[kept]['prompt_id']}")
        for row, (kept, cosine) in found.items()
    }


def _stratum(row: Mapping[str, Any]) -> tuple[str, str]:
    return (row["source"], row["card_id"])


def _sift(io: StageIO, prompts: Sequence[Row], cards: Mapping[str, Row], detector: Detector) -> _Sieve:
    """Apply every rule in order."""
    settings, seed = io.settings.curate, io.settings.seed
    sieve = _Sieve(prompts)
    sieve.drop(unusable(sieve.kept, cards))
    names = [card["name"] for card in cards.values()]
    protected = protect(sieve.kept, detector, io.settings.privacy.policy, characters=names)
    sieve.kept = protected.rows
    sieve.drop(protected.reasons)
    sieve.privacy = protected.counts
    classifier = open_classifier(io.settings.safety, io.dep("safety_words"), blocked=settings.blocked_words)
    sieve.drop(unsafe_prompts(sieve.kept, classifier, io.settings.safety.threshold))
    sieve.drop({k: ("duplicate", f"repeats {v}") for k, v in exact_duplicates(sieve.kept).items()})
    sieve.drop(_near(io, sieve.kept, cards))
    most = settings.max_prompts_per_user
    capped = over_cap(sieve.kept, most, seed)
    sieve.drop(dict.fromkeys(capped, ("user_cap", f"more than {most} prompts of the user")))
    # The raw traffic is the target, so that what the filters took from one stratum is made up for within it.
    target = Counter(map(_stratum, prompts))
    chosen = stratified(sieve.kept, _stratum, target, settings.max_prompts, seed, "max_prompts")
    rest = {row["prompt_id"] for row in sieve.kept} - chosen
    sieve.drop(
        dict.fromkeys(rest, ("sampled_out", f"not among the {settings.max_prompts} of the stratified sample"))
    )
    return sieve


def _shares(raw: Sequence[Row], kept: Sequence[Row], key: str) -> dict[str, dict[str, float]]:
    """Share of each value among all prompts and among the kept ones."""
    before, after = Counter(row[key] for row in raw), Counter(row[key] for row in kept)
    return {
        value: {"raw": before[value] / len(raw), "kept": after[value] / len(kept) if kept else 0.0}
        for value in sorted(before)
    }


def _metrics(raw: Sequence[Row], sieve: _Sieve) -> dict[str, Any]:
    kept = sieve.kept
    return {
        "read": {"prompts": len(raw)},
        "kept": len(kept),
        "removed": dict(sorted(Counter(row["reason"] for row in sieve.removed).items())),
        "removed_total": len(sieve.removed),
        "privacy": sieve.privacy,
        "users": len({row["user_id"] for row in kept}),
        "signals": dict(sorted(Counter(name for row in kept for name in row["signals"]).items())),
        "source_share": _shares(raw, kept, "source"),
        "card_share": _shares(raw, kept, "card_id"),
    }


def run(io: StageIO) -> Mapping[str, Any]:
    """Prompts of ``data/conversations`` to those of ``data/curated``.

    Returns:
        counts read, kept and removed by reason, and the share of each source and card before and after.

    Raises:
        CurationError: there is no prompt, none is left, or the counts do not add up.
    """
    detector = Detector(io.settings.privacy)
    cards = {
        row["card_id"]: protect_card(row, detector, io.settings.privacy.policy)
        for row in read_rows(io.dep("data/conversations/cards.parquet"))
    }
    # In the order of the log, so that of two alike prompts the earlier one stays.
    prompts = sorted(
        read_rows(io.dep("data/conversations/prompts.parquet")),
        key=lambda row: (row["time"], row["turn"], row["prompt_id"]),
    )
    if not prompts:
        raise CurationError("data/conversations/prompts.parquet: there is no prompt")
    sieve = _sift(io, prompts, cards, detector)
    kept, removed, read = len(sieve.kept), len(sieve.removed), len(prompts)
    if kept + removed != read:
        raise CurationError(f"data/curated: {kept} prompts kept and {removed} removed, but {read} read")
    if not sieve.kept:
        reasons = dict(Counter(row["reason"] for row in sieve.removed))
        raise CurationError(f"data/curated: all {len(sieve.removed)} prompts were removed: {reasons}")
    out = io.out("data/curated")
    write_rows(list(cards.values()), CARDS, out / "cards.parquet")
    write_rows(sieve.kept, PROMPTS, out / "prompts.parquet")
    write_rows(sieve.removed, REMOVED, out / "removed.parquet")
    return _metrics(prompts, sieve)
