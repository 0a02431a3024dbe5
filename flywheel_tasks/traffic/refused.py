"""What ingestion refused, in words: how many lines by rule, the first ones, and which fields look like others."""

from collections import Counter
from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from flywheel_tasks.storage.tables import read_batches
from flywheel_tasks.traffic.drift import OTHER
from flywheel_tasks.traffic.events import is_name

_BATCH = 16_384
EACH = 3  # lines or rows of a rule that an error shows
SHOWN = 10  # lines or rows that it shows
_LONGEST = 200
_WITH = 0.9  # at least: the smaller by the larger share of events, of those without a field and of those with another
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
            if len(lines) < EACH:
                of = batch.filter(pc.equal(batch.column("rule"), rule)).slice(0, EACH - len(lines))
                lines += [f"{row['file']}:{row['line']}: {rule}: {row['detail']}" for row in of.to_pylist()]
    return counts, [_one_line(line) for rule in sorted(shown) for line in shown[rule]][:SHOWN]


def _one_line(text: str) -> str:
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def left_out(metrics: Mapping[str, Any]) -> list[tuple[int, str]]:
    """How many lines of ingestion are left out on purpose, and whose they are, where there are any."""
    kinds = (("forgotten", "of users to forget"), ("not_sampled", "of users not sampled"))
    return [(metrics[name], whose) for name, whose in kinds if metrics[name]]


def other_names(drift: Mapping[str, Any]) -> list[str]:
    """In words, which fields that the format lacks stand where a required one is missing.

    Args:
        drift: as :meth:`flywheel_tasks.traffic.drift.Profile.report` has it.
    """
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    kinds: dict[str, str] = {}
    for place, lacking in drift["missing"].items():
        kind, field = place.split(".", 1)
        there = {
            name.split(".", 1)[1]: of["type"]
            for name, of in drift["new"].items()
            if name.startswith(f"{kind}.") and _WITH * lacking <= of["share"] <= lacking / _WITH
        }
        there = {name: kind for name, kind in there.items() if name != OTHER and is_name(name)}
        likely = sorted(there, key=lambda name: -SequenceMatcher(None, name, field).ratio())[:_NAMES]
        if likely:
            kinds[likely[0]] = there[likely[0]]
            alike.setdefault((field, tuple(likely)), []).append(f"{kind} ({lacking:.0%})")
    said = []
    for (field, names), types in alike.items():
        text = (
            f"there is no field {field} in events of type {', '.join(types)}, but {', '.join(names)}, which the "
            f"format lacks: if {names[0]} is {field} under another name, set ingest.rename to "
            f"{{{names[0]}: {field}}} in params.yaml"
        )
        if kinds[names[0]] == "number":
            text += f"; and write it as a string, for {names[0]} is a number"
        said.append(text)
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
    rules = ", ".join(f"{rule}: {count}" for rule, count in sorted(counts.items())) or "none"
    others = "".join(f"; {count} lines {whose}" for count, whose in left_out(metrics))
    first = f"{location}: the logs hold no event: {metrics['read']} lines in {partitions} partitions, "
    return "\n".join(
        [
            f"{first}broken by rule: {rules}{others}",
            *(f"  {line}" for line in lines),
            *other_names(metrics["drift"]),
            *(["docs/raw-logs.md has the format"] if counts else []),
        ]
    )
