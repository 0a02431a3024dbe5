"""The result of the contracts as one HTML file that needs nothing else."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_tasks.contracts.plots import Bars, plot
from flywheel_tasks.contracts.validation import Validated
from flywheel_tasks.report.template import render_file

_LONGEST = 220
_INVISIBLE = ("Cc", "Cf", "Co", "Cs")
BADGES = {"pass": "PASS", "warn": "WARNINGS", "block": "BLOCKED"}


def plain(text: object) -> str:
    """Text of a log as one short line; invisible characters, which could reorder what is shown, are marked."""
    line = " ".join(str(text).split())
    line = line if len(line) <= _LONGEST else line[:_LONGEST] + "…"
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _INVISIBLE else c for c in line)


def number(value: float | None) -> str:
    """A measured number for people."""
    if value is None:
        return "–"
    if float(value).is_integer():
        return f"{int(value):,}"
    if abs(value) < 0.0005:
        return "under 0.001"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """A share in percent; never 0% of something."""
    if not whole or not part:
        return "0%"
    percent = 100 * part / whole
    return f"{percent:.2f}%" if percent >= 0.01 else "under 0.01%"


def render_page(
    validated: Validated,
    *,
    reference: Mapping[str, Any] | None = None,
    compared_with: str | None = None,
    broken_lines: int | None = None,
    problems: Sequence[str] = (),
    what: str = "Data contracts",
    alone: str = "There is no earlier accepted generation to compare distributions with.",
) -> str:
    """The page; every text of a log or a contract is escaped.

    Args:
        validated: the outcome.
        reference: profile of the last accepted generation.
        compared_with: that generation's id.
        broken_lines: lines of the logs that ingestion set aside; None where there was no ingestion.
        problems: what else blocks, in words.
        what: headline.
        alone: said where there is no reference.
    """
    report = validated.report
    tables = report["tables"]
    read = sum(of["read"] for of in tables.values())
    result = "block" if problems else report["result"]
    values = {
        "what": what,
        "result": result,
        "badge": BADGES[result],
        "problems": problems,
        "blocks": validated.outcomes("block"),
        "warnings": validated.outcomes("warn"),
        "tables": tables,
        "read": read,
        "kept": sum(of["kept"] for of in tables.values()),
        "broken_lines": broken_lines,
        "compared_with": compared_with,
        "alone": alone,
        "examples": _by_rule(validated.examples),
        "plots": {table: _plots(validated.profile["tables"][table], reference, table) for table in tables},
        "share": share,
        "is_bars": lambda item: isinstance(item, Bars),
    }
    return render_file(
        "flywheel_tasks.contracts",
        "contracts.html",
        values,
        css="contracts.css",
        filters={"plain": plain, "number": number},
    )


def _by_rule(examples: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in examples:
        found.setdefault((row["table"], row["rule"]), []).append(row)
    return found


def _plots(
    profile: Mapping[str, Any], reference: Mapping[str, Any] | None, table: str
) -> list[tuple[str, Any, int, int | None]]:
    """Title, plot, rows now and rows then of every distribution."""
    earlier = (((reference or {}).get("tables") or {}).get(table) or {}).get("distributions") or {}
    found = []
    for key, now in profile["distributions"].items():
        before = earlier.get(key)
        if (drawn := plot(now, before)) is not None:
            found.append((key, drawn, now["rows"], before["rows"] if before else None))
    return found
