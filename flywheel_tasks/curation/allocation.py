"""How many rows to take of each stratum, so that several marginals are met at once.

Raking (iterative proportional fitting, Deming and Stephan 1940) keeps the joint mix of the traffic as far as the
marginals allow; linear programmes say first which marginals can be had at all, and round the result afterwards
(controlled rounding). All work is on strata: its cost does not grow with the number of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import LinearConstraint, linprog, milp

_HARD = 10_000.0  # what a unit of a broken bound costs; far above the weight of any target
_RAKING_ROUNDS = 400


class InfeasibleError(ValueError):
    """Bounds that cannot be met together; the message names each one and what it lacks."""


@dataclass(frozen=True)
class Marginal:
    """What the rows of one value of one dimension must, and should, add up to.

    Attributes:
        dimension: its name.
        value: of the dimension.
        strata: which strata have it, bool (strata,).
        target: rows wanted; missing it costs, but is no error. None: any number.
        low: rows that it must have.
        high: rows that it may have at most; None: any number.
        weight: what a row off the target costs.
    """

    dimension: str
    value: str
    strata: np.ndarray
    target: float | None = None
    low: int = 0
    high: int | None = None
    weight: float = 1.0

    @property
    def name(self) -> str:
        """For messages, such as ``source=user``."""
        return f"{self.dimension}={self.value}"


@dataclass(frozen=True)
class _Programme:
    """min c x with A x = b, 0 <= x <= upper. Columns: strata, then what is above and below of each row."""

    matrix: sparse.csr_matrix
    right: np.ndarray
    cost: np.ndarray
    upper: np.ndarray
    strata: int
    hard: list[tuple[Marginal, str, int]]  # bound, kind, column of what it lacks


def _programme(marginals: Sequence[Marginal], upper: np.ndarray, fixed: np.ndarray, total: int) -> _Programme:
    """The programme for rows beyond ``fixed``; every row is an equality with its slack columns."""
    strata = len(upper)
    rows: list[np.ndarray] = [np.ones(strata)]
    right, cost, most = [float(total - fixed.sum())], [0.0] * strata, [float(value) for value in upper]
    slack: list[tuple[int, int, float]] = []  # row, column, sign
    hard: list[tuple[Marginal, str, int]] = []

    def column(row: int, sign: float, price: float, bound: float = np.inf) -> int:
        slack.append((row, len(cost), sign))
        cost.append(price)
        most.append(bound)
        return len(cost) - 1

    for marginal in marginals:
        have = float(fixed[marginal.strata].sum())
        if marginal.target is not None:
            rows.append(marginal.strata.astype(float))
            right.append(marginal.target - have)
            column(len(rows) - 1, 1.0, marginal.weight)
            column(len(rows) - 1, -1.0, marginal.weight)
        if marginal.low > 0:
            rows.append(marginal.strata.astype(float))
            right.append(marginal.low - have)
            column(len(rows) - 1, -1.0, 0.0)
            hard.append((marginal, "low", column(len(rows) - 1, 1.0, _HARD)))
        if marginal.high is not None:
            rows.append(marginal.strata.astype(float))
            right.append(marginal.high - have)
            column(len(rows) - 1, 1.0, 0.0)
            hard.append((marginal, "high", column(len(rows) - 1, -1.0, _HARD)))
    matrix = sparse.lil_matrix((len(rows), len(cost)))
    matrix[:, :strata] = sparse.csr_matrix(np.vstack(rows))
    for row, place, sign in slack:
        matrix[row, place] = sign
    return _Programme(matrix.tocsr(), np.array(right), np.array(cost), np.array(most), strata, hard)


def _solve(programme: _Programme, *, whole: bool) -> np.ndarray:
    """The columns' values; ``whole``: the strata get whole numbers."""
    bounds = np.column_stack([np.zeros(len(programme.cost)), programme.upper])
    if whole:
        integral = np.zeros(len(programme.cost))
        integral[: programme.strata] = 1
        found = milp(
            programme.cost,
            constraints=LinearConstraint(programme.matrix, programme.right, programme.right),
            bounds=(bounds[:, 0], bounds[:, 1]),
            integrality=integral,
        )
    else:
        found = linprog(
            programme.cost, A_eq=programme.matrix, b_eq=programme.right, bounds=bounds, method="highs-ds"
        )
    if found.x is None:  # slack columns make every programme solvable, so this is a fault of the solver
        raise RuntimeError(f"the allocation was not solved: {found.message}")
    return np.asarray(found.x)


def _broken(programme: _Programme, values: np.ndarray) -> list[str]:
    said = []
    for marginal, kind, column in programme.hard:
        lacking = float(values[column])
        if lacking > 1e-6:
            amount = f"{lacking:.0f}" if lacking >= 0.5 else f"{lacking:.2f}"
            bound = f"at least {marginal.low}" if kind == "low" else f"at most {marginal.high}"
            said.append(f"{marginal.name}: {bound} ({amount} {'short' if kind == 'low' else 'too many'})")
    return said


def _check(programme: _Programme, values: np.ndarray, total: int) -> None:
    if said := _broken(programme, values):
        raise InfeasibleError(
            f"a sample of {total} cannot meet these bounds together (the least that they miss): {'; '.join(said)}"
        )


def _rake(
    prior: np.ndarray, available: np.ndarray, marginals: Sequence[Marginal], wanted: np.ndarray
) -> np.ndarray | None:
    """The prior scaled to the wanted marginals, never above what is there; None where it does not get there."""
    rows = np.minimum(
        prior * (wanted.sum() / max(len({m.dimension for m in marginals}), 1) / prior.sum()), available
    )
    members = [np.flatnonzero(marginal.strata) for marginal in marginals]
    for _ in range(_RAKING_ROUNDS):
        for inside, want in zip(members, wanted, strict=True):
            have = rows[inside].sum()
            if have > 0:
                rows[inside] = np.minimum(rows[inside] * (want / have), available[inside])
        have = np.array([rows[inside].sum() for inside in members])
        if np.abs(have - wanted).max() < 1e-3:
            return rows
    return rows if np.abs(have - wanted).max() < 0.25 else None


def allocate(
    available: np.ndarray, prior: np.ndarray, marginals: Sequence[Marginal], total: int
) -> np.ndarray:
    """Rows of each stratum, whole numbers that add up to ``total``, int64.

    Bounds hold exactly. Targets are met as nearly as the rows that are there allow, in the weighted sum of absolute
    differences; among such allocations the one nearest to the prior's mix is approached.

    Args:
        available: rows of each stratum that can be taken (strata,).
        prior: weight of each stratum in the traffic (strata,), above 0.
        marginals: targets and bounds.
        total: rows to take, at most all that are available.

    Raises:
        InfeasibleError: bounds contradict each other or the rows that are there.
        ValueError: fewer rows are available than ``total``.
    """
    if total > available.sum():
        raise ValueError(f"{total} rows wanted, {int(available.sum())} available")
    none = np.zeros(len(available))
    whole_programme = _programme(marginals, available, none, total)
    values = _solve(whole_programme, whole=False)
    _check(whole_programme, values, total)
    exact = values[: len(available)]
    aimed = [marginal for marginal in marginals if marginal.target is not None]
    if aimed:
        attained = np.array([exact[marginal.strata].sum() for marginal in aimed])
        raked = _rake(prior.astype(float), available.astype(float), aimed, attained)
        exact = exact if raked is None else raked
    base = np.minimum(np.floor(exact + 1e-9), available)
    rounded = _round(base, exact - base, available, marginals, total)
    if rounded is None:  # the bounds leave no room for this mix: any allocation that keeps them
        values = _solve(whole_programme, whole=True)
        _check(whole_programme, values, total)
        rounded = np.rint(values[: len(available)])
    return rounded.astype(np.int64)


def _round(
    base: np.ndarray, part: np.ndarray, available: np.ndarray, marginals: Sequence[Marginal], total: int
) -> np.ndarray | None:
    """Controlled rounding: 0 or 1 more of each stratum, the larger parts rather; None where bounds would break.

    A vertex of the linear programme has at most as many broken numbers as constraints, so few are left for the
    integer programme.
    """
    if base.sum() > total:
        return None
    upper = np.minimum(available - base, 1.0)
    programme = _programme(marginals, upper, base, total)
    programme.cost[: programme.strata] = -1e-3 * part
    more = _solve(programme, whole=False)[: programme.strata]
    settled = (more < 1e-7) | (more > 1 - 1e-7)
    fixed = base + np.where(settled, np.rint(more), 0.0)
    programme = _programme(marginals, np.where(settled, 0.0, upper), fixed, total)
    programme.cost[: programme.strata] = -1e-3 * part
    values = _solve(programme, whole=True)
    if _broken(programme, values):
        return None
    found: np.ndarray = fixed + np.rint(values[: programme.strata])
    return found if int(found.sum()) == total else None
