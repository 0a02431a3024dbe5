"""The A/B analysis: from logs to a verdict, every reason for an invalid test, and the end of a test."""

import math
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import yaml
from statsmodels.stats.multitest import multipletests

from flywheel_tasks.online import launch, promotion
from flywheel_tasks.online.analysis import ANALYSIS, analyse, analyse_population, arm_sums
from flywheel_tasks.online.analysis_text import analysis_markdown
from flywheel_tasks.online.approval import ApprovalError, promotion_request, registry_of
from flywheel_tasks.online.assignment import staff_key
from flywheel_tasks.online.exposed import Window, population
from flywheel_tasks.online.log_events import open_events
from flywheel_tasks.pipeline import runner
from flywheel_tasks.pipeline.model_files import ModelFilesError
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry_state import Override, RegistryError
from tests.dags.small import ab_events, write_logs
from tests.online import people
from tests.online.conftest import approve, write_model
from tests.online.people import START, make_plan
from tests.online.test_launch import run_launch

PLAN = make_plan()
Change = Callable[[np.ndarray, dict[str, np.ndarray]], dict[str, np.ndarray]]


def analysed(n: int = 1_000, lift: float = 0.0, days: int = 1, seed: int = 3, change: Change | None = None):
    """The analysis of users that are drawn, and then changed."""
    arm, found = people.drawn(np.random.default_rng(seed), n, lift, days)
    changes = change(arm, found) if change else {}
    made = people.population(arm, found, days, changes)
    return analyse_population(PLAN, made, simulated=False)


def test_a_valid_test_has_every_figure_twice() -> None:
    found = analysed(n=2_000, lift=0.4, days=3)
    assert found["result"] == "valid", found["reasons"]
    assert sum(found["users"].values()) == 2_000
    for metric in found["metrics"].values():
        for figures in (metric, metric["cuped"]) if metric["cuped"] else (metric,):
            lift, view = figures["lift_percent"], figures["sequential"]
            assert view["low"] < lift["low"] < lift["value"] < lift["high"] < view["high"]
            assert view["value"] == pytest.approx(lift["value"])
            assert view["pvalue"] >= figures["pvalue"]
    assert found["advice"] == "promote"
    assert [row["users"]["control"] for row in found["by_day"]] == [found["users"]["control"]] * 3
    last = found["by_day"][-1]
    assert last["depth"]["value"] == pytest.approx(found["metrics"]["depth"]["lift_percent"]["value"])
    assert last["breadth"]["low"] == pytest.approx(found["metrics"]["breadth"]["lift_percent"]["low"])
    values = {row["value"] for row in found["segments"] if row["segment"] == "cohort"}
    assert {"new", "occasional"} <= values


def test_segments_are_corrected_over_all_of_them() -> None:
    """Of users of the same habits and of the same countries together, by every primary metric."""
    arm, users = people.drawn(np.random.default_rng(3), 2_000, 0.4)
    land = np.where(np.arange(2_000) % 2, "de", "fr")
    made = people.population(arm, users, changes={"land": land})
    rows = analyse_population(PLAN, made, simulated=False, segments=("land",))["segments"]
    groups = {("cohort", "new"), ("cohort", "occasional"), ("land", "de"), ("land", "fr")}
    assert {(row["segment"], row["value"]) for row in rows} == groups
    assert len(rows) == 4 * len(PLAN.rule.primary) == 8
    holm = multipletests([row["pvalue"] for row in rows], method="holm")[1]
    assert [row["pvalue_adjusted"] for row in rows] == pytest.approx(list(holm))
    assert len(set(holm)) > 4  # and not all of them are 1


def test_no_effect_is_inconclusive_and_a_loss_is_rejected() -> None:
    assert analysed().get("advice") == "inconclusive"
    worse = analysed(n=2_000, lift=-0.5)
    assert worse["result"] == "valid"
    assert worse["advice"] == "reject"
    assert "significantly worse" in " ".join(worse["advice_reasons"])


def test_a_harmed_guardrail_rejects_what_the_users_like() -> None:
    def more_thumbs_down(arm: np.ndarray, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"thumb_down": found["thumb_down"] + np.where(arm == "candidate", found["replies"] // 3, 0)}

    found = analysed(n=2_000, lift=0.4, change=more_thumbs_down)
    assert found["metrics"]["depth"]["lift_percent"]["low"] > 0
    assert found["advice"] == "reject"
    assert any("Thumbs down per reply" in why for why in found["advice_reasons"])


def test_the_rule_of_the_plan_decides() -> None:
    arm, users = people.drawn(np.random.default_rng(3), 1_500, 0.12)
    made = people.population(arm, users)
    strict = make_plan(rule=people.RULE.model_copy(update={"alpha": 1e-6}))
    lenient = make_plan(rule=people.RULE.model_copy(update={"alpha": 0.2}))
    assert analyse_population(strict, made, simulated=False)["advice"] == "inconclusive"
    assert analyse_population(lenient, made, simulated=False)["advice"] == "promote"


def test_a_signal_that_nobody_gave_has_no_lift() -> None:
    found = analysed(change=lambda arm, users: {"thumb_down": 0 * users["thumb_down"]})
    assert found["metrics"]["thumb_down_per_reply"]["lift_percent"]["value"] is None
    assert found["metrics"]["thumb_down_per_reply"]["absent"] == "no thumb_down in the logs"
    assert "Thumbs down per reply (no thumb_down in the logs)" in analysis_markdown(found)
    assert not any(
        isinstance(value, float) and not math.isfinite(value)
        for metric in found["metrics"].values()
        for value in metric["lift_percent"].values()
    )


def test_too_few_users_prove_nothing() -> None:
    found = analysed(n=30)
    assert found["result"] == "invalid"
    assert found["advice"] is None
    assert any("at least 20 are needed" in reason for reason in found["reasons"])


@pytest.mark.parametrize("n", [0, 1])
def test_nobody_proves_nothing(n: int) -> None:
    found = analysed(n=n)
    assert found["result"] == "invalid"
    assert found["metrics"] == {}
    assert analyse_population(PLAN, None, simulated=False)["reasons"] == ["nobody was exposed"]


def test_a_wrong_ratio_is_invalid() -> None:
    arm, users = people.drawn(np.random.default_rng(1), 1_000)
    kept = (arm == "control") | (np.arange(1_000) % 3 > 0)
    made = people.population(arm[kept], {name: values[kept] for name, values in users.items()})
    found = analyse_population(PLAN, made, simulated=False)
    assert found["sample_ratio"]["pvalue"] < 0.001
    assert any("sizes do not fit" in reason for reason in found["reasons"])


def test_arms_that_differed_before_are_invalid() -> None:
    def older(arm: np.ndarray, users: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"pre_messages": users["pre_messages"] + np.where(arm == "candidate", 2, 0)}

    found = analysed(change=older)
    assert found["result"] == "invalid"
    assert any("differed before the test: pre_messages" in reason for reason in found["reasons"])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("arms", 2, "1 users were exposed to more than one arm"),
        ("arm", "other", "1 users were exposed to an arm that the plan does not have"),
        ("assigned", False, "1 users were exposed to an arm that the plan does not give them"),
    ],
)
def test_a_wrong_exposure_is_invalid(column: str, value: object, message: str) -> None:
    def wrong(arm: np.ndarray, users: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {"arm": arm.copy(), "arms": np.ones(len(arm), int), "assigned": np.ones(len(arm), bool)}[
            column
        ]
        given[0] = value
        return {column: given}

    found = analysed(change=wrong)
    assert found["result"] == "invalid"
    assert message in found["reasons"]


def test_a_day_without_logs_is_invalid() -> None:
    arm, users = people.drawn(np.random.default_rng(3), 1_000, days=3)
    users = people.columns(1_000, 3, **users | {"messages_1": 0 * users["messages_1"]})
    found = analyse_population(PLAN, people.population(arm, users, 3), simulated=False)
    assert found["reasons"] == ["day 2 of 3 has no logs: 1000 exposures, 0 messages"]


def test_without_messages_there_is_no_lift() -> None:
    arm, _ = people.drawn(np.random.default_rng(3), 1_000)
    made = people.population(arm, people.columns(1_000))
    found = analyse_population(PLAN, made, simulated=False)
    assert {"breadth has no lift with an interval", "depth has no lift with an interval"} <= set(
        found["reasons"]
    )


def message(name: str, minutes: float, user: str, **changes: object) -> dict[str, object]:
    at = (datetime(2026, 11, 9, 9, tzinfo=UTC) + timedelta(minutes=minutes)).isoformat()
    talk = {"conversation_id": "c", "card_id": "c1", "role": "user", "text": "hi", "user_id": user}
    return (
        {"type": "message", "event_id": name, "message_id": name, "time": at, "source": "user"}
        | talk
        | changes
    )


def test_only_what_follows_the_first_exposure_counts(root: Path) -> None:
    document = PLAN.model_dump(mode="json")
    events = [e for e in ab_events(document, 1) if e["type"] == "exposure"] + [
        e for e in ab_events(document, 3) if e["user_id"] == "user-0001"
    ]
    events += [message("before", -5, "user-0001"), message("after", 90, "user-0001")]
    events += [message("after", 90, "user-0001"), message("stranger", 5, "nobody")]
    events += [message("past", -60 * 24, "user-0001"), message("long ago", -60 * 24 * 30, "user-0001")]
    write_logs(root, "date=2026-11-09", events)
    with (root / "data/logs/date=2026-11-09/part-000.jsonl").open("a") as file:
        file.write("not json\n")
    told = [e for e in ab_events(document, 3) if e.get("role") == "user" and e["user_id"] == "user-0001"]
    settings = load_settings(root / "params.yaml")
    with open_events(settings, root, PLAN) as found:
        made = population(found, Window(START, START + timedelta(days=1)), PLAN.rule)
        rows = sorted(made.users.to_pyarrow().to_pylist(), key=lambda row: row["messages"])
        assert (found.description["unreadable_lines"], found.description["repeated_events"]) == (1, 1)
    assert [row["messages"] for row in rows] == [0, len(told) + 1]
    assert rows[1]["replies"] == len(told)
    assert (rows[1]["pre_messages"], rows[1]["active_days"], rows[1]["cohort"]) == (1, 1, "occasional")
    assert not any("user-000" in str(value) for row in rows for value in row.values())
    with open_events(settings, root, make_plan("g0002")) as found:
        assert found.exposures.count().execute() == 0


def test_staff_and_internal_users_are_not_in_the_population(root: Path) -> None:
    events = [e for e in ab_events(PLAN.model_dump(mode="json"), 8) if e["type"] == "exposure"]
    events[0]["source"] = "internal"
    write_logs(root, "date=2026-11-09", events)
    staff = (Override(user=staff_key(PLAN.salt, str(events[1]["user_id"])), arm="candidate"),)
    with open_events(load_settings(root / "params.yaml"), root, PLAN, staff) as found:
        made = population(found, Window(START, START + timedelta(days=1)), PLAN.rule)
        assert made.users.count().execute() == len(events) - 2
        assert found.description["staff_exposures"] == 1


def test_an_event_at_the_end_is_not_in_the_test(root: Path) -> None:
    events = [e for e in ab_events(PLAN.model_dump(mode="json"), 4) if e["type"] == "exposure"]
    user = str(events[0]["user_id"])
    events += [message("in", 1.99, user), message("out", 2, user)]
    write_logs(root, "date=2026-11-09", events)
    end = datetime(2026, 11, 9, 9, 2, tzinfo=UTC)
    with open_events(load_settings(root / "params.yaml"), root, PLAN) as found:
        made = population(found, Window(START, end), PLAN.rule)
        assert sum(sums.total("messages") for sums in arm_sums(made).values()) == 1


def launch_and_analyse(root: Path, number: int) -> dict:
    """Launch the candidate and analyse its test."""
    approve(root)
    run_launch(root)
    launch.start(root, by="ada")
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), number))
    return analyse(root, "g0001", by="scheduler")


def test_from_logs_to_the_champion(root: Path) -> None:
    found = launch_and_analyse(root, 200)
    assert found["result"] == "valid", found["reasons"]
    assert found == read_json(root / ANALYSIS)
    changes = len(registry_of(root).history())
    assert analyse(root, "g0001", by="again") == found
    assert len(registry_of(root).history()) == changes
    assert "user-0" not in (root / ANALYSIS).read_text()

    with pytest.raises(RegistryError, match="no recorded approval"):
        promotion.promote(root, "g0001", by="ada")
    shown = promotion_request(root, "g0001")
    assert "**Simulated.**" in shown.body
    assert shown.evidence_digest in shown.body
    assert f"{found['metrics']['depth']['lift_percent']['value']:+.1f}%" in shown.body
    assert "The rule says: promote" in shown.body
    approve(root, "promotion")
    champion = promotion.promote(root, "g0001", by="ada")
    assert champion.digest == found["model_digest"]
    assert promotion.promote(root, "g0001", by="retry") == champion
    assert registry_of(root).state().experiments["g0001"].status == "promoted"


def test_a_real_test_is_judged_at_its_end_and_by_its_own_time(root: Path) -> None:
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("source: simulated", "source: files"))
    approve(root)
    run_launch(root)
    experiment = launch.start(root, by="ada")
    events = ab_events(read_json(root / "launch/plan.json"), 200, start=experiment.started_at)
    for shift in range(7):
        day = experiment.started_at + timedelta(days=shift)
        again = ab_events(read_json(root / "launch/plan.json"), 200, start=day, name=f"d{shift}")
        write_logs(root, f"date={day:%Y-%m-%d}", again)
    late = ab_events(read_json(root / "launch/plan.json"), 200, start=experiment.ends_at, name="late")
    write_logs(root, f"date={experiment.ends_at:%Y-%m-%d}", late)
    early = analyse(root, "g0001", by="scheduler", now=experiment.started_at + timedelta(days=2))
    assert early["result"] == "invalid"
    assert "only its sequential view may be read now" in early["reasons"][0]
    found = analyse(root, "g0001", by="scheduler", now=experiment.ends_at + timedelta(hours=1))
    assert found["result"] == "valid", found["reasons"]
    assert "Simulated" not in analysis_markdown(found)
    written = sum(e.get("role") == "user" for e in events)
    assert sum(row["messages"] for row in found["by_day"]) == 7 * written
    (root / f"data/logs/date={experiment.started_at + timedelta(days=3):%Y-%m-%d}/part-000.jsonl").unlink()
    gap = analyse(root, "g0001", by="scheduler", now=experiment.ends_at + timedelta(hours=1))
    assert gap["reasons"] == ["day 4 of 7 has no logs: 0 exposures, 0 messages"]


def test_what_the_rule_rejects_is_not_promoted(root: Path) -> None:
    approve(root)
    run_launch(root)
    launch.start(root, by="ada")
    events = ab_events(read_json(root / "launch/plan.json"), 200)
    silent = {e["user_id"] for e in events if e.get("arm") == "candidate" and int(str(e["user_id"])[-1]) % 2}
    quiet = [e for e in events if e["type"] == "exposure" or e["user_id"] not in silent]
    write_logs(root, "date=2026-11-09", quiet)
    found = analyse(root, "g0001", by="scheduler")
    assert (found["result"], found["advice"]) == ("valid", "reject")
    approve(root, "promotion")
    with pytest.raises(RegistryError, match="rejects the candidate"):
        promotion.promote(root, "g0001", by="ada")


def test_other_files_are_not_promoted(root: Path) -> None:
    launch_and_analyse(root, 200)
    approve(root, "promotion")
    write_model(root, "another")
    with pytest.raises(ModelFilesError, match="model g0001: DVC does not bring it"):
        promotion.promote(root, "g0001", by="ada")
    assert registry_of(root).state().champion.generation == "base"


def test_a_candidate_that_dvc_has_lost_fails_for_good(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch_and_analyse(root, 200)
    approve(root, "promotion")
    write_model(root, "another")

    def lost(_root: Path, target: str) -> None:
        raise runner.LostDataError("neither here nor there")

    monkeypatch.setattr(runner, "bring", lost)
    with pytest.raises(
        promotion.PromotionError, match="model g0001: DVC has lost it: neither here nor there"
    ):
        promotion.promote(root, "g0001", by="ada")


def test_a_workspace_that_has_moved_on_keeps_no_winner_from_its_promotion(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidate comes from DVC, by the hash that its launch recorded; nothing of the workspace is replaced."""
    launch_and_analyse(root, 200)
    approve(root, "promotion")
    shutil.copytree(root / "models/policy", root / "kept")
    write_model(root, "another")
    asked = []

    def bring(_root: Path, target: str) -> None:
        asked.append(yaml.safe_load((root / target).read_text())["outs"][0]["md5"])
        shutil.copytree(root / "kept", root / target.removesuffix(".dvc"))

    monkeypatch.setattr(runner, "bring", bring)
    candidate = registry_of(root).state().candidates["g0001"]
    assert promotion.promote(root, "g0001", by="ada") == candidate
    assert asked == [candidate.dvc.md5]
    assert tree_digest(root / "models/policy") != candidate.digest


def test_a_new_analysis_needs_a_new_approval(root: Path) -> None:
    launch_and_analyse(root, 200)
    approve(root, "promotion")
    write_logs(root, "date=2026-11-10", [message("more", 100, "user-0001")])
    analyse(root, "g0001", by="scheduler")
    with pytest.raises(RegistryError, match="was approved for model"):
        promotion.promote(root, "g0001", by="ada")


def test_an_invalid_test_asks_nobody_and_is_rolled_back(root: Path) -> None:
    assert launch_and_analyse(root, 10)["result"] == "invalid"
    with pytest.raises(ApprovalError, match="is invalid"):
        promotion_request(root, "g0001")
    with pytest.raises(RegistryError, match="is invalid"):
        promotion.promote(root, "g0001", by="ada")
    state = promotion.rollback(root, "g0001", "too few users", by="scheduler")
    assert state.champion.generation == "base"
    assert state.experiments["g0001"].end_reason == "too few users"
    assert promotion.rollback(root, "g0001", "again", by="retry") == state


def test_a_changed_analysis_is_noticed(root: Path) -> None:
    launch_and_analyse(root, 200)
    (kept,) = (root / "registry/generations/g0001").glob("analysis-*.json")
    kept.write_text(kept.read_text().replace('"valid"', '"valid" '))
    with pytest.raises(ApprovalError, match="the kept analysis of g0001 is"):
        promotion_request(root, "g0001")


def test_a_model_that_was_never_launched_is_declined(root: Path) -> None:
    promotion.rollback(root, "g0001", "launch not approved", by="scheduler")
    assert registry_of(root).history()[-1].kind == "declined"
    with pytest.raises(RegistryError, match="no experiment of generation g0001 is running"):
        analyse(root, "g0001", by="scheduler")
