"""The registry: no change is lost, every rule holds, the history can be trusted."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.objects import Exists, FolderStore, MissingObjectError, ObjectStore, open_store
from flywheel_tasks.storage.registry import Registry, RegistryConflict, open_registry
from flywheel_tasks.storage.registry_state import (
    Analysis,
    Arm,
    DvcRef,
    GuardrailCheck,
    ModelRef,
    Override,
    Plan,
    RegistryError,
    State,
)

BASE, NEW, OTHER, VERDICT, FOUND = (bytes_digest(text) for text in (b"base", b"new", b"other", b"v", b"a"))
WEEK = timedelta(days=7)


@pytest.fixture(scope="module")
def s3(s3_server):
    s3_server.create_bucket(Bucket="flywheel")


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return open_store("registry", tmp_path)
    request.getfixturevalue("s3")
    return open_store(f"s3://flywheel/{tmp_path.name}", tmp_path)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry("registry", tmp_path)


def model(generation: str, digest: str) -> ModelRef:
    return ModelRef(
        generation=generation,
        digest=digest,
        dvc=DvcRef(path="models/policy", md5="0" * 32 + ".dir"),
        code_version="abc",
        data_version=OTHER,
    )


def plan(generation: str = "g0001", digest: str = NEW, control: str = BASE) -> Plan:
    arms = (
        Arm(name="control", share=0.1, model="base", digest=control),
        Arm(name="candidate", share=0.1, model=generation, digest=digest),
    )
    return Plan(
        experiment=generation,
        generation=generation,
        salt="s",
        layer="policy",
        arms=arms,
        verdict_digest=VERDICT,
        model_digest=digest,
    )


def approve_launch(registry: Registry, decision: str = "approve", **changes: str) -> None:
    shown = {"generation": "g0001", "model_digest": NEW, "verdict_digest": VERDICT} | changes
    registry.record_approval("launch", decision=decision, by="ada", **shown)


def approve_promotion(registry: Registry, decision: str = "approve", **changes: str) -> None:
    shown = {"generation": "g0001", "model_digest": NEW, "analysis_digest": FOUND} | changes
    registry.record_approval("promotion", decision=decision, by="ada", **shown)


def launched(registry: Registry) -> None:
    registry.bootstrap(model("base", BASE), by="setup")
    approve_launch(registry)
    registry.start_experiment(plan(), model("g0001", NEW), by="ada", duration=WEEK)


def analysed(registry: Registry, result: str = "valid") -> None:
    reasons = () if result == "valid" else ("too few users",)
    registry.record_analysis("g0001", Analysis(result=result, digest=FOUND, reasons=reasons), by="scheduler")


# Objects


def test_an_object_is_created_once(store: ObjectStore) -> None:
    store.create("changes/00000001.json", b"first")
    with pytest.raises(Exists):
        store.create("changes/00000001.json", b"second")
    assert store.get("changes/00000001.json") == b"first"
    store.create("generations/g0001/logs.json", b"{}")
    assert store.list("changes/") == ["changes/00000001.json"]
    assert store.list("") == ["changes/00000001.json", "generations/g0001/logs.json"]
    assert store.list("none/") == []


def test_a_missing_object_is_named(store: ObjectStore) -> None:
    with pytest.raises(MissingObjectError, match=r"changes/00000009\.json"):
        store.get("changes/00000009.json")


@pytest.mark.parametrize("key", ["../x", "/x", "a//b", "a/../b", "", ".hidden", "a/.b"])
def test_keys_stay_inside(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="not an object key"):
        FolderStore(tmp_path / "store").create(key, b"")


@pytest.mark.parametrize("location", ["gs://bucket/x", "s3://", "s3:///x"])
def test_other_places_are_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a place for objects"):
        open_store(location, tmp_path)


def test_one_of_many_creators_wins(store: ObjectStore) -> None:
    def create(number: int) -> bool:
        try:
            store.create("changes/00000001.json", str(number).encode())
        except Exists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert won.count(True) == 1
    assert store.get("changes/00000001.json") == str(won.index(True)).encode()
    assert store.list("") == ["changes/00000001.json"]  # no leftovers


def test_a_put_repeated_after_a_lost_answer_is_no_refusal(s3: None, tmp_path: Path) -> None:
    store = open_store("s3://flywheel/lost", tmp_path)
    send = store._client.put_object

    def answer_lost(**request):
        send(**request)
        return send(**request)  # what botocore does when the first answer does not arrive

    store._client.put_object = answer_lost
    store.create("changes/00000001.json", b"mine")
    with pytest.raises(Exists):
        store.create("changes/00000001.json", b"other")


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
    head = registry._head

    def stale():
        found = head()
        monkeypatch.setattr(registry, "_head", head)
        approve_launch(registry)  # comes between the look and the write
        return found

    monkeypatch.setattr(registry, "_head", stale)
    with pytest.raises(RegistryConflict, match="bootstrap: another change came first"):
        registry.bootstrap(model("base", BASE), by="setup")
    assert [change.kind for change in registry.history()] == ["approval_launch"]


def test_a_whole_generation_is_its_history(tmp_path: Path) -> None:
    start = datetime(2026, 11, 2, 3, tzinfo=UTC)
    registry = Registry(open_store("registry", tmp_path), now=lambda: start)
    launched(registry)
    experiment = registry.state().running()
    assert experiment is not None
    assert (experiment.started_at, experiment.ends_at) == (start, start + WEEK)
    analysed(registry)
    approve_promotion(registry)
    state = registry.promote("g0001", by="scheduler")
    assert state.champion == model("g0001", NEW)
    assert state.previous == model("base", BASE)
    assert state.candidate is None
    assert state.experiments["g0001"].status == "promoted"
    assert registry.restore("complaints", by="ada").champion == model("base", BASE)
    with pytest.raises(RegistryError, match="no earlier champion"):
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


# Refusals


def test_a_second_bootstrap_is_refused(registry: Registry) -> None:
    registry.bootstrap(model("base", BASE), by="setup")
    with pytest.raises(RegistryError, match="there is a champion already"):
        registry.bootstrap(model("g0001", NEW), by="setup")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "no recorded approval"),
        ([("reject", {})], "not approved: reject by ada"),
        ([("timeout", {})], "not approved: timeout"),
        ([("approve", {}), ("reject", {})], "not approved: reject"),
        ([("approve", {"model_digest": OTHER})], "was approved for model"),
        ([("approve", {"verdict_digest": OTHER})], "was approved for model"),
        ([("approve", {"generation": "g0002"})], "no recorded approval"),
    ],
)
def test_nothing_starts_without_its_approval(registry: Registry, answers, message: str) -> None:
    registry.bootstrap(model("base", BASE), by="setup")
    for decision, changes in answers:
        approve_launch(registry, decision, **changes)
    with pytest.raises(RegistryError, match=message):
        registry.start_experiment(plan(), model("g0001", NEW), by="ada", duration=WEEK)
    assert registry.state().candidate is None
    assert registry.state().experiments == {}


def second(registry: Registry) -> Plan:
    """Start a second test in the layer of the first, leaving its users alone."""
    approve_launch(registry, generation="g0002", model_digest=OTHER)
    beside = plan("g0002", OTHER).beside(item.plan for item in registry.state().all_running())
    registry.start_experiment(beside, model("g0002", OTHER), by="ada", duration=WEEK)
    return beside


def test_tests_of_a_layer_run_side_by_side_only_if_they_share_no_users(registry: Registry) -> None:
    launched(registry)
    approve_launch(registry, generation="g0002", model_digest=OTHER)
    with pytest.raises(RegistryError, match=r"layer policy have changed \(now: g0001\)"):
        registry.start_experiment(plan("g0002", OTHER), model("g0002", OTHER), by="ada", duration=WEEK)
    beside = second(registry)
    assert [(draw.experiment, draw.below) for draw in beside.excludes] == [("g0001", 0.2)]
    state = registry.state()
    assert [item.plan.experiment for item in state.all_running()] == ["g0001", "g0002"]
    assert sorted(state.candidates) == ["g0001", "g0002"]
    assert state.candidate == model("g0002", OTHER)
    assert state.running("g0001").plan == plan()


def test_a_layer_has_no_more_users_than_all() -> None:
    wide = tuple(arm.model_copy(update={"share": 0.45}) for arm in plan().arms)
    first = plan().model_copy(update={"arms": wide})
    with pytest.raises(ValidationError, match=r"layer policy has 0\.1 left beside g0001"):
        plan("g0002", OTHER).beside([first])
    other_layer = plan("g0002", OTHER).model_copy(update={"layer": "voice"})
    assert other_layer.beside([first]).excludes == ()


def test_after_a_promotion_the_other_test_cannot_promote(registry: Registry) -> None:
    launched(registry)
    second(registry)
    analysed(registry)
    registry.record_analysis("g0002", Analysis(result="valid", digest=FOUND, reasons=()), by="scheduler")
    approve_promotion(registry)
    approve_promotion(registry, generation="g0002", model_digest=OTHER)
    state = registry.promote("g0001", by="ada")
    assert state.champion == model("g0001", NEW)
    assert state.running("g0002") is not None
    with pytest.raises(RegistryError, match="test against the champion of now"):
        registry.promote("g0002", by="ada")
    assert registry.rollback("g0002", "another won", by="ada").champion == model("g0001", NEW)


def test_what_the_rule_rejects_cannot_be_promoted(registry: Registry) -> None:
    launched(registry)
    found = Analysis(result="valid", digest=FOUND, reasons=(), advice="reject")
    registry.record_analysis("g0001", found, by="scheduler")
    approve_promotion(registry)
    with pytest.raises(RegistryError, match="rejects the candidate"):
        registry.promote("g0001", by="ada")


def test_looks_are_kept_by_day_and_overrides_by_user(registry: Registry) -> None:
    launched(registry)

    def look(day: int, result: str) -> GuardrailCheck:
        at = datetime(2026, 11, 9, tzinfo=UTC)
        return GuardrailCheck(day=day, at=at, result=result, digest=FOUND, reasons=())

    for item in (look(1, "unknown"), look(0, "go_on"), look(1, "go_on")):
        registry.record_check("g0001", item, by="scheduler")
    registry.override("g0001", Override(user=FOUND, arm="control"), by="ada")
    registry.override("g0001", Override(user=FOUND, arm="candidate"), by="ada")
    running = registry.state().running()
    assert [(item.day, item.result) for item in running.checks] == [(0, "go_on"), (1, "go_on")]
    assert [item.arm for item in running.overrides] == ["candidate"]
    registry.override("g0001", Override(user=FOUND, arm=None), by="ada", remove=True)
    assert registry.state().running().overrides == ()


def test_a_guardrails_stop_stands_and_forbids_promotion(registry: Registry) -> None:
    launched(registry)
    at = datetime(2026, 11, 9, tzinfo=UTC)
    stop = GuardrailCheck(day=1, at=at, result="stop", digest=FOUND, reasons=("reports: worse",))
    registry.record_check("g0001", stop, by="cron")
    registry.record_check("g0001", stop.model_copy(update={"result": "unknown"}), by="cron")
    assert registry.state().running().checks == (stop,)
    analysed(registry)
    approve_promotion(registry)
    with pytest.raises(RegistryError, match=r"said stop on day 2 \(reports: worse\); roll it back"):
        registry.promote("g0001", by="ada")


def test_a_state_of_one_candidate_is_still_read() -> None:
    one = model("g0001", NEW).model_dump(mode="json")
    state = State.model_validate({"champion": model("base", BASE).model_dump(), "candidate": one})
    assert state.candidates == {"g0001": model("g0001", NEW)}
    assert State.model_validate({"candidate": None}).candidates == {}


def test_no_experiment_runs_twice(registry: Registry) -> None:
    launched(registry)
    registry.rollback("g0001", "bad replies", by="ada")
    with pytest.raises(RegistryError, match=r"has been run \(rolled_back\)"):
        registry.start_experiment(plan(), model("g0001", NEW), by="ada", duration=WEEK)


def test_the_control_must_be_the_champion(registry: Registry) -> None:
    registry.bootstrap(model("base", BASE), by="setup")
    approve_launch(registry)
    with pytest.raises(RegistryError, match="the plan's control is"):
        registry.start_experiment(plan(control=OTHER), model("g0001", NEW), by="ada", duration=WEEK)


def test_promotion_needs_a_valid_analysis_and_its_approval(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="no experiment of generation g0001 is running"):
        registry.promote("g0001", by="ada")
    launched(registry)
    with pytest.raises(RegistryError, match="no recorded analysis"):
        registry.promote("g0001", by="ada")
    analysed(registry, "invalid")
    approve_promotion(registry)
    with pytest.raises(RegistryError, match="is invalid: too few users"):
        registry.promote("g0001", by="ada")
    analysed(registry)
    approve_promotion(registry, analysis_digest=OTHER)
    with pytest.raises(RegistryError, match="was approved for model"):
        registry.promote("g0001", by="ada")
    approve_promotion(registry)
    assert registry.promote("g0001", by="ada").champion == model("g0001", NEW)


def test_rollback_keeps_the_champion(registry: Registry) -> None:
    launched(registry)
    with pytest.raises(RegistryError, match="roll it back first"):
        registry.restore("no", by="ada")
    with pytest.raises(RegistryError, match="no experiment of generation g0002"):
        registry.rollback("g0002", "typo", by="ada")
    state = registry.rollback("g0001", "bad replies", by="ada")
    assert state.champion == model("base", BASE)
    assert state.candidate is None
    assert state.experiments["g0001"].end_reason == "bad replies"


def test_an_answer_says_what_was_shown(registry: Registry) -> None:
    with pytest.raises(ValidationError, match="a launch shows a verdict_digest"):
        registry.record_approval(
            "launch",
            generation="g0001",
            model_digest=NEW,
            analysis_digest=FOUND,
            decision="approve",
            by="ada",
        )


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
