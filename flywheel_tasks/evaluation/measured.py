"""Looking a metric up among the stages' metrics: its number and interval, or in words what is wrong with it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["number", "percent", "points"]
_SUFFIXES: dict[Unit, str] = {"number": "", "percent": "%", "points": " points"}


@dataclass(frozen=True)
class Measured:
    """A metric as found.

    Attributes:
        value: its number; None where nothing usable was found.
        problem: what is wrong with it, in words; empty where nothing is.
        absent: it is null and the stage says why.
        bounds: of its 95% interval, where it has one.
        n: how many rows it is from, where that is told.
        note: what the stage says of a value, such as how much of it is assumed; maybe empty.
    """

    value: float | None
    problem: str = ""
    bounds: tuple[float, float] | None = None
    n: int | None = None
    absent: bool = False
    note: str = ""

    def interval(self, unit: Unit = "number") -> str:
        """The interval in words, and the note, in brackets; maybe empty."""
        parts = []
        if self.bounds is not None:
            low, high = (f"{_scaled(bound, unit):.3g}" for bound in self.bounds)
            per_cent = "%" if unit == "percent" else ""
            parts.append(f"95% interval {low}{per_cent} to {high}{_SUFFIXES[unit]}")
            if self.n is not None:
                parts.append(f"n = {self.n}")
        if self.note:
            parts.append(self.note)
        return f" ({', '.join(parts)})" if parts else ""


def find(metrics: Mapping[str, Any], metric: str) -> Measured:
    """Look a metric up.

    Args:
        metrics: of all stages, by stage.
        metric: ``<stage>.<path>``; the end of the path is a number, or an estimate with ``value``.
    """
    node: Any = metrics
    parent: Any = None
    for key in metric.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return Measured(None, "is missing")
        parent, node = node, node[key]
    if isinstance(node, Mapping):
        if "value" not in node:
            return Measured(None, "is a group of metrics, not a number")
        parent, node = node, node["value"]
    if node is None:
        why = parent.get("reason") if isinstance(parent, Mapping) else None
        text = f"was not measured: {why}" if why else "is null: nothing was measured"
        return Measured(None, text, absent=bool(why))
    if isinstance(node, bool) or not isinstance(node, int | float):
        return Measured(None, f"is not a number but {type(node).__name__}")
    if not math.isfinite(node):
        return Measured(None, f"is {node}, not a finite number")
    if not isinstance(parent, Mapping) or parent.get("value") != node:
        return Measured(float(node))
    n = parent.get("n")
    return Measured(
        float(node),
        "",
        _bounds(parent),
        n if isinstance(n, int) else None,
        note=str(parent.get("reason") or ""),
    )


def _bounds(parent: Mapping[str, Any]) -> tuple[float, float] | None:
    low, high = parent.get("low"), parent.get("high")
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        return None
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else None


def _scaled(value: float, unit: Unit) -> float:
    return value if unit == "number" else round(value * 100, 10)  # 0.57 is 57, not 56.99999999999999


def limit(value: float, unit: Unit = "number") -> str:
    """A limit as it was set, in a unit: a share of 0.6 is 60%, a difference of 0.05 is 5 points."""
    return f"{_scaled(value, unit):g}{_SUFFIXES[unit]}"


def number(value: float, *limits: float | None, unit: Unit = "number") -> str:
    """A number in four digits, a share in three; in more where rounding would show it at or beyond a limit.

    Args:
        value: as measured.
        limits: that it is compared with.
        unit: that it is shown in.
    """
    shown = _scaled(value, unit) + 0.0  # no -0
    bounds = [_scaled(bound, unit) for bound in limits if bound is not None and bound != value]
    for digits in range(4 if unit == "number" else 3, 17):
        short = f"{shown:.{digits}g}"
        if all(
            (float(short) > bound, float(short) < bound) == (shown > bound, shown < bound) for bound in bounds
        ):
            break
    return short + _SUFFIXES[unit]
