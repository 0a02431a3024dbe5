"""The reward models of a launched generation are kept, and placed when the next one is opened."""

import shutil

import pytest
import yaml

from flywheel_tasks.pipeline import reward_model_pin as pins
from flywheel_tasks.pipeline.runner import LostDataError, StageFailedError
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry import SPLIT, open_registry

MD5 = "0123456789abcdef0123456789abcdef.dir"


@pytest.fixture
def launched(tmp_path):
    """A workspace whose generation g0001 is launched, and its registry."""
    outs = []
    for kind in pins.KINDS:
        folder = tmp_path / f"models/{kind}_rm"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(kind)
        outs.append({"path": f"models/{kind}_rm", "md5": MD5})
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": {"train": {"outs": outs}}}))
    registry = open_registry("registry", tmp_path)
    pins.keep(registry, tmp_path, "g0001")
    registry.put_generation("g0001", SPLIT, b'{"salt": "s", "shares": {"evaluation": 1.0}, "evaluated": []}')
    return tmp_path, registry


def placer(root, placed):
    def place(ref, name):
        placed.append((ref.generation, ref.dvc.path, name))
        shutil.copytree(root / ref.dvc.path, root / "inputs" / name, dirs_exist_ok=True)

    return place


def test_the_newest_launched_generation_counts(launched):
    root, registry = launched
    placed = []
    found = pins.launched(registry, ["g0003", "g0002", "g0001"], placer(root, placed))
    assert found["generation"] == "g0001"
    assert placed == [
        ("g0001", "models/pairwise_rm", "earlier_pairwise_rm"),
        ("g0001", "models/pointwise_rm", "earlier_pointwise_rm"),
    ]
    pins.pin(root, found, placer(root, placed))
    assert len(placed) == 2, "what is in place is not placed again"
    pinned = read_json(root / pins.PIN)
    assert pinned["split"] == {"salt": "s", "shares": {"evaluation": 1.0}}
    for kind, model in pinned["models"].items():
        assert tree_digest(root / model["path"]) == model["digest"] == tree_digest(root / f"models/{kind}_rm")
    shutil.rmtree(root / "inputs/earlier_pairwise_rm")
    (root / "inputs/earlier_pointwise_rm/model.safetensors").write_text("other")
    pins.pin(root, found, placer(root, placed))
    assert len(placed) == 4, "a worker that lacks them, or has others, gets them"


def test_a_repeated_start_keeps_the_first_account(launched):
    root, registry = launched
    before = registry.get_generation("g0001", "reward_models.json")
    (root / "dvc.lock").write_text((root / "dvc.lock").read_text() + "# another line\n")
    pins.keep(registry, root, "g0001")
    assert registry.get_generation("g0001", "reward_models.json") == before


def test_before_the_first_launch_there_is_none_and_that_is_said(tmp_path):
    registry = open_registry("registry", tmp_path)
    found = pins.launched(registry, ["g0002", "g0001"], placer(tmp_path, []))
    assert found == pins.NONE
    for opened in (found, None):  # None: opened by a release that pinned none
        pins.pin(tmp_path, opened, placer(tmp_path, []))
        assert read_json(tmp_path / pins.PIN) == pins.NONE


def test_models_that_are_lost_stop_nothing_but_are_named(launched):
    root, registry = launched

    def gone(ref, name):
        raise LostDataError("neither here nor in its remote")

    found = pins.launched(registry, ["g0001"], gone)
    assert found["models"] == {}
    assert found["reason"] == "no earlier model: DVC has lost those of g0001"
    pins.pin(root, found, gone)
    assert read_json(root / pins.PIN) == found


def test_models_that_are_lost_after_the_opening_are_named_and_may_come_back(launched):
    root, registry = launched
    found = pins.launched(registry, ["g0001"], placer(root, []))
    shutil.rmtree(root / "inputs/earlier_pairwise_rm")

    def gone(ref, name):
        raise LostDataError("neither here nor in its remote")

    pins.pin(root, found, gone)
    pinned = read_json(root / pins.PIN)
    assert (pinned["generation"], pinned["models"]) == ("g0001", {})
    assert pinned["reason"] == "no earlier model: DVC has lost those of g0001"
    pins.pin(root, found, placer(root, []))
    assert sorted(read_json(root / pins.PIN)["models"]) == ["pairwise", "pointwise"]


def test_a_remote_that_cannot_be_reached_is_no_loss(launched):
    root, registry = launched

    def unreachable(ref, name):
        raise StageFailedError("dvc pull ended with 1: failed to connect to s3")

    with pytest.raises(StageFailedError, match="failed to connect"):
        pins.launched(registry, ["g0001"], unreachable)
    found = pins.launched(registry, ["g0001"], placer(root, []))
    shutil.rmtree(root / "inputs/earlier_pairwise_rm")
    with pytest.raises(StageFailedError, match="failed to connect"):
        pins.pin(root, found, unreachable)
    assert not (root / pins.PIN).exists(), "nothing is kept of it"


def test_other_files_than_were_launched_are_an_error(launched):
    _, registry = launched

    def another(ref, name):
        raise ValueError("not what was launched")

    with pytest.raises(ValueError, match="not what was launched"):
        pins.launched(registry, ["g0001"], another)
