import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.curation.disjoint import nearest, prove_disjoint
from flywheel_tasks.curation.split import TRAINING, run, split_of
from flywheel_tasks.curation.tables import PROMPTS, CurationError
from flywheel_tasks.settings import SPLITS
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.tables import read_rows, write_rows, write_table
from tests.curation.rows import prompt

SHARES = {
    "reward_train": 0.36,
    "reward_heldout": 0.16,
    "policy_train": 0.26,
    "policy_heldout": 0.08,
    "evaluation": 0.14,
}


def test_shares_of_users_are_near_the_settings():
    found = [split_of(f"u{k}", "s", SHARES) for k in range(20000)]
    for name in SPLITS:
        assert found.count(name) / len(found) == pytest.approx(SHARES[name], abs=0.012)


@given(st.text())
def test_a_split_depends_on_salt_and_user_alone(user):
    assert split_of(user, "s", SHARES) == split_of(user, "s", dict(reversed(SHARES.items())))


@given(st.text(), st.floats(0, 0.07))
def test_a_larger_evaluation_share_takes_from_its_neighbour_only(user, more):
    other = SHARES | {
        "evaluation": SHARES["evaluation"] + more,
        "policy_heldout": SHARES["policy_heldout"] - more,
    }
    before, after = split_of(user, "s", SHARES), split_of(user, "s", other)
    assert before == after or (before, after) == ("policy_heldout", "evaluation")


def test_another_salt_is_another_draw():
    assert sum(split_of(f"u{k}", "s", SHARES) != split_of(f"u{k}", "t", SHARES) for k in range(500)) > 200


def unit(angle):
    return np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"user": "u1", "text": "b"}, "user u1 is in both reward_train and evaluation"),
        ({"user": "u2", "text": "b", "conversation": "c-p1"}, "conversation c-p1 is in both"),
        ({"user": "u2", "text": "A  "}, "text of prompt p2 is in both reward_train and evaluation"),
        (
            {"user": "u2", "text": "b", "angle": 0.1},
            r"evaluation prompt p2 has cosine 0.995 to p1 in reward_train",
        ),
        ({"user": "u2", "text": "b", "angle": float("nan")}, "has cosine nan to p1"),
    ],
)
def test_what_is_shared_is_named(other, message):
    first = prompt("p1", "a", user="u1")
    second = prompt("p2", other["text"], user=other["user"])
    second["conversation_id"] = other.get("conversation", "c-p2")
    splits = {"reward_train": [first], "evaluation": [second]}
    vectors = {"reward_train": unit(0.0)[None], "evaluation": unit(other.get("angle", 1.5))[None]}
    with pytest.raises(CurationError, match=message):
        prove_disjoint(splits, vectors, 0.9)


def test_the_largest_cosine_is_told():
    splits = {"policy_train": [prompt("p1", "a", user="u1")], "evaluation": [prompt("p2", "b", user="u2")]}
    vectors = {"policy_train": unit(0.0)[None], "evaluation": unit(1.0)[None]}
    assert prove_disjoint(splits, vectors, 0.9) == pytest.approx(np.cos(1.0))


def test_nearest_is_exact_and_may_have_nothing_to_search():
    random = np.random.default_rng(0)
    asked, others = random.standard_normal((1500, 4)), random.standard_normal((40_000, 4))
    place, cosine = nearest(asked, others)
    rows = random.integers(1500, size=20)
    whole = asked[rows] @ others.T
    assert (place[rows] == whole.argmax(axis=1)).all()
    assert np.allclose(cosine[rows], whole.max(axis=1))
    assert nearest(asked[:2], others[:0])[0].tolist() == [-1, -1]


def write_curated(root, rows, vectors):
    write_rows(rows, PROMPTS, root / "data/curated/prompts.parquet")
    flat = pa.array(np.asarray(vectors, dtype=np.float32).reshape(-1))
    table = {
        "prompt_id": [row["prompt_id"] for row in rows],
        "vector": pa.FixedSizeListArray.from_arrays(flat, 32),
    }
    write_table(pa.table(table), root / "data/curated/vectors.parquet")


def workspace(make_io, root, users, earlier=(), overrides=None, sources=("user", "internal")):
    io = make_io("split", root, overrides)
    rows = [
        prompt(f"p{k}-{j}", f"{k} {j}", user=f"u{k}", source=sources[k % 2])
        for k in range(users)
        for j in (0, 1)
    ]
    random = np.random.default_rng(0)
    vectors = random.standard_normal((len(rows), 32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    write_curated(root, rows, vectors)
    write_json({"earlier": list(earlier)}, root / "inputs/splits.json")
    return io, rows, vectors


def tables(io):
    return {name: read_rows(io.out("data/split") / f"{name}.parquet") for name in (*SPLITS, "removed")}


def test_every_prompt_lands_in_one_split_and_users_are_disjoint(make_io, tmp_path):
    io, rows, _ = workspace(make_io, tmp_path, 80)
    metrics = run(io)
    found = tables(io)
    assert sorted(row["prompt_id"] for table in found.values() for row in table) == sorted(
        r["prompt_id"] for r in rows
    )
    users = [{row["user_id"] for row in found[name]} for name in SPLITS]
    assert sum(map(len, users)) == len(set().union(*users)) == 80
    assert {name: metrics[name]["prompts"] for name in SPLITS} == {name: len(found[name]) for name in SPLITS}
    assert sum(metrics[name]["by_source"].get("internal", 0) for name in SPLITS) == 80
    assert (metrics["removed"], metrics["moved_users"]) == ({}, 0)
    assert -1 <= metrics["largest_evaluation_cosine"] <= 0.93
    record = read_json(io.out("data/split") / "record.json")
    assert sorted(item["prompt_id"] for item in record["evaluated"]) == sorted(
        row["prompt_id"] for row in found["evaluation"]
    )


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (("user", "internal"), ""),
        (
            ("user", "user"),
            "no internal prompts, so the gate will block this generation: .*of source internal",
        ),
        (
            ("internal", "internal"),
            "no user prompts, so the gate will block this generation: .*of source user",
        ),
    ],
)
def test_a_source_without_evaluation_prompts_is_told_before_training(
    make_io, tmp_path, caplog, sources, said
):
    io, _, _ = workspace(make_io, tmp_path, 80, sources=sources)
    run(io)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == bool(said)
    assert not said or re.search(said, warned[0])


def test_a_source_that_only_missed_the_evaluation_split_is_told_so(make_io, tmp_path, caplog):
    io, rows, vectors = workspace(make_io, tmp_path, 80, sources=("user", "user"))
    split = io.settings.split
    outside = next(r for r in rows if split_of(r["user_id"], split.salt, split.shares) != "evaluation")
    outside["source"] = "internal"
    write_curated(tmp_path, rows, vectors)
    run(io)
    assert "none of the 1 internal prompts fell there" in caplog.text


def test_evaluation_prompts_near_another_split_are_removed_with_the_reason(make_io, tmp_path):
    io, rows, vectors = workspace(make_io, tmp_path, 80)
    run(io)
    before = tables(io)
    near, far = before["evaluation"][0]["prompt_id"], before["policy_train"][0]["prompt_id"]
    places = {row["prompt_id"]: place for place, row in enumerate(rows)}
    vectors[places[near]] = vectors[places[far]]
    write_curated(tmp_path, rows, vectors)
    assert run(io)["removed"] == {"near_other_split": 1}
    after = tables(io)
    assert after["removed"][0]["detail"] == "cosine 1.000 to a prompt of policy_train"
    assert after["removed"][0]["prompt_id"] == near
    assert far in {row["prompt_id"] for row in after["policy_train"]}


def test_users_that_a_change_moves_across_and_used_prompts_are_removed(make_io, tmp_path):
    io, rows, _ = workspace(make_io, tmp_path / "a", 120)
    run(io)
    first = {"generation": "g0001", **read_json(io.out("data/split") / "record.json")}
    io, rows, _ = workspace(
        make_io, tmp_path / "b", 120, [{**first, "evaluated": []}], {"split.salt": "other"}
    )
    metrics = run(io)
    found = tables(io)
    assert metrics["removed"].keys() == {"moved_user"}
    assert metrics["moved_users"] == len({row["user_id"] for row in found["removed"]}) > 0

    def then(user):
        return split_of(user, first["salt"], first["shares"])

    assert all(then(row["user_id"]) not in TRAINING for row in found["evaluation"])
    assert all(then(row["user_id"]) != "evaluation" for name in TRAINING for row in found[name])
    assert sum(map(len, found.values())) == len(rows)

    used = {**first, "evaluated": first["evaluated"][:3]}
    io, rows, _ = workspace(make_io, tmp_path / "c", 120, [used])
    assert run(io)["removed"] == {"evaluated_before": 3}
    assert not {row["prompt_id"] for row in tables(io)["evaluation"]} & {
        item["prompt_id"] for item in used["evaluated"]
    }


def test_all_prompts_used_before_is_an_error(make_io, tmp_path):
    io, _, _ = workspace(make_io, tmp_path, 80)
    run(io)
    first = {"generation": "g0001", **read_json(io.out("data/split") / "record.json")}
    write_json({"earlier": [first]}, tmp_path / "inputs/splits.json")
    with pytest.raises(
        CurationError, match=r"no prompt for evaluation: .*'evaluated_before'.*split\.reuse_evaluation"
    ):
        run(io)
    again, _, _ = workspace(make_io, tmp_path, 80, [first], {"split.reuse_evaluation": True})
    assert run(again)["evaluation"]["prompts"] == len(first["evaluated"])


def test_vectors_of_other_prompts_are_refused(make_io, tmp_path):
    io, rows, _ = workspace(make_io, tmp_path, 20)
    write_rows(rows[::-1], PROMPTS, tmp_path / "data/curated/prompts.parquet")
    with pytest.raises(CurationError, match=r"vectors\.parquet: its prompts are not those"):
        run(io)


def test_an_empty_split_is_named(make_io, tmp_path):
    io, _, _ = workspace(make_io, tmp_path, 1)
    with pytest.raises(CurationError, match=r"data/split: no prompt for (\w+, ){3}\w+: 2 prompts of 1 users"):
        run(io)
