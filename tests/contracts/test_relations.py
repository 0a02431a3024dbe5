from pathlib import Path

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_tasks.contracts.relations import broken_rows
from flywheel_tasks.contracts.suite import Rule, load_contracts
from flywheel_tasks.contracts.validate import Validation

CONTRACTS = Path(__file__).parents[2] / "data_contracts"
LOADED = load_contracts(CONTRACTS)

BOOKS = pd.DataFrame(
    {
        "book": ["b1", "b2", "b3", "b4"],
        "author": ["a1", "a9", None, "a2"],
        "country": ["x", "x", "x", "y"],
        "year": [1990, 1990, 1990, 1950],
    },
    index=[10, 11, 12, 13],
)
AUTHORS = pd.DataFrame(
    {"author": ["a1", "a2"], "country": ["y", "y"], "year": [1960, 1960], "alive": [True, False]}
)
FRAMES = {"books": BOOKS, "authors": AUTHORS}


def references(**also) -> Rule:
    where = {"column": "author", "table": "authors", "target": "author", **also}
    return Rule.model_validate({"name": "r", "references": where})


def test_a_reference_to_nothing_is_broken_and_a_missing_one_is_not():
    assert broken_rows(references(), "books", FRAMES) == {11: "author a9 is not among authors.author"}


def test_references_check_the_row_referred_to():
    assert list(broken_rows(references(where={"alive": True}), "books", FRAMES)) == [11, 13]
    assert list(broken_rows(references(same=["country"]), "books", FRAMES)) == [10, 11]
    assert list(broken_rows(references(differs=["country"]), "books", FRAMES)) == [11, 13]
    assert broken_rows(references(not_before="year"), "books", FRAMES)[13] == (
        "year 1950 is before that of author a2: 1960"
    )


def test_constant_breaks_all_rows_of_a_mixed_group():
    rule = Rule.model_validate({"name": "r", "constant": {"column": "year", "within": "country"}})
    assert broken_rows(rule, "books", FRAMES) == {}
    mixed = BOOKS.assign(year=[1990, 1991, 1990, 1950])
    assert list(broken_rows(rule, "books", {"books": mixed})) == [10, 11, 12]


def rooted(only: str) -> Rule:
    tree = {"parent": "parent", "target": "id", "root_where": {"kind": "ok"}, "only": only}
    return Rule.model_validate({"name": "r", "rooted": tree})


def test_roots_must_be_as_they_should():
    tree = pd.DataFrame({"id": ["a", "b", "c"], "parent": [None, None, "a"], "kind": ["ok", "no", "no"]})
    assert broken_rows(rooted("roots"), "t", {"t": tree}) == {1: "id b has no parent, but not kind ok"}


@given(st.lists(st.integers(-1, 12), min_size=1, max_size=12))
def test_rows_that_lead_to_no_root_are_those_found_by_following_each_for_long(parents):
    """Oracle: following any chain for more steps than there are rows ends at a root, or never does."""
    tree = pd.DataFrame(
        {
            "id": [str(n) for n in range(len(parents))],
            "parent": pd.array([None if p < 0 else str(p) for p in parents], dtype="str"),
            "kind": "ok",
        }
    )
    lost = []
    for start in range(len(parents)):
        node = start
        for _ in range(len(parents) + 1):
            if 0 <= node < len(parents):
                node = parents[node]
        if node != -1:
            lost.append(start)
    assert list(broken_rows(rooted("others"), "t", {"t": tree})) == lost


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
def logs(draw) -> dict[str, pd.DataFrame]:
    """Two sound conversations of four messages, with signals; then some fields are changed."""
    messages = [
        {
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
    names = ("message_id", "conversation_id", "user_id")
    signals = [{name: messages[n][name] for name in names} for n in (1, 3, 5, 7)]
    for _ in range(draw(st.integers(0, 3))):
        field = draw(st.sampled_from(sorted(CHANGES)))
        draw(st.sampled_from(messages))[field] = draw(st.sampled_from(CHANGES[field]))
    for signal in signals:
        if draw(st.booleans()):
            signal["message_id"] = draw(st.sampled_from(IDS))
    types = {name: "int64" if name == "time" else "str" for name in messages[0]}
    return {
        "cards": pd.DataFrame({"card_id": draw(st.sampled_from([["a", "b"], ["a"]]))}, dtype="str"),
        "messages": pd.DataFrame(messages).astype(types),
        "signals": pd.DataFrame(signals).astype("str"),
    }


@settings(deadline=None, max_examples=25)
@given(logs())
def test_what_passes_is_sound_and_nothing_is_lost(frames):
    """Soundness is checked here row by row, by the rules of the documented format."""
    ours = {table: LOADED[table] for table in frames}
    validation = Validation(ours, CONTRACTS, dict(frames))
    validation.check_relations()
    for table, frame in frames.items():
        kept, removed = validation.frames[table].index, validation.quarantine.get(table, {})
        assert sorted([*kept, *removed]) == list(frame.index)
    cards = set(validation.frames["cards"]["card_id"])
    messages = {row["message_id"]: row for row in validation.frames["messages"].to_dict("records")}
    conversations: dict[str, set] = {}
    for row in messages.values():
        assert row["card_id"] in cards
        conversations.setdefault(row["conversation_id"], set()).add((row["user_id"], row["card_id"]))
        steps = 0
        while not pd.isna(row["parent_id"]):
            parent = messages[row["parent_id"]]
            assert parent["conversation_id"] == row["conversation_id"]
            assert parent["role"] != row["role"]
            assert parent["time"] <= row["time"]
            row, steps = parent, steps + 1
            assert steps <= len(messages)
        assert row["role"] == "user"
    assert all(len(pairs) == 1 for pairs in conversations.values())
    for row in validation.frames["signals"].to_dict("records"):
        reply = messages[row["message_id"]]
        assert reply["role"] == "assistant"
        assert (reply["conversation_id"], reply["user_id"]) == (row["conversation_id"], row["user_id"])
