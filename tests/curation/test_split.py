import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.curation.split import prove_disjoint, run, split_of
from flywheel_tasks.curation.tables import PROMPTS, CurationError
from flywheel_tasks.settings import SPLITS, Split
from flywheel_tasks.storage.tables import read_rows, write_rows
from tests.curation.rows import prompt

SHARES = {
    "reward_train": 0.36,
    "reward_heldout": 0.16,
    "policy_train": 0.26,
    "policy_heldout": 0.08,
    "evaluation": 0.14,
}
SETTINGS = Split(salt="s", shares=SHARES)


def test_shares_of_users_are_near_the_settings():
    found = [split_of(f"u{k}", SETTINGS) for k in range(20000)]
    for name in SPLITS:
        assert found.count(name) / len(found) == pytest.approx(SHARES[name], abs=0.012)


@given(st.text())
def test_a_split_depends_on_salt_and_user_alone(user):
    assert split_of(user, SETTINGS) == split_of(user, Split(salt="s", shares=dict(reversed(SHARES.items()))))


def test_another_salt_is_another_draw():
    other = Split(salt="t", shares=SHARES)
    assert sum(split_of(f"u{k}", SETTINGS) != split_of(f"u{k}", other) for k in range(500)) > 200


def test_a_user_in_two_splits_is_named():
    with pytest.raises(CurationError, match="user u1 is in both reward_train and evaluation"):
        prove_disjoint({"reward_train": [prompt("p1")], "evaluation": [prompt("p2")]})


def workspace(make_io, root, users):
    io = make_io("split", root)
    rows = [
        prompt(f"p{k}-{j}", user=f"u{k}", source=("user", "internal")[k % 2])
        for k in range(users)
        for j in (0, 1)
    ]
    write_rows(rows, PROMPTS, root / "data/curated/prompts.parquet")
    return io, rows


def test_every_prompt_lands_in_one_split_and_users_are_disjoint(make_io, tmp_path):
    io, rows = workspace(make_io, tmp_path, 80)
    metrics = run(io)
    tables = {name: read_rows(io.out("data/split") / f"{name}.parquet") for name in SPLITS}
    assert sorted(row["prompt_id"] for table in tables.values() for row in table) == sorted(
        r["prompt_id"] for r in rows
    )
    users = [{row["user_id"] for row in table} for table in tables.values()]
    assert sum(map(len, users)) == len(set().union(*users)) == 80
    assert {name: metrics[name]["prompts"] for name in SPLITS} == {name: len(tables[name]) for name in SPLITS}
    assert sum(metrics[name]["by_source"].get("internal", 0) for name in SPLITS) == 80


def test_an_empty_split_is_named(make_io, tmp_path):
    io, _ = workspace(make_io, tmp_path, 1)
    with pytest.raises(CurationError, match=r"data/split: no prompt for (\w+, ){3}\w+: 2 prompts of 1 users"):
        run(io)
