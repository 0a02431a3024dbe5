"""What the registry refuses: each step needs what comes before it."""

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from flywheel_tasks.storage.registry import Registry
from flywheel_tasks.storage.registry_state import (
    Analysis,
    GuardrailCheck,
    Override,
    OvertakenError,
    Plan,
    RegistryError,
    State,
)
from tests.storage.registry_parts import (
    BASE,
    FOUND,
    NEW,
    OTHER,
    WEEK,
    analysed,
    approve_launch,
    approve_promotion,
    launched,
    model,
    plan,
)


def test_a_second_bootstrap_is_refused(registry: Registry) -> None:
    registry.bootstrap(model("base", BASE), by="setup")
    with pytest.raises(RegistryError, match="there is a champion already"):
        registry.bootstrap(model("g0001", NEW), by="setup")


@pytest.mark.parametrize("nobody", ["", " ", "a" * 201])
def test_a_change_says_who_made_it(registry: Registry, nobody: str) -> None:
    registry.bootstrap(model("base", BASE), by="setup")
    changes = len(registry.history())
    with pytest.raises(RegistryError, match="a name of 1 to 200 characters"):
        approve_launch(registry, by=nobody)
    approve_launch(registry)
    with pytest.raises(RegistryError, match="a name of 1 to 200 characters"):
        registry.start_experiment(plan(), model("g0001", NEW), by=nobody, duration=WEEK)
    assert len(registry.history()) == changes + 1


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


def test_an_older_yes_that_is_recorded_late_undoes_no_newer_no(registry: Registry) -> None:
    registry.bootstrap(model("base", BASE), by="setup")
    first, then = datetime(2026, 11, 2, 9, tzinfo=UTC), datetime(2026, 11, 2, 10, tzinfo=UTC)
    approve_launch(registry, "reject", at=then)
    approve_launch(registry, "approve", at=first)
    with pytest.raises(RegistryError, match="not approved: reject by ada"):
        registry.start_experiment(plan(), model("g0001", NEW), by="ada", duration=WEEK)
    approve_launch(registry, "approve", at=then)
    assert registry.state().approval("launch", "g0001").decision == "approve", (
        "of one moment, the last recorded"
    )
    assert registry.state().approval("promotion", "g0001") is None


def test_tests_of_a_layer_run_side_by_side_only_if_they_share_no_users(registry: Registry) -> None:
    launched(registry)
    approve_launch(registry, generation="g0002", model_digest=OTHER)
    with pytest.raises(OvertakenError, match=r"layer policy have changed \(now: g0001\)"):
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
    with pytest.raises(RegistryError, match="no champion of just before"):
        registry.restore("no", by="ada")
    assert registry.state().running("g0001") is not None
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
