"""Row rules between rows: which rows of a table break one, and why."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from flywheel_tasks.contracts.suite import Constant, References, Rooted, Rule

Frames = Mapping[str, pd.DataFrame]


def _matching(frame: pd.DataFrame, where: Mapping[str, Any]) -> pd.Series:
    """Which rows have all the values of ``where``."""
    matching = pd.Series(True, index=frame.index)
    for column, value in where.items():
        matching &= frame[column] == value
    return matching


def _unmatched(rule: References, frame: pd.DataFrame, frames: Frames) -> dict[int, str]:
    """Rows that refer to nothing, or to a row that is not as it should be."""
    others = frames[rule.table]
    others = others[_matching(others, rule.where)].drop_duplicates(rule.target).set_index(rule.target)
    referring = frame[frame[rule.column].notna()]
    known = referring[rule.column].isin(others.index)
    wanted = "".join(f" with {column} {value}" for column, value in sorted(rule.where.items()))
    broken = {
        index: f"{rule.column} {value} is not among {rule.table}.{rule.target}{wanted}"
        for index, value in referring.loc[~known, rule.column].items()
    }
    referring = referring[known]
    other = others.reindex(referring[rule.column]).set_axis(referring.index)
    checks = [(column, referring[column] != other[column], "differs from") for column in rule.same]
    checks += [(column, referring[column] == other[column], "is the same as") for column in rule.differs]
    if rule.not_before is not None:
        column = rule.not_before
        checks.append((column, referring[column] < other[column], "is before"))
    for column, failing, how in checks:
        for index in referring.index[failing]:
            there = f"that of {rule.column} {referring.at[index, rule.column]}: {other.at[index, column]}"
            broken.setdefault(index, f"{column} {referring.at[index, column]} {how} {there}")
    return broken


def _varying(rule: Constant, frame: pd.DataFrame) -> dict[int, str]:
    """Rows of groups with more than one value."""
    values = frame.groupby(rule.within)[rule.column].transform("nunique")
    return {
        index: f"{rule.within} {frame.at[index, rule.within]} has {values[index]} values of {rule.column}"
        for index in frame.index[values > 1]
    }


def _unrooted(rule: Rooted, frame: pd.DataFrame) -> dict[int, str]:
    """Roots that are not as they should be, or rows whose parents lead to no root."""
    is_root = frame[rule.parent].isna()
    if rule.only == "roots":
        wanted = ", ".join(f"{column} {value}" for column, value in sorted(rule.root_where.items()))
        return {
            index: f"{rule.target} {frame.at[index, rule.target]} has no {rule.parent}, but not {wanted}"
            for index in frame.index[is_root & ~_matching(frame, rule.root_where)]
        }
    parent_of = dict(zip(frame[rule.target], frame[rule.parent].where(~is_root, None), strict=True))
    reaches = dict.fromkeys(frame.loc[is_root, rule.target], True)
    for start in parent_of:
        path: dict[str, None] = {}
        node = start
        while node not in reaches and node not in path and node in parent_of:
            path[node] = None
            node = parent_of[node]
        reaches |= dict.fromkeys(path, reaches.get(node, False))
    return {
        index: f"{rule.target} {target} leads to no first message through {rule.parent}"
        for index, target in frame[rule.target].items()
        if not reaches[target]
    }


def broken_rows(rule: Rule, table: str, frames: Frames) -> dict[int, str]:
    """Rows of a table that break a relation.

    Args:
        rule: one that has a relation.
        table: the table it belongs to.
        frames: all tables, with the rows that are still there.

    Returns:
        the reason by row index, in the order of the table.
    """
    frame = frames[table]
    relation = rule.relation
    if isinstance(relation, References):
        broken = _unmatched(relation, frame, frames)
    elif isinstance(relation, Constant):
        broken = _varying(relation, frame)
    elif isinstance(relation, Rooted):
        broken = _unrooted(relation, frame)
    else:
        raise ValueError(f"rule {rule.name} is no relation")
    return dict(sorted(broken.items()))
