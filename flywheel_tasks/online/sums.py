"""Sums of a table of users, exact and small.

The sums (and sums of products) of integer columns are integers: the same in any order and on any number of threads, so
an analysis of the same logs has the same digest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import ibis.expr.types as ir
import tea_tasting as tt

# Sums of squared milliseconds outgrow 64 bits.
_WIDE = "decimal(38, 0)"


class _Aggregates(tt.aggr.Aggregates):
    """As tea-tasting has them, but no variance of a ratio is below zero.

    Where every user's ratio is the same, floats may say -1e-17 instead of 0, and the square root of it fails.
    """

    def with_zero_div(self) -> tt.aggr.Aggregates:
        made = super().with_zero_div()
        return _Aggregates(count_=made.count_, mean_=made.mean_, var_=made.var_, cov_=made.cov_)

    def ratio_var(self, numer: str | None, denom: str | None) -> float | int:
        return max(super().ratio_var(numer, denom), 0)


@dataclass(frozen=True)
class Sums:
    """Exact sums of one group of users.

    Attributes:
        n: users.
        sums: sum of each column.
        products: sum of the product of each pair of columns, by the sorted pair (a column with itself included).
    """

    n: int
    sums: Mapping[str, int]
    products: Mapping[tuple[str, str], int]

    def total(self, column: str) -> int:
        """Sum of a column."""
        return self.sums[column]

    def aggregates(self, columns: Iterable[str] | None = None) -> tt.aggr.Aggregates:
        """Mean, variance and covariance as tea-tasting takes them; correctly rounded.

        Args:
            columns: which; by default all.
        """
        n, wanted = self.n, set(self.sums if columns is None else columns)
        centred = {
            (a, b): Fraction(n * product - self.sums[a] * self.sums[b], n * (n - 1))
            for (a, b), product in self.products.items()
            if a in wanted and b in wanted
        }
        return _Aggregates(
            count_=n,
            mean_={name: self.sums[name] / n for name in sorted(wanted)},
            var_={a: float(value) for (a, b), value in centred.items() if a == b},
            cov_={pair: float(value) for pair, value in centred.items() if pair[0] != pair[1]},
        )


def sums_by(
    users: ir.Table, by: Sequence[str], pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, ...], Sums]:
    """Sums of groups of users, in one pass of the database.

    Args:
        users: rows with integer columns.
        by: columns that make the groups.
        pairs: whose products are needed; each column's own sum and square come with it.

    Returns:
        the sums by the group's values, sorted.
    """
    wanted = {(min(pair), max(pair)) for pair in pairs}
    columns = sorted({name for pair in wanted for name in pair})
    products = sorted(wanted | {(name, name) for name in columns})
    rows = (
        users.group_by(list(by))
        .aggregate(
            n=users.count(),
            **{f"s_{name}": users[name].sum().cast(_WIDE) for name in columns},
            **{f"p_{i}": (users[a] * users[b]).sum().cast(_WIDE) for i, (a, b) in enumerate(products)},
        )
        .to_pyarrow()
        .to_pylist()
    )
    found = {
        tuple(str(row[name]) for name in by): Sums(
            n=row["n"],
            sums={name: int(row[f"s_{name}"]) for name in columns},
            products={pair: int(row[f"p_{i}"]) for i, pair in enumerate(products)},
        )
        for row in rows
    }
    return dict(sorted(found.items()))
