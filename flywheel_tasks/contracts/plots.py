"""Distributions of two generations as the numbers of an inline SVG."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel_tasks.contracts.distances import categories, lengths

_TICKS = (1, 10, 100, 1000, 10_000, 100_000, 1_000_000)
_BARS = 8
_STEPS = 32  # of a length curve


@dataclass(frozen=True)
class Curve:
    """Shares of lengths on a logarithmic axis, in a box of 100 by 100.

    Attributes:
        now: points of the polyline.
        before: the same of the last accepted generation; empty if there is none.
        ticks: position and text of the axis' marks.
    """

    now: str
    before: str
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Bars:
    """Shares of the largest categories, in percent of the largest.

    Attributes:
        rows: name, share now, share before (None if there is no earlier generation), and the two widths.
        rest: how many categories are not shown.
    """

    rows: list[tuple[str, float, float | None, float, float]]
    rest: int


def plot(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> Curve | Bars | None:
    """A distribution of a profile, with that of the last accepted generation where there is one.

    Args:
        now: see :func:`flywheel_tasks.contracts.profile.profile_table`.
        before: of the same kind.

    Returns:
        None if there is nothing to draw.
    """
    if not now["rows"]:
        return None
    before = before if before and before["rows"] else None
    return _curve(now, before) if now["of"] == "lengths" else _bars(now, before)


def _curve(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> Curve:
    values, mine, its = lengths(now, before or now)
    last = math.log10(max(10.0, float(values[-1]) + 1))
    bins = np.minimum((np.log10(values + 1) / last * _STEPS).astype(int), _STEPS - 1)
    shares = np.zeros((2, _STEPS))
    np.add.at(shares[0], bins, mine)
    np.add.at(shares[1], bins, its)
    top = float((shares if before else shares[:1]).max())

    def points(share: np.ndarray) -> str:
        return " ".join(
            f"{100 * (i + 0.5) / _STEPS:.2f},{97 - 94 * float(y) / top:.2f}" for i, y in enumerate(share)
        )

    ticks = [(100 * math.log10(t + 1) / last, f"{t:,}") for t in _TICKS if math.log10(t + 1) <= last]
    return Curve(points(shares[0]), points(shares[1]) if before else "", ticks)


def _bars(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> Bars:
    names, mine, its = categories(now, before or now)
    order = sorted(range(len(names)), key=lambda i: (-max(mine[i], its[i]), names[i]))
    order = [i for i in order if max(mine[i], its[i]) > 0]
    shown = order[:_BARS]
    top = max(max(mine[i], its[i]) for i in shown)
    rows = [
        (
            names[i],
            float(mine[i]),
            float(its[i]) if before else None,
            100 * float(mine[i] / top),
            100 * float(its[i] / top) if before else 0.0,
        )
        for i in shown
    ]
    return Bars(rows, len(order) - len(shown))
