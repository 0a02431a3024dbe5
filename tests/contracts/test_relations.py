from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel_tasks.contracts import quarantine
from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.contracts.model import Contract
from flywheel_tasks.contracts.relations import Relations
from flywheel_tasks.contracts.schema import type_name
from flywheel_tasks.contracts.sql import Database

LOADED = load_contracts(Path(__file__).parents[2] / "data_contracts")

BOOKS = [
    {"book": "b1", "author": "a1", "country": "x", "year": 1990},
    {"book": "b2", "author": "a9", "country": "x", "year": 1990},
    {"book": "b3", "author": None, "country": "x", "year": 1990},
    {"book": "b4", "author": "a2", "country": "y", "year": 1950},
]
AUTHORS = [
    {"author": "a1", "country": "y", "year": 1960, "alive": True},
    {"author": "a2", "country": "y", "year": 1960, "alive": False},
]


def contract(table: str, rows: list[dict], key: str, *rules: dict, unique: str | None = None) -> Contract:
    """A contract whose columns are those of the rows."""
    schema = pa.Table.from_pylist(rows).schema
    ids = [{"name": "id", "expectation": "expect_column_values_to_be_unique", "kwargs": {"column": unique}}]
    return Contract.model_validate(
        {
            "table": table,
            "description": "-",
            "paths": [],
            "key": key,
            "columns": {
                item.name: {"type": type_name(item.type), "nullable": True, "description": "-"}
                for item in schema
            },
            "row_rules": [{"why": "-", **rule} for rule in (*(ids if unique else ()), *rules)],
        }
    )


def settled(folder: Path, contracts: dict[str, Contract], tables: dict[str, pa.Table]):
    """``({table: {row: (rule, detail)}}, alive)`` after the relations are settled."""
    with Database(folder / "scratch", 200, threads=1) as database:
        for table, rows in tables.items():
            pq.write_table(rows, folder / f"{table}.parquet")
            database.attach(table, folder / f"{table}.parquet")
        alive = {table: np.ones(rows.num_rows, bool) for table, rows in tables.items()}
        found = Relations(database, contracts, alive).settle()
        quarantine.collect(database, contracts, found, None, {})
        removed: dict[str, dict[int, tuple[str, str]]] = {table: {} for table in tables}
        for table, _, _, line, rule, detail in database.rows("SELECT * FROM set_aside ORDER BY ALL"):
            assert line - 1 not in removed[table]
            removed[table][line - 1] = (rule, detail)
        return removed, alive


def books_and_authors(folder, books=BOOKS, **also):
    rule = {"name": "r", "references": {"column": "author", "table": "authors", "target": "author", **also}}
    contracts = {
        "authors": contract("authors", AUTHORS, "author", unique="author"),
        "books": contract("books", books, "book", rule),
    }
    tables = {"authors": pa.Table.from_pylist(AUTHORS), "books": pa.Table.from_pylist(books)}
    removed, _ = settled(folder, contracts, tables)
    assert removed["authors"] == {}
    return {row: detail for row, (_, detail) in sorted(removed["books"].items())}


def test_a_reference_to_nothing_is_broken_and_a_missing_one_is_not(tmp_path):
    assert books_and_authors(tmp_path) == {1: "author a9 is not among authors.author"}


def test_references_check_the_row_referred_to(tmp_path):
    assert books_and_authors(tmp_path, where={"alive": True}) == {
        1: "author a9 is not among authors.author with alive True",
        3: "author a2 is not among authors.author with alive True",
    }
    assert books_and_authors(tmp_path, same=["country"]) == {
        0: "country x differs from that of author a1: y",
        1: "author a9 is not among authors.author",
    }
    assert list(books_and_authors(tmp_path, differs=["country"])) == [1, 3]
    assert books_and_authors(tmp_path, not_before="year")[3] == "year 1950 is before that of author a2: 1960"


def test_references_of_some_rows_and_of_values_under_two_names(tmp_path):
    assert books_and_authors(tmp_path, when={"country": "y"}, where={"alive": True}) == {
        3: "author a2 is not among authors.author with alive True"
    }
    books = [*BOOKS, {"book": "x", "author": "a1", "country": "y", "year": 1990}]
    assert books_and_authors(tmp_path, books, when={"year": 1990}, equal={"book": "country"}) == {
        0: "book differs from country of author a1",
        1: "author a9 is not among authors.author",
        4: "book differs from country of author a1",
    }


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.none() | st.integers(0, 3), st.booleans()), min_size=1, max_size=8
    )
)
def test_the_greatest_of_a_group_is_found_by_comparing_with_each(tmp_path, drawn):
    rule = {"name": "r", "greatest": {"column": "n", "within": "g", "where": {"best": True}}}
    schema = pa.schema([("id", pa.string()), ("g", pa.string()), ("n", pa.int64()), ("best", pa.bool_())])
    rows = [{"id": str(at), "g": g, "n": n, "best": best} for at, (g, n, best) in enumerate(drawn)]
    contracts = {"t": contract("t", [{"id": "", "g": "", "n": 0, "best": True}], "id", rule)}
    removed, _ = settled(tmp_path, contracts, {"t": pa.Table.from_pylist(rows, schema=schema)})
    wrong = [
        at
        for at, row in enumerate(rows)
        if row["best"]
        and row["n"] is not None
        and any(o["g"] == row["g"] and o["n"] is not None and o["n"] > row["n"] for o in rows)
    ]
    assert sorted(removed["t"]) == wrong


def test_a_reference_to_a_value_that_comes_several_times_needs_one_of_its_rows(tmp_path):
    authors = [*AUTHORS, {**AUTHORS[0], "country": None}]
    rule = {"name": "r", "references": {"column": "author", "table": "authors", "target": "author"}}
    never = {"name": "n", "references": {"column": "country", "table": "authors", "target": "author"}}
    contracts = {
        "authors": contract("authors", authors, "author", never),
        "books": contract("books", BOOKS, "book", rule),
    }
    tables = {"authors": pa.Table.from_pylist(authors), "books": pa.Table.from_pylist(BOOKS)}
    removed, alive = settled(tmp_path, contracts, tables)
    assert alive["authors"].tolist() == [False, False, True]
    assert sorted(removed["books"]) == [1, 3]  # a2 has lost its only row, a1 one of two


def test_constant_breaks_all_rows_of_a_mixed_group(tmp_path):
    rule = {"name": "r", "constant": {"column": "year", "within": "country"}}
    for years, broken in (([1990, 1990, 1990, 1950], []), ([1990, 1991, 1990, 1950], [0, 1, 2])):
        rows = [{**book, "year": year} for book, year in zip(BOOKS, years, strict=True)]
        contracts = {"books": contract("books", rows, "book", rule)}
        removed, _ = settled(tmp_path, contracts, {"books": pa.Table.from_pylist(rows)})
        assert sorted(removed["books"]) == broken


def test_constant_within_several_columns_breaks_all_rows_of_a_mixed_group(tmp_path):
    rule = {"name": "r", "constant": {"column": "value", "within": ["x", "y"]}}
    rows = [
        {"id": n, "x": x, "y": y, "value": value}
        for n, (x, y, value) in enumerate(
            [(1, 1, 5), (1, 2, 6), (1, 1, 5), (2, 1, 7), (2, 1, 8), (1, None, 9)]
        )
    ]
    removed, _ = settled(tmp_path, {"t": contract("t", rows, "id", rule)}, {"t": pa.Table.from_pylist(rows)})
    assert {row: detail for row, (_, detail) in removed["t"].items()} == {
        3: "x 2, y 1 has several values of value, here 7",
        4: "x 2, y 1 has several values of value, here 8",
    }


def tree(folder: Path, rows: list[dict], only: str, **also) -> dict[int, str]:
    rooted = {"parent": "parent", "target": "id", "root_where": {"kind": "ok"}, "only": only, **also}
    schema = pa.schema([(name, pa.string()) for name in ("id", "parent", "kind", "talk")])
    empty = dict.fromkeys(schema.names, "")
    contracts = {"t": contract("t", [empty], "id", {"name": "r", "rooted": rooted}, unique="id")}
    removed, _ = settled(folder, contracts, {"t": pa.Table.from_pylist(rows, schema=schema)})
    return {row: detail for row, (_, detail) in removed["t"].items()}


def test_roots_must_be_as_they_should(tmp_path):
    rows = [
        {"id": "a", "parent": None, "kind": "ok"},
        {"id": "b", "parent": None, "kind": "no"},
        {"id": "c", "parent": "a", "kind": "no"},
    ]
    assert tree(tmp_path, rows, "roots") == {1: "id b has no parent, but not kind ok"}


_SOLE = {"within": "talk", "sole_is_free": True}


def test_a_bad_root_takes_its_group_with_it(tmp_path):
    rows = [
        {"id": "0", "parent": None, "kind": "ok", "talk": "x"},
        {"id": "1", "parent": None, "kind": "no", "talk": "x"},
        {"id": "2", "parent": None, "kind": "ok", "talk": "y"},
        {"id": "3", "parent": "2", "kind": "no", "talk": "y"},
        {"id": "4", "parent": None, "kind": "ok", "talk": None},
        {"id": "5", "parent": None, "kind": "no", "talk": None},
    ]
    words = "talk x has a row with no parent, but not kind ok"
    found = tree(tmp_path, rows, "roots", within="talk")
    assert (sorted(found), found[0], found[1]) == ([0, 1, 5], words, words)
    free = tree(tmp_path, [*rows, {"id": "6", "parent": None, "kind": "no", "talk": "z"}], "roots", **_SOLE)
    words = "talk x has several rows with no parent, of which one has not kind ok"
    assert free == {0: words, 1: words}
    with pytest.raises(ValueError, match="sole_is_free needs within"):
        tree(tmp_path, rows, "roots", sole_is_free=True)
    with pytest.raises(ValueError, match="within is for only: roots"):
        tree(tmp_path, rows, "others", within="talk")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-1, 12), min_size=1, max_size=12))
def test_rows_that_lead_to_no_root_are_those_found_by_following_each_for_long(tmp_path, parents):
    """Oracle: following any chain for more steps than there are rows ends at a root, or never does."""
    rows = [{"id": str(n), "parent": None if p < 0 else str(p), "kind": "ok"} for n, p in enumerate(parents)]
    lost = []
    for start in range(len(parents)):
        node = start
        for _ in range(len(parents) + 1):
            if 0 <= node < len(parents):
                node = parents[node]
        if node != -1:
            lost.append(start)
    assert sorted(tree(tmp_path, rows, "others")) == lost


IDS = [f"m{n}" for n in range(9)]
# What a field of a message may be changed to; the last id is of no message.
CHANGES = {
    "conversation_id": ["c0", "c1"],
    "user_id": ["u0", "u1"],
    "card_id": ["a", "b", "z"],
    "role": ["user", "assistant"],
    "time": [0, 9],
    "parent_id": [None, *IDS],
}


@st.composite
def logs(draw) -> dict[str, list[dict]]:
    """Two sound conversations of four messages, with signals; then some fields are changed."""
    messages = [
        {
            "event_id": f"e{n}",
            "conversation_id": f"c{n // 4}",
            "message_id": IDS[n],
            "user_id": f"u{n // 4}",
            "card_id": "ab"[n // 4],
            "source": "user",
            "role": ("user", "assistant")[n % 2],
            "time": n,
            "parent_id": IDS[n - 1] if n % 4 else None,
        }
        for n in range(8)
    ]
    names = ("event_id", "message_id", "conversation_id", "user_id")
    signals = [{name: messages[n][name] for name in names} for n in (1, 3, 5, 7)]
    for _ in range(draw(st.integers(0, 3))):
        field = draw(st.sampled_from(sorted(CHANGES)))
        draw(st.sampled_from(messages))[field] = draw(st.sampled_from(CHANGES[field]))
    for signal in signals:
        if draw(st.booleans()):
            signal["message_id"] = draw(st.sampled_from(IDS))
    cards = [{"event_id": card, "card_id": card} for card in draw(st.sampled_from(["ab", "a"]))]
    return {"cards": cards, "messages": messages, "signals": signals}


def naive(tables: dict[str, list[dict]], contracts: dict[str, Contract]) -> dict[str, dict[int, str]]:
    """Oracle: every rule anew after each removal, row by row, from its definition."""
    left = {table: dict(enumerate(rows)) for table, rows in tables.items()}
    removed: dict[str, dict[int, str]] = {table: {} for table in tables}

    def breaks(rule, table, row) -> bool:
        if (r := rule.references) is not None:
            if row[r.column] is None:
                return False
            others = [o for o in left[r.table].values() if o[r.target] == row[r.column]]
            return not others or any(
                (
                    any(others[0][c] != v for c, v in r.where.items()),
                    any(row[c] != others[0][c] for c in r.same),
                    any(row[c] == others[0][c] for c in r.differs),
                    r.not_before is not None and row[r.not_before] < others[0][r.not_before],
                )
            )
        if (c := rule.constant) is not None:
            same = [o for o in left[table].values() if all(o[g] == row[g] for g in c.within)]
            return len({o[c.column] for o in same}) > 1
        parents = {o[rule.rooted.target]: o[rule.rooted.parent] for o in left[table].values()}
        if (r := rule.rooted).only == "roots":
            group = [o for o in left[table].values() if o[r.within] == row[r.within]] if r.within else [row]
            if r.sole_is_free and sum(o[r.parent] is None for o in group) == 1:
                return False
            return any(o[r.parent] is None and any(o[c] != v for c, v in r.root_where.items()) for o in group)
        node = row[rule.rooted.target]
        for _ in range(len(parents) + 1):
            node = parents.get(node)
        return node is not None or not _ends(parents, row[rule.rooted.target])

    while True:
        for table, rule in ((t, r) for t, c in contracts.items() for r in c.relations()):
            if broken := [n for n, row in left[table].items() if breaks(rule, table, row)]:
                for n in broken:
                    del left[table][n]
                    removed[table][n] = rule.name
                break
        else:
            return removed


def _ends(parents: dict, node: str) -> bool:
    """Whether the chain from a row ends at a row without a parent, not at a row that is not there."""
    while node in parents:
        if parents[node] is None:
            return True
        node = parents[node]
    return False


def assert_sound(left: dict[str, list[dict]]) -> None:
    """What passes keeps the rules of the documented log format, told here without the contracts."""
    cards = {row["card_id"] for row in left["cards"]}
    messages = {row["message_id"]: row for row in left["messages"]}
    conversations: dict[str, set] = {}
    roots: dict[str, set] = defaultdict(set)
    for row in messages.values():
        assert row["card_id"] in cards
        conversations.setdefault(row["conversation_id"], set()).add((row["user_id"], row["card_id"]))
        steps = 0
        while row["parent_id"] is not None:
            parent = messages[row["parent_id"]]
            assert parent["conversation_id"] == row["conversation_id"]
            assert parent["role"] != row["role"]
            assert parent["time"] <= row["time"]
            row, steps = parent, steps + 1
            assert steps <= len(messages)
        roots[row["conversation_id"]].add((row["message_id"], row["role"]))
    for found in roots.values():
        assert len(found) == 1 or {role for _, role in found} == {"user"}
    assert all(len(pairs) == 1 for pairs in conversations.values())
    for row in left["signals"]:
        reply = messages[row["message_id"]]
        assert reply["role"] == "assistant"
        assert (reply["conversation_id"], reply["user_id"]) == (row["conversation_id"], row["user_id"])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs())
def test_the_same_rows_go_under_the_same_rules_as_when_every_rule_is_tried_anew(tmp_path, rows):
    contracts = {
        table: LOADED[table].model_copy(
            update={"columns": {name: LOADED[table].columns[name] for name in rows[table][0]}}
        )
        for table in rows
    }
    tables = {
        table: pa.Table.from_pylist(
            of, schema=pa.schema([(name, pa.int64() if name == "time" else pa.string()) for name in of[0]])
        )
        for table, of in rows.items()
    }
    removed, alive = settled(tmp_path, contracts, tables)
    rules = {table: {row: rule for row, (rule, _) in of.items()} for table, of in removed.items()}
    assert rules == naive(rows, contracts)
    for table, of in removed.items():
        assert sorted([*of, *np.flatnonzero(alive[table])]) == list(range(len(rows[table])))
        assert all(detail for _, detail in of.values())
    assert_sound({t: [rows[t][row] for row in np.flatnonzero(left)] for t, left in alive.items()})
