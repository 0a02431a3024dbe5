"""The pairs of launched generations are kept, and placed when a later one is opened."""

import shutil

import pytest
import yaml

from flywheel_tasks.pipeline import earlier_pairs as pins
from flywheel_tasks.pipeline import trained_on
from flywheel_tasks.pipeline.runner import LostDataError, StageFailedError
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry import open_registry
from flywheel_tasks.storage.tables import read_rows
from tests.rewards.conftest import planted_rows, write_pairs

TABLE = "data/preferences/pairs.parquet"


def launch(root, registry, generation, seed):
    """A generation with 8 pairs of one user to train on, and as many to measure on, is launched, its table kept."""
    rows = planted_rows(4, "reward_train", seed) + planted_rows(4, "reward_heldout", seed)
    for row in rows:
        row |= {"pair_id": f"{generation}-{row['pair_id']}", "user_id": f"{row['purpose']}-{generation}"}
    write_pairs(rows, root / TABLE)
    pins.keep(registry, root, generation)
    (root / "dvc").mkdir(exist_ok=True)
    shutil.copy(root / TABLE, root / "dvc" / f"{generation}.parquet")


@pytest.fixture
def launched(tmp_path):
    """A workspace after the launches of g0001 to g0003, and its registry."""
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": {}}))
    registry = open_registry("registry", tmp_path)
    for number in (1, 2, 3):
        launch(tmp_path, registry, f"g000{number}", number)
    (tmp_path / TABLE).unlink()
    return tmp_path, registry


def placer(root, placed):
    def place(ref, name):
        placed.append(ref.generation)
        if not (root / "dvc" / f"{ref.generation}.parquet").exists():
            raise LostDataError("neither here nor in its remote")
        assert ref.dvc.path == TABLE
        shutil.copy(root / "dvc" / f"{ref.generation}.parquet", root / "inputs" / name)
        (root / "inputs" / f"{name}.dvc").write_text("outs: []")

    return place


EARLIER = ["g0004", "g0003", "g0002", "g0001"]


def test_the_newest_launched_generations_are_placed_with_what_they_trained_on(launched):
    root, registry = launched
    found, placed = pins.launched(registry, EARLIER), []
    pins.pin(root, found, 2, (), placer(root, placed))
    assert placed == ["g0003", "g0002"]
    assert sorted(path.name for path in (root / "inputs").rglob("*") if path.is_file()) == [
        "g0002.parquet",
        "g0003.parquet",
        "index.json",
    ]
    index = read_json(root / pins.INDEX)["generations"]
    assert [(row["generation"], row["pairs"], row["reason"]) for row in index] == [
        ("g0003", 8, None),
        ("g0002", 8, None),
    ]
    rows = read_rows(root / pins.FOLDER / "g0002.parquet")
    assert {row["purpose"] for row in rows} == {"reward_train"}
    assert len(rows) == 8
    before = tree_digest(root / pins.FOLDER)
    pins.pin(root, found, 2, (), placer(root, placed))
    assert len(placed) == 2, "what is in place is not placed again"
    assert tree_digest(root / pins.FOLDER) == before
    pins.pin(root, found, 1, (), placer(root, placed))
    assert not (root / pins.FOLDER / "g0002.parquet").exists(), "fewer are asked for"
    pins.pin(root, found, 0, (), placer(root, placed))
    assert read_json(root / pins.INDEX) == pins.NONE


def test_the_table_of_the_generation_that_ran_here_last_is_taken_from_it(launched):
    root, registry = launched
    launch(root, registry, "g0004", 4)
    placed = []
    pins.pin(root, pins.launched(registry, EARLIER), 1, (), placer(root, placed))
    assert placed == []
    assert len(read_rows(root / pins.FOLDER / "g0004.parquet")) == 8


def test_forgotten_users_are_left_out_and_the_other_tables_stay(launched):
    root, registry = launched
    found = pins.launched(registry, EARLIER)
    pins.pin(root, found, 2, (), placer(root, []))
    assert pins.users(root) == ["reward_train-g0002", "reward_train-g0003"]
    other = (root / pins.FOLDER / "g0003.parquet").read_bytes()
    (root / "dvc/g0002.parquet").unlink()  # forgetting has deleted it from DVC
    pins.pin(root, found, 2, ["reward_train-g0002"], placer(root, []))
    assert pins.users(root) == ["reward_train-g0003"]
    assert read_rows(root / pins.FOLDER / "g0002.parquet") == []
    assert (root / pins.FOLDER / "g0003.parquet").read_bytes() == other
    row = read_json(root / pins.INDEX)["generations"][1]
    assert (row["generation"], row["pairs"], row["reason"]) == ("g0002", 8, None)


def test_a_table_that_is_lost_stops_nothing_but_is_named(launched):
    root, registry = launched
    (root / "dvc/g0002.parquet").unlink()
    pins.pin(root, pins.launched(registry, EARLIER), 3, (), placer(root, []))
    reasons = {row["generation"]: row["reason"] for row in read_json(root / pins.INDEX)["generations"]}
    assert reasons == {"g0003": None, "g0002": "DVC has lost the pairs of g0002", "g0001": None}
    assert not (root / pins.FOLDER / "g0002.parquet").exists()


def test_a_remote_that_cannot_be_reached_is_no_loss(launched):
    root, registry = launched

    def unreachable(ref, name):
        raise StageFailedError("dvc pull ended with 1: failed to connect to s3")

    with pytest.raises(StageFailedError, match="failed to connect"):
        pins.pin(root, pins.launched(registry, EARLIER), 1, (), unreachable)
    assert not (root / pins.INDEX).exists(), "nothing is kept of it"


def test_other_files_than_were_launched_are_an_error(launched):
    root, registry = launched

    def another(ref, name):
        raise ValueError("not what was launched")

    with pytest.raises(ValueError, match="not what was launched"):
        pins.pin(root, pins.launched(registry, EARLIER), 1, (), another)


def test_a_repeated_start_keeps_the_first_account(launched):
    root, registry = launched
    before = registry.get_generation("g0003", "pairs.json")
    write_pairs(planted_rows(2, "reward_train"), root / TABLE)
    pins.keep(registry, root, "g0003")
    assert registry.get_generation("g0003", "pairs.json") == before


def test_before_the_first_launch_there_are_none(tmp_path):
    registry = open_registry("registry", tmp_path)
    assert pins.launched(registry, EARLIER) == []
    pins.pin(tmp_path, [], 3, (), placer(tmp_path, []))
    assert read_json(tmp_path / pins.INDEX) == pins.NONE


def test_whose_pairs_are_here_is_part_of_what_models_know(launched):
    root, registry = launched
    pins.pin(root, pins.launched(registry, EARLIER), 1, (), placer(root, []))
    assert trained_on.users_by_split(root) == {"pairs of earlier generations": ["reward_train-g0003"]}
