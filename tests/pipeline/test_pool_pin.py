import pytest

from flywheel_tasks.pipeline.pool_pin import PIN, pin_pool
from flywheel_tasks.settings import LocalPolicy, RemotePolicy
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry_state import ModelRef


def model(generation, digit):
    return ModelRef(
        generation=generation, digest="sha256:" + digit * 64, dvc=None, code_version="c", data_version="d"
    )


def pinned(root, entries, previous):
    placed = []
    pin_pool(
        root, entries, model("g0002", "1"), previous, lambda ref, name: placed.append((ref.generation, name))
    )
    return read_json(root / PIN)["policies"], placed


def test_the_previous_champion_is_there_once_there_is_one(tmp_path):
    rows, placed = pinned(tmp_path, ("champion", "previous"), None)
    assert ([row["name"] for row in rows], placed) == (["champion"], [])
    rows, placed = pinned(tmp_path, ("champion", "previous"), model("g0001", "2"))
    assert [(row["name"], row["model"]) for row in rows] == [("champion", "g0002"), ("previous", "g0001")]
    assert placed == [("g0001", "previous")]
    rows, placed = pinned(tmp_path, ("champion", "previous"), model("base", "1"))  # the same weights
    assert ([row["name"] for row in rows], placed) == (["champion"], [])
    assert pinned(tmp_path, ("champion",), model("g0001", "2"))[1] == []


def test_folders_are_pinned_by_digest_and_endpoints_by_name(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/config.json").write_text("{}")
    entries = (
        LocalPolicy(name="teacher", model="teacher"),
        RemotePolicy(name="big", endpoint="http://localhost:8000/v1", model="large", api_key_env="BIG_KEY"),
    )
    rows, _ = pinned(tmp_path, entries, None)
    assert rows[0]["digest"] == tree_digest(tmp_path / "teacher")
    assert rows[1] == {"name": "big", "endpoint": "http://localhost:8000/v1", "model": "large"}
    before = (tmp_path / PIN).stat().st_mtime_ns
    pinned(tmp_path, entries, None)
    assert (tmp_path / PIN).stat().st_mtime_ns == before
    (tmp_path / "teacher/config.json").write_text("{ }")
    assert pinned(tmp_path, entries, None)[0] != rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": ["champion", "champion"]}, "a name repeats"),
        ({"pool": []}, "pool"),
        ({"kinds": {"policy": "comparison"}}, "kinds must name exactly"),
        ({"reviews": {"policy": 1}}, "reviews must name exactly"),
        ({"questions": [{"name": "place", "text": "x"}]}, "place is a name that annotation uses itself"),
        ({"questions": [{"name": "a", "text": "Costs $5?"}]}, "a variable"),
        ({"questions": [{"name": "a", "text": "x", "choices": ["one"]}]}, "two or more"),
        ({"questions": [{"name": "a", "text": "x"}, {"name": "a", "text": "y"}]}, "a name repeats"),
        ({"candidates": 1}, "candidates"),
    ],
)
def test_settings_of_the_batch_are_checked(change, message):
    from flywheel_tasks.settings import AnnotationBatch, load_settings
    from tests.conftest import PROJECT

    settings = load_settings(PROJECT / "params.yaml").annotation_batch.model_dump()
    with pytest.raises(ValueError, match=message):
        AnnotationBatch.model_validate(settings | change)


def test_rejection_sampling_has_a_pool_and_a_pin_of_its_own(tmp_path):
    from flywheel_tasks.pipeline.pool_pin import REJECTION_PIN

    pinned(tmp_path, ("champion",), None)
    before = read_json(tmp_path / PIN)
    entries = ("champion", RemotePolicy(name="teacher", endpoint="http://localhost:8000/v1", model="large"))
    pin_pool(tmp_path, entries, model("g0002", "1"), None, lambda ref, name: None, REJECTION_PIN)
    assert [row["name"] for row in read_json(tmp_path / REJECTION_PIN)["policies"]] == ["champion", "teacher"]
    assert read_json(tmp_path / PIN) == before


def test_a_name_that_repeats_in_the_pool_of_rejection_sampling_is_an_error():
    from flywheel_tasks.settings import RejectionSample, load_settings
    from tests.conftest import PROJECT

    settings = load_settings(PROJECT / "params.yaml").rejection_sample.model_dump()
    twice = [{"name": "big", "model": "a"}, {"name": "big", "model": "b"}]
    with pytest.raises(ValueError, match="a name repeats"):
        RejectionSample.model_validate(settings | {"pool": twice})
