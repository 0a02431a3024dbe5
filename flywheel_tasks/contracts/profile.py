"""The profile of a generation's tables: counts and distributions that the next generation is compared with.

It holds no text and no user: rows a day, shares of nulls, lengths, and the shares of the categories that the
contracts' drift rules are about.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import numpy as np

from flywheel_tasks.contracts.measures import Drift
from flywheel_tasks.contracts.model import Contract
from flywheel_tasks.contracts.sql import Database, matching, name

FORMAT = 1
_EPOCH = date(1970, 1, 1)
_DAY = 86_400_000_000  # microseconds
_CATEGORIES = 1000  # kept of a column; the others are counted together
# Lengths up to 64 are exact, longer ones within 5% (16 steps for each doubling).
EDGES = np.array(
    sorted({*range(65), *(round(64 * 2 ** (step / 16)) for step in range(16 * 18))}), dtype=np.int64
)


def profile_table(database: Database, view: str, contract: Contract) -> dict[str, Any]:
    """Profile one table.

    Args:
        database: with the table as a view.
        view: its name.
        contract: of the table.

    Returns:
        ``rows``, ``null_share`` by nullable column, ``days`` (rows by day, UTC) if rows have a time, and
        ``distributions`` by :attr:`flywheel_tasks.contracts.measures.Drift.key`.
    """
    it = name(view)
    nullable = [column for column, of in contract.columns.items() if of.nullable]
    counts = ", ".join(["count(*)", *(f"count({name(column)})" for column in nullable)])
    rows, *present = database.one(f"SELECT {counts} FROM {it}")  # noqa: S608
    found: dict[str, Any] = {
        "rows": rows,
        "null_share": {
            column: 1 - count / rows if rows else 0.0 for column, count in zip(nullable, present, strict=True)
        },
        "distributions": {
            drift.key: _distribution(database, it, drift)
            for drift in sorted(drifts(contract), key=lambda drift: drift.key)
        },
    }
    if contract.time is not None:
        day = f"epoch_us({name(contract.time)}) // {_DAY}"
        query = f"SELECT {day}, count(*) FROM {it} GROUP BY 1 ORDER BY 1"  # noqa: S608
        found["days"] = {
            (_EPOCH + timedelta(days=int(number))).isoformat(): count
            for number, count in database.rows(query)
        }
    return found


def drifts(contract: Contract) -> list[Drift]:
    """The distributions that a contract's rules compare."""
    return [rule.measure for rule in contract.table_rules if isinstance(rule.measure, Drift)]


def _distribution(database: Database, view: str, drift: Drift) -> dict[str, Any]:
    column = name(drift.column)
    rows = f"{view} WHERE {matching(drift.where)} AND {column} IS NOT NULL"
    if drift.of == "lengths":
        query = f"SELECT length({column}), count(*) FROM {rows} GROUP BY 1 ORDER BY 1"  # noqa: S608
        counted = np.array(database.rows(query), dtype=np.int64).reshape(-1, 2)
        bins = np.searchsorted(EDGES, counted[:, 0], side="right") - 1
        totals = np.zeros(len(EDGES), np.int64)
        np.add.at(totals, bins, counted[:, 1])
        kept = np.flatnonzero(totals)
        return {
            "of": "lengths",
            "rows": int(totals.sum()),
            "counts": [[int(EDGES[i]), int(totals[i])] for i in kept],
        }
    query = (
        f"SELECT CAST({column} AS VARCHAR), count(*) FROM {rows} "  # noqa: S608
        f"GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_CATEGORIES}"
    )
    counts = dict(database.rows(query))
    (total,) = database.one(f"SELECT count(*) FROM {rows}")  # noqa: S608
    return {
        "of": "categories",
        "rows": total,
        "counts": dict(sorted(counts.items())),
        "other": total - sum(counts.values()),
    }


def rows_a_day(table: Mapping[str, Any]) -> float | None:
    """Mean rows a day, from the first day with rows to the last; None without rows."""
    days = sorted(table.get("days") or {})
    if not days:
        return None
    span = (date.fromisoformat(days[-1]) - date.fromisoformat(days[0])).days + 1
    return float(table["rows"]) / span
