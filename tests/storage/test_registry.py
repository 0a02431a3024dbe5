"""The registry: no change is lost, every rule holds, the history can be trusted."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel_tasks.storage.objects import ObjectStore, open_store
from flywheel_tasks.storage.registry import Registry, RegistryConflict
from flywheel_tasks.storage.registry_state import RegistryError
from tests.storage.registry_parts import (
    BASE,
    NEW,
    VERDICT,
    WEEK,
    analysed,
    approve_launch,
    approve_promotion,
    launched,
    model,
)

# Changes


def test_no_concurrent_change_is_lost(store: ObjectStore) -> None:
    writers, each = 4, 3

    def write(writer: int) -> None:
        registry = Registry(store)
        for number in range(each):
            approve_launch(registry, generation=f"g{writer}{number:03d}")

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    changes = Registry(store).history()
    assert [change.sequence for change in changes] == list(range(1, writers * each + 1))
    recorded = {approval.generation for approval in changes[-1].state.approvals}
    assert recorded == {f"g{writer}{number:03d}" for writer in range(writers) for number in range(each)}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writers=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_any_mix_of_writers_keeps_every_change(
    writers: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = open_store("registry", tmp_path_factory.mktemp("mix"))
    fixed = datetime(2026, 11, 2, tzinfo=UTC)  # equal clocks: only the numbers can tell changes apart

    def write(job: tuple[int, int]) -> None:
        for number in range(job[1]):
            approve_launch(Registry(store, now=lambda: fixed), generation=f"g{job[0]}{number:03d}")

    with ThreadPoolExecutor(len(writers)) as pool:
        list(pool.map(write, enumerate(writers)))
    assert len(Registry(store).state().approvals) == len(Registry(store).history()) == sum(writers)


def test_a_lost_race_for_the_champion_is_a_conflict(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = registry.head

    def stale():
        found = head()
        monkeypatch.setattr(registry, "head", head)
        approve_launch(registry)  # comes between the look and the write
        return found

    monkeypatch.setattr(registry, "head", stale)
    with pytest.raises(RegistryConflict, match="bootstrap: another change came first"):
        registry.bootstrap(model("base", BASE), by="setup")
    assert [change.kind for change in registry.history()] == ["approval_launch"]


def test_a_whole_generation_is_its_history(tmp_path: Path) -> None:
    start = datetime(2026, 11, 2, 3, tzinfo=UTC)
    registry = Registry(open_store("registry", tmp_path), now=lambda: start)
    launched(registry)
    experiment = registry.state().running()
    assert experiment is not None
    assert experiment.control == registry.state().champion
    assert (experiment.started_at, experiment.ends_at) == (start, start + WEEK)
    analysed(registry)
    approve_promotion(registry)
    state = registry.promote("g0001", by="scheduler")
    assert state.champion == model("g0001", NEW)
    assert state.previous == model("base", BASE)
    assert state.candidate is None
    assert state.experiments["g0001"].status == "promoted"
    assert registry.restore("complaints", by="ada").champion == model("base", BASE)
    with pytest.raises(RegistryError, match="name an earlier one with --to"):
        registry.restore("again", by="ada")
    kinds = [(change.kind, change.by, change.at) for change in registry.history()]
    assert [kind for kind, _, _ in kinds] == [
        "bootstrap",
        "approval_launch",
        "experiment_started",
        "analysis",
        "approval_promotion",
        "promoted",
        "restored",
    ]
    assert {at for _, _, at in kinds} == {start}


def test_the_same_answer_is_recorded_once(registry: Registry) -> None:
    at = datetime(2026, 11, 2, tzinfo=UTC)
    for _ in range(2):
        registry.record_approval(
            "launch",
            generation="g0001",
            model_digest=NEW,
            verdict_digest=VERDICT,
            decision="approve",
            by="ada",
            at=at,
        )
    assert len(registry.history()) == 1


# A damaged history


def test_a_gap_in_the_history_is_an_error(registry: Registry, tmp_path: Path) -> None:
    launched(registry)
    (tmp_path / "registry/changes/00000002.json").unlink()
    with pytest.raises(RegistryError, match=r"00000002\.json is missing"):
        registry.state()


@pytest.mark.parametrize(
    ("old", "new"), [('"sequence": 1', '"sequence": 7'), ('"kind":', '"kinds":'), ("{", "")]
)
def test_a_changed_entry_is_an_error(registry: Registry, tmp_path: Path, old: str, new: str) -> None:
    registry.bootstrap(model("base", BASE), by="setup")
    file = tmp_path / "registry/changes/00000001.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(RegistryError, match=r"00000001\.json"):
        registry.state()


# Inputs of generations


def test_inputs_of_a_generation_never_change(store: ObjectStore) -> None:
    registry = Registry(store)
    registry.put_generation("g0001", "logs.json", b"{}")
    registry.put_generation("g0001", "logs.json", b"{}")
    with pytest.raises(RegistryError, match="kept already, with other contents"):
        registry.put_generation("g0001", "logs.json", b"[]")
    assert registry.get_generation("g0001", "logs.json") == b"{}"
    assert registry.generations() == ["g0001"]
    with pytest.raises(RegistryError, match="there is no generations/g0002"):
        registry.get_generation("g0002", "logs.json")


def test_any_earlier_champion_can_come_back_and_a_restoration_be_taken_back(tmp_path: Path) -> None:
    registry = Registry(open_store("registry", tmp_path))
    launched(registry)
    analysed(registry)
    approve_promotion(registry)
    registry.promote("g0001", by="scheduler")
    with pytest.raises(RegistryError, match="g0001 is champion now"):
        registry.restore("why", by="ada", to="g0001")
    with pytest.raises(RegistryError, match="g0007 has never been champion; these have: base, g0001"):
        registry.restore("why", by="ada", to="g0007")
    registry.restore("by mistake", by="ada")
    assert registry.restore("it was a mistake", by="ada", to="g0001").champion == model("g0001", NEW)
    assert registry.restore("trained on a forgotten user", by="ada", to="base").champion == model(
        "base", BASE
    )
    assert [change.detail for change in registry.history()][-2:] == [
        {"reason": "it was a mistake", "to": "g0001"},
        {"reason": "trained on a forgotten user", "to": "base"},
    ]
