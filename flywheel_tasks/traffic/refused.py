"""What ingestion refused, in words: how many lines by rule, the first ones, and which fields look like others."""

from collections import Counter
from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from flywheel_tasks.storage.tables import read_batches

_BATCH = 16_384
_EACH = 3  # lines of a rule that are shown
_SHOWN = 10  # lines that are shown
_LONGEST = 200
_WITH = 0.9  # share of the lines that lack a field which have one that may stand for it
_NAMES = 3  # of these that are named


def refused_lines(quarantine: Path) -> tuple[Counter[str], list[str]]:
    """The quarantine of ingestion.

    Args:
        quarantine: its table.

    Returns:
        lines by rule; and the first few of each rule, as ``file:line: rule: detail``.
    """
    counts: Counter[str] = Counter()
    shown: dict[str, list[str]] = {}
    for batch in read_batches(quarantine, _BATCH, ["file", "line", "rule", "detail"]):
        for found in pc.value_counts(batch.column("rule")).to_pylist():
            rule = found["values"]
            counts[rule] += found["counts"]
            lines = shown.setdefault(rule, [])
            if len(lines) < _EACH:
                of = batch.filter(pc.equal(batch.column("rule"), rule)).slice(0, _EACH - len(lines))
                lines += [f"{row['file']}:{row['line']}: {rule}: {row['detail']}" for row in of.to_pylist()]
    return counts, [_one_line(line) for rule in sorted(shown) for line in shown[rule]][:_SHOWN]


def _one_line(text: str) -> str:
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def by_rule(counts: Mapping[str, int]) -> str:
    """Counts by rule as one text."""
    return ", ".join(f"{rule}: {count}" for rule, count in sorted(counts.items())) or "none"


def other_names(drift: Mapping[str, Any]) -> list[str]:
    """In words, which fields that the format lacks stand where a required one is missing.

    Args:
        drift: as :meth:`flywheel_tasks.traffic.drift.Profile.report` has it.
    """
    said = []
    for place, lacking in drift["missing"].items():
        kind, field = place.split(".", 1)
        there = [
            name.split(".", 1)[1]
            for name, of in drift["new"].items()
            if name.startswith(f"{kind}.") and of["share"] >= _WITH * lacking
        ]
        there.sort(key=lambda name: -SequenceMatcher(None, name, field).ratio())
        if names := [_one_line(name)[:40] for name in there if name != "other"][:_NAMES]:
            said.append(
                f"{lacking:.0%} of the events of type {kind} have no field {field}, but have "
                f"{', '.join(names)}, which the format lacks: if {names[0]} is {field} under another name, set "
                f"ingest.rename to {{{names[0]}: {field}}} in params.yaml"
            )
    return said


def no_event(metrics: Mapping[str, Any], location: str, partitions: int, lines: list[str]) -> str:
    """That logs hold no event, and why.

    Args:
        metrics: of ingestion.
        location: of the logs.
        partitions: how many were read.
        lines: some of those refused.
    """
    counts = {rule: n for rule, n in metrics["quarantined"].items() if rule != "total"}
    left_out = "".join(
        f"; {metrics[name]} lines {words}"
        for name, words in (("forgotten", "of users to forget"), ("not_sampled", "of users not sampled"))
        if metrics[name]
    )
    first = f"{location}: the logs hold no event: {metrics['read']} lines in {partitions} partitions, "
    return "\n".join(
        [
            f"{first}broken by rule: {by_rule(counts)}{left_out}",
            *(f"  {line}" for line in lines),
            *other_names(metrics["drift"]),
            *(["docs/raw-logs.md has the format"] if lines else []),
        ]
    )
