"""The commands around a launch, as a person without Airflow uses them."""

import re
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel_tasks.cli import ab, registry
from flywheel_tasks.online import analysis_text, promotion
from flywheel_tasks.online.approval import ApprovalError, GateBlockedError, registry_of
from flywheel_tasks.online.design import DesignError, make_design
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.digests import file_digest, tree_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.registry_state import RegistryError
from tests.dags.small import ab_events, write_logs
from tests.online import people
from tests.online.conftest import write_verdict
from tests.online.test_launch import run_launch


def call(app, root: Path, *words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*words, "--root", str(root)], env={"COLUMNS": "400"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def test_from_approval_to_champion_and_back(root: Path) -> None:
    assert "sha256:" in call(registry.app, root, "show")
    shown = call(registry.approve_app, root, "launch", "--by", "ada")
    assert tree_digest(root / "models/policy") in shown
    assert file_digest(root / "gate/verdict.json") in shown
    assert "approved" in shown
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    assert re.search(r"until 2\d{3}-\d\d-\d\d \d\d:\d\d UTC", call(ab.app, root, "status"))
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 200))
    assert "Depth: messages per exposed user" in call(ab.app, root, "analyze", "--by", "ada")
    assert "Champion: g0001" in call(registry.approve_app, root, "promotion", "--by", "ada")
    history = call(registry.app, root, "history")
    kinds = (
        "bootstrap",
        "approval_launch",
        "experiment_started",
        "analysis",
        "approval_promotion",
        "promoted",
    )
    shown = [line.split("│")[4].strip() for line in history.splitlines() if "│" in line]
    assert [kind for kind in shown if kind] == list(kinds)  # a long detail goes on in the next line
    assert "Champion: base" in call(
        registry.app, root, "rollback", "--champion", "--by", "ada", "--reason", "complaints"
    )


def test_a_no_drops_the_candidate(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 200))
    call(ab.app, root, "analyze", "--by", "ada")
    call(registry.approve_app, root, "promotion", "--by", "bob", "--reject")
    state = registry_of(root).state()
    assert state.champion.generation == "base"
    assert state.experiments["g0001"].end_reason == "promotion not approved: reject by bob"


def test_an_invalid_test_is_exit_code_3(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 10))
    assert "at least 20 are needed" in call(ab.app, root, "analyze", "--by", "ada", code=3)
    call(registry.app, root, "rollback", "--by", "ada", "--reason", "too small")
    with pytest.raises(RegistryError, match="no experiment is running"):
        call(registry.app, root, "rollback", "--by", "ada", "--reason", "again")


def test_a_blocked_model_cannot_be_approved(root: Path) -> None:
    write_verdict(root, "block")
    with pytest.raises(GateBlockedError, match=r"win rate above 0\.65"):
        call(registry.approve_app, root, "launch", "--by", "ada")
    assert registry_of(root).state().approvals == ()


def test_a_plan_from_past_logs_becomes_the_rule_of_the_test(root: Path) -> None:
    past = {
        "salt": "s",
        "experiment": "past",
        "arms": [{"name": "control", "share": 0.5}, {"name": "candidate", "share": 0.5}],
    }
    write_logs(root, "date=2026-11-09", ab_events(past, 300))
    with pytest.raises(DesignError, match="must not be zero"):
        call(ab.app, root, "plan", "--lift", "0")
    shown = call(ab.app, root, "plan", "--lift", "20", "--write")
    assert "depth" in shown
    assert "Simulated" in shown
    design = read_json(root / "launch/design.json")
    assert load_settings(root / "params.yaml").ab.planned_users == design["planned_users"] > 40
    smaller = call(ab.app, root, "plan", "--lift", "5")
    assert smaller
    assert read_json(root / "launch/design.json")["planned_users"] > 10 * design["planned_users"]
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    rule = registry_of(root).state().running().plan.rule
    assert rule.planned_users == design["planned_users"]
    assert design["rule"] | {"planned_users": rule.planned_users} == rule.model_dump(mode="json")
    # What params.yaml says later changes nothing.
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("alpha: 0.05", "alpha: 0.2"))
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 200))
    call(ab.app, root, "analyze", "--by", "ada")
    assert read_json(root / "launch/analysis.json")["rule"]["alpha"] == 0.05


@pytest.mark.parametrize("source", ["files", "simulated"])
def test_a_few_messages_with_a_wrong_clock_do_not_move_the_past(root: Path, source: str) -> None:
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("source: simulated", f"source: {source}"))
    past = {"salt": "s", "experiment": "past", "arms": people.make_plan().model_dump(mode="json")["arms"]}
    days = 1 if source == "files" else 3
    for day in range(days):
        start = people.START + timedelta(days=day)
        events = ab_events(past, 200, start=start, name=f"d{day}")
        write_logs(root, f"date={start:%Y-%m-%d}", events)
    now = people.START + timedelta(days=days)
    right = make_design(root, lift_percent=10, power=0.8, now=now)
    said = [event for event in events if event["type"] == "message"]
    wrong = [
        event | dict.fromkeys(("event_id", "message_id", "conversation_id"), f"w{number}") | {"time": time}
        for number, (event, time) in enumerate(
            (event, f"2031-01-0{day}T00:00:00Z") for day in (1, 2, 3) for event in said[: 4 - day]
        )
    ]
    write_logs(root, "date=2026-11-08", wrong)
    found = make_design(root, lift_percent=10, power=0.8, now=now)
    assert (right["past"].pop("later_events"), found["past"].pop("later_events")) == (0, 6)
    assert found["past"].pop("logs") != right["past"].pop("logs")
    assert found == right
    if source == "simulated":  # the other goes by the clock on the wall
        assert "Left out: 6 events" in call(ab.app, root, "plan", "--lift", "10")


def test_a_plan_is_the_same_at_every_hour_of_a_day(root: Path) -> None:
    """Today is not over: a part of it would count as a whole day."""
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("source: simulated", "source: files"))
    past = {"salt": "s", "experiment": "past", "arms": people.make_plan().model_dump(mode="json")["arms"]}
    today = people.START
    begun = ab_events(past, 60, start=today, name="today")
    write_logs(root, f"date={today:%Y-%m-%d}", begun)
    alone = make_design(root, lift_percent=10, power=0.8, now=today + timedelta(hours=20))
    assert alone["past"]["later_events"] == 0  # where there is no other day
    yesterday = today - timedelta(days=1)
    write_logs(root, f"date={yesterday:%Y-%m-%d}", ab_events(past, 200, start=yesterday, name="yesterday"))
    plan = make_design(root, lift_percent=10, power=0.8, now=today + timedelta(hours=20))
    shutil.rmtree(root / f"data/logs/date={today:%Y-%m-%d}")
    over = make_design(root, lift_percent=10, power=0.8, now=today + timedelta(hours=1))
    assert (plan["metrics"], plan["planned_users"]) == (over["metrics"], over["planned_users"])
    assert plan["past"]["users"] == over["past"]["users"]
    assert plan["past"]["later_events"] == len([event for event in begun if event["type"] != "exposure"])


def test_stopping_overriding_and_looking_at_a_test(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    call(ab.app, root, "override", "wilma", "--arm", "candidate", "--by", "ada")
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 200))
    assert "Day 1: go_on" in call(ab.app, root, "check", "--by", "ada")
    shown = call(ab.app, root, "status")
    assert "day 1: go_on" in shown
    assert "overrides for 1 of the staff" in shown
    assert not any(b"wilma" in path.read_bytes() for path in (root / "registry").rglob("*.json"))
    call(ab.app, root, "override", "wilma", "--arm", "drawn", "--by", "ada")
    assert registry_of(root).state().running().overrides == ()
    call(ab.app, root, "stop", "--by", "ada", "--reason", "complaints")
    assert registry_of(root).state().experiments["g0001"].end_reason == "complaints"
    assert "No experiment is running" in call(ab.app, root, "status")


def start_second(root: Path) -> None:
    """A second test, of a layer of its own, that starts after g0001's."""
    registry_ = registry_of(root)
    first = registry_.state().running("g0001").plan
    candidate = registry_.state().candidate.model_copy(
        update={"generation": "g0002", "digest": "sha256:" + "2" * 64}
    )
    arm = first.arms[1].model_copy(update={"model": "g0002", "digest": candidate.digest})
    names = {"experiment": "g0002", "generation": "g0002", "salt": "t", "layer": "other"}
    plan = first.model_copy(
        update={**names, "arms": (first.arms[0], arm), "model_digest": candidate.digest, "excludes": ()}
    )
    registry_.record_approval(
        "launch",
        generation="g0002",
        model_digest=candidate.digest,
        verdict_digest=plan.verdict_digest,
        decision="approve",
        by="ada",
    )
    registry_.start_experiment(plan, candidate, by="ada", duration=timedelta(days=7))


def test_with_two_tests_every_decision_names_one(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    start_second(root)
    by = ("--by", "ada")
    for app, words in (
        (ab.app, ("check", *by)),
        (ab.app, ("analyze", *by)),
        (ab.app, ("stop", *by, "--reason", "harm")),
        (ab.app, ("override", "eve", "--arm", "candidate", *by)),
        (registry.approve_app, ("promotion", *by)),
        (registry.app, ("rollback", *by, "--reason", "harm")),
    ):
        with pytest.raises(RegistryError, match=r"2 tests are running \(g0001, g0002\): say which"):
            call(app, root, *words)
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 200))
    shown = call(ab.app, root, "analyze", *by, "--generation", "g0001")
    assert "Next: flywheel approve promotion --generation g0001 --by NAME" in shown
    call(ab.app, root, "stop", *by, "--reason", "harm", "--generation", "g0001")
    assert [e.plan.generation for e in registry_of(root).state().all_running()] == ["g0002"]
    call(ab.app, root, "stop", *by, "--reason", "harm")  # now only one runs
    assert registry_of(root).state().all_running() == ()


def test_one_command_brings_the_champion_before_back_whatever_runs(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    start_second(root)
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 200))
    call(ab.app, root, "analyze", "--by", "ada", "--generation", "g0001")
    call(registry.approve_app, root, "promotion", "--by", "ada", "--generation", "g0001")
    words = ["rollback", "--champion", "--by", "ada", "--reason", "complaints"]
    monkeypatch.setattr(registry, "_at_a_terminal", lambda: True)
    before = registry_of(root).state()
    asked = CliRunner().invoke(registry.app, [*words, "--root", str(root)], input="n\n")
    assert "and the tests that run end, their candidates are dropped: g0002" in asked.output
    assert registry_of(root).state() == before
    shown = call(registry.app, root, *words, "--yes")
    assert "Champion: base" in shown
    assert "The test of g0002 is ended; its candidate is dropped." in shown
    state = registry_of(root).state()
    assert (state.champion.generation, state.all_running(), state.candidates) == ("base", (), {})
    ended = state.experiments["g0002"]
    assert (ended.status, ended.end_reason) == ("rolled_back", "champion rolled back: complaints")
    assert state.experiments["g0001"].status == "promoted"
    assert registry_of(root).history()[-1].detail == {"reason": "complaints", "ended": ["g0002"]}
    (card,) = (root / "registry/generations/g0002").glob("README-*.md")
    assert "champion rolled back: complaints" in card.read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConnectionError("s3 is away")])
def test_a_card_that_a_restoration_left_unkept_is_kept_by_the_repeat(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    store = registry_of(root)
    base = store.state().champion
    first = base.model_copy(update={"generation": "g0000", "digest": people.DIGEST})
    promoted = store.state().with_(champion=first, previous=base)
    store._change("promoted", "ada", {}, lambda found: promoted)
    inputs = read_json(root / "inputs/generation.json")
    write_json(
        inputs | {"champion": {"model": "g0000", "digest": first.digest}}, root / "inputs/generation.json"
    )
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    words = ["rollback", "--champion", "--by", "ada", "--reason", "complaints", "--yes", "--root", str(root)]

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(promotion, "keep_card", fails)
        shown = CliRunner().invoke(registry.app, words, env={"COLUMNS": "400"}).output
    told = "The card of g0001 is not kept: ConnectionError: s3 is away" in shown
    assert told == isinstance(error, ConnectionError)
    assert ("--champion --to base --by" in shown) == told
    assert store.state().champion == base
    assert list((root / "registry/generations/g0001").glob("README-*.md")) == []
    changes = store.history()
    assert CliRunner().invoke(registry.app, words).exit_code != 0
    assert len(list((root / "registry/generations/g0001").glob("README-*.md"))) == 1
    assert store.history() == changes


def test_a_no_to_a_launch_declines_the_model(root: Path) -> None:
    for _ in range(2):
        call(registry.approve_app, root, "launch", "--by", "ada", "--reject")
    declined = [change for change in registry_of(root).history() if change.kind == "declined"]
    assert [(change.by, change.detail["reason"]) for change in declined] == [
        ("ada", "launch not approved: reject by ada")
    ]
    assert "Not launched: launch not approved: reject by ada." in call(registry.app, root, "card", "g0001")


def test_an_interval_without_an_end_is_no_row_of_digits() -> None:
    lift = {"value": 203.0, "low": -100.0, "high": 90_035_007.6}
    assert analysis_text._lift(lift) == "+203.0% (-100.0% to over +1000%)"
    assert analysis_text._lift({**lift, "high": 1_000.0}) == "+203.0% (-100.0% to +1000.0%)"


def test_a_harmful_test_is_exit_code_4(root: Path) -> None:
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("planned_users: 10000", "planned_users: 200"))
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    events = ab_events(read_json(root / "launch/plan.json"), 200, harmful=True)
    write_logs(root, "date=2026-11-09", events)
    shown = call(ab.app, root, "check", "--by", "ada", code=4)
    assert "worse by -100.0%" in shown
    assert "Next: flywheel ab stop --generation g0001 --by NAME" in shown


def test_after_a_rejection_the_next_step_is_a_no(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    events = ab_events(read_json(root / "launch/plan.json"), 200)
    candidates = sorted({e["user_id"] for e in events if e.get("arm") == "candidate"})
    lost = candidates[: len(candidates) * 4 // 5]
    write_logs(
        root, "date=2026-11-09", [e for e in events if e["type"] == "exposure" or e["user_id"] not in lost]
    )
    shown = call(ab.app, root, "analyze", "--by", "ada")
    assert "The rule says: reject." in shown
    assert "Next: flywheel approve promotion --generation g0001 --by NAME --reject" in shown


def test_without_the_approvers_text_nobody_is_asked(root: Path) -> None:
    (root / "gate/approval.md").unlink()  # as after `flywheel forget`
    with pytest.raises(ApprovalError, match=r"gate/approval\.md is gone: run stage gate again"):
        call(registry.approve_app, root, "launch", "--by", "ada")


def test_a_no_to_a_launch_that_has_happened_is_no_quiet_success(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada", "--generation", "g0001")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    before = registry_of(root).history()
    with pytest.raises(
        RegistryError, match="g0001 is running already; to end it: flywheel ab stop --generation"
    ):
        call(registry.approve_app, root, "launch", "--by", "ada", "--reject")
    call(ab.app, root, "stop", "--by", "ada", "--reason", "wrong answer")
    with pytest.raises(RegistryError, match="g0001 has been tested already"):
        call(registry.approve_app, root, "launch", "--by", "ada", "--reject")
    assert len(registry_of(root).history()) == len(before) + 1


def test_another_generation_than_the_one_named_gets_no_answer(root: Path) -> None:
    with pytest.raises(ApprovalError, match="the workspace holds g0001, not g0002"):
        call(registry.approve_app, root, "launch", "--by", "ada", "--generation", "g0002")


def test_at_a_terminal_a_person_is_asked_after_they_have_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_at_a_terminal", lambda: True)
    words = ["launch", "--by", "ada", "--root", str(root)]
    before = registry_of(root).history()
    answered = CliRunner().invoke(registry.approve_app, words, input="n\n")
    assert answered.exit_code == 1
    assert "Approve the launch of g0001 as ada? [y/N]" in answered.output
    assert registry_of(root).history() == before
    answered = CliRunner().invoke(registry.approve_app, words, input="y\n")
    assert "approved" in answered.output
    call(registry.approve_app, root, "launch", "--by", "ada", "--yes")


def test_after_an_invalid_analysis_the_next_step_is_to_stop(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    events = ab_events(read_json(root / "launch/plan.json"), 200)
    exposed = {e["user_id"] for e in events if e.get("arm") == "candidate"}
    gone = set(sorted(exposed)[: len(exposed) * 2 // 3])
    write_logs(root, "date=2026-11-09", [e for e in events if e.get("user_id") not in gone])
    shown = call(ab.app, root, "analyze", "--by", "ada", code=3)
    assert "Next: flywheel ab stop --generation g0001 --by NAME --reason WHY" in shown


def test_what_grew_from_a_champion_that_was_dropped_is_not_put_up_for_approval(root: Path) -> None:
    inputs = read_json(root / "inputs/generation.json")
    inputs["champion"] = {"model": "g0000", "digest": "sha256:" + "9" * 64}
    write_json(inputs, root / "inputs/generation.json")
    call(registry.approve_app, root, "launch", "--by", "ada", "--reject")  # a no, any model may get
    with pytest.raises(
        ApprovalError, match=r"g0001 was made from g0000, which is not champion any more \(base is\)"
    ):
        call(registry.approve_app, root, "launch", "--by", "ada")


def test_a_generation_that_was_declined_and_made_again_says_so(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada", "--reject")
    shown = call(registry.approve_app, root, "launch", "--by", "ada")
    assert "Made again" not in shown, "of this verdict, the answer was changed"
    call(registry.approve_app, root, "launch", "--by", "ada", "--reject")
    write_verdict(root, "warn")
    shown = call(registry.approve_app, root, "launch", "--by", "ada")
    assert "g0001 has been declined once before" in shown
