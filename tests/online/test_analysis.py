"""The A/B analysis: figures against scipy, every reason for an invalid test, and the end of a test."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from flywheel_tasks.online import launch, promotion
from flywheel_tasks.online.analysis import ANALYSIS, _lifts, analyse, analyse_exposed
from flywheel_tasks.online.approval import ApprovalError, promotion_request, registry_of
from flywheel_tasks.online.assignment import assign
from flywheel_tasks.online.exposed import Exposed, Reading, read_exposed
from flywheel_tasks.settings import Ab
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry_state import Arm, Plan, RegistryError
from tests.dags.small import ab_events, write_logs
from tests.online.conftest import approve, write_model
from tests.online.test_launch import run_launch

NOW = datetime(2026, 11, 9, tzinfo=UTC)
DIGEST = "sha256:" + "0" * 64
AB = Ab(duration_minutes=1, alpha=0.05, min_users_per_arm=20)
PLAN = Plan(
    experiment="g0001",
    generation="g0001",
    salt="s",
    layer="policy",
    arms=(
        Arm(name="control", share=0.5, model="base", digest="sha256:" + "1" * 64),
        Arm(name="candidate", share=0.5, model="g0001", digest=DIGEST),
    ),
    verdict_digest=DIGEST,
    model_digest=DIGEST,
)


def users(number: int, messages) -> list[Exposed]:
    """Users in the arms that the plan gives them, each with the messages that a function of both says."""
    document = PLAN.model_dump(mode="json")
    made = []
    for index in range(number):
        name = f"user-{index}"
        arm = assign(document, name)
        assert arm is not None
        count = messages(arm, index)
        made.append(Exposed(name, NOW, [arm], messages=count, replies=count))
        made[-1].signals["thumb_up"] = count // 3
    return made


def reading(exposed: list[Exposed]) -> Reading:
    return Reading(exposed, partitions=1, logs_digest=DIGEST, unreadable=0, repeated=0)


def analysed(found: Reading) -> dict:
    return analyse_exposed(PLAN, found, AB, simulated=False)


def some(arm: str, index: int) -> int:
    return (index * 7) % 5 + (arm == "candidate" and index % 2)


def test_figures_agree_with_scipy() -> None:
    exposed = users(400, some)
    found = analysed(reading(exposed))
    assert found["result"] == "valid", found["reasons"]
    arms = {
        arm: np.array([user.messages for user in exposed if user.arms == [arm]])
        for arm in ("control", "candidate")
    }
    assert found["users"] == {arm: len(values) for arm, values in arms.items()}
    depth = found["metrics"]["depth"]
    assert depth["control"] == pytest.approx(arms["control"].mean())
    assert depth["candidate"] == pytest.approx(arms["candidate"].mean())
    lift = depth["lift_percent"]
    assert lift["value"] == pytest.approx(100 * (arms["candidate"].mean() / arms["control"].mean() - 1))
    assert lift["low"] < lift["value"] < lift["high"]
    welch = stats.ttest_ind(arms["candidate"], arms["control"], equal_var=False)
    assert depth["pvalue"] == pytest.approx(welch.pvalue, rel=1e-6)
    active = {arm: (values > 0).mean() for arm, values in arms.items()}
    assert found["metrics"]["breadth"]["control"] == pytest.approx(active["control"])
    assert found["metrics"]["breadth"]["lift_percent"]["value"] == pytest.approx(
        100 * (active["candidate"] / active["control"] - 1)
    )
    sizes = [len(values) for values in arms.values()]
    assert found["sample_ratio"]["pvalue"] == pytest.approx(stats.binomtest(sizes[1], sum(sizes), 0.5).pvalue)


def test_the_interval_covers_the_true_lift() -> None:
    # 60 tests with a true lift of 25 percent: a 95% interval misses it about 3 times (10 at most, p = 0.001),
    # a 50% interval 30 times (18 at least).
    generator, missed, half = np.random.default_rng(7), 0, 0
    exposed = users(300, some)
    for _ in range(60):
        for user in exposed:
            user.messages = int(generator.poisson(2.5 if user.arms == ["candidate"] else 2.0))
        lift, narrow = (_lifts(exposed, alpha)["depth"]["lift_percent"] for alpha in (0.05, 0.5))
        missed += not lift["low"] <= 25 <= lift["high"]
        half += not narrow["low"] <= 25 <= narrow["high"]
    assert missed <= 10
    assert 18 <= half <= 42


def test_a_signal_that_nobody_gave_has_no_lift() -> None:
    found = analysed(reading(users(400, some)))
    assert found["metrics"]["thumb_down_per_reply"]["lift_percent"]["value"] is None
    assert not any(
        isinstance(value, float) and not math.isfinite(value)
        for metric in found["metrics"].values()
        for value in metric["lift_percent"].values()
    )


def test_too_few_users_prove_nothing() -> None:
    found = analysed(reading(users(30, some)))
    assert found["result"] == "invalid"
    assert any("at least 20 are needed" in reason for reason in found["reasons"])


@pytest.mark.parametrize("exposed", [[], users(1, some)])
def test_nobody_proves_nothing(exposed: list[Exposed]) -> None:
    found = analysed(reading(exposed))
    assert found["result"] == "invalid"
    assert found["metrics"] == {}


def test_a_wrong_ratio_is_invalid() -> None:
    exposed = [user for user in users(600, some) if user.arms == ["control"] or int(user.user_id[5:]) % 3]
    found = analysed(reading(exposed))
    assert found["sample_ratio"]["pvalue"] < 0.001
    assert any("sizes do not fit" in reason for reason in found["reasons"])


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (["control", "candidate"], "1 users were exposed to more than one arm"),
        (["other"], "1 users were exposed to an arm that the plan does not have"),
        (["swap"], "1 users were exposed to an arm that the plan does not give them"),
    ],
)
def test_a_wrong_exposure_is_invalid(arms: list[str], message: str) -> None:
    exposed = users(400, some)
    other = {"control": "candidate", "candidate": "control"}
    exposed[0].arms = [other[exposed[0].arms[0]]] if arms == ["swap"] else arms
    found = analysed(reading(exposed))
    assert found["result"] == "invalid"
    assert message in found["reasons"]


def test_without_messages_there_is_no_lift() -> None:
    found = analysed(reading(users(400, lambda arm, index: 0)))
    assert {"breadth has no lift with an interval", "depth has no lift with an interval"} <= set(
        found["reasons"]
    )


def test_only_what_follows_the_first_exposure_counts(tmp_path: Path) -> None:
    plan = PLAN.model_dump(mode="json")
    events = [e for e in ab_events(plan, 1) if e["type"] == "exposure"] + [
        e for e in ab_events(plan, 3) if e["user_id"] == "user-0001"
    ]
    talk = {"conversation_id": "c", "card_id": "c1", "role": "user", "text": "hi"}

    def message(name: str, minutes: int, user: str) -> dict:
        at = (datetime(2026, 11, 9, 9, tzinfo=UTC) + timedelta(minutes=minutes)).isoformat()
        return (
            {"type": "message", "event_id": name, "message_id": name, "time": at, "source": "user"}
            | talk
            | {"user_id": user}
        )

    events += [message("before", -5, "user-0001"), message("after", 90, "user-0001")]
    events += [message("after", 90, "user-0001"), message("stranger", 5, "nobody")]
    write_logs(tmp_path, "date=2026-11-09", events)
    with (tmp_path / "data/logs/date=2026-11-09/part-000.jsonl").open("a") as file:
        file.write("not json\n")
    found = read_exposed("data/logs", tmp_path, "g0001", max_line_bytes=100_000)
    known = {user.user_id: user for user in found.users}
    assert sorted(known) == ["user-0000", "user-0001"]
    told = [e for e in ab_events(plan, 3) if e.get("role") == "user" and e["user_id"] == "user-0001"]
    assert known["user-0001"].messages == len(told) + 1
    assert known["user-0001"].replies == len(told)
    assert known["user-0000"].messages == 0
    assert (found.unreadable, found.repeated) == (1, 1)
    assert read_exposed("data/logs", tmp_path, "g0002", max_line_bytes=100_000).users == []


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

    with pytest.raises(RegistryError, match="no recorded approval"):
        promotion.promote(root, "g0001", by="ada")
    shown = promotion_request(root, "g0001")
    assert "**Simulated.**" in shown.body
    assert shown.evidence_digest in shown.body
    assert f"{found['metrics']['depth']['lift_percent']['value']:+.1f}%" in shown.body
    approve(root, "promotion")
    champion = promotion.promote(root, "g0001", by="ada")
    assert champion.digest == found["model_digest"]
    assert promotion.promote(root, "g0001", by="retry") == champion
    assert registry_of(root).state().experiments["g0001"].status == "promoted"


def test_other_files_are_not_promoted(root: Path) -> None:
    launch_and_analyse(root, 200)
    approve(root, "promotion")
    write_model(root, "another")
    with pytest.raises(promotion.PromotionError, match="but the candidate of g0001 is"):
        promotion.promote(root, "g0001", by="ada")
    write_model(root)
    (root / "dvc.lock").write_text((root / "dvc.lock").read_text().replace("0123", "9999"))
    with pytest.raises(promotion.PromotionError, match=r"dvc\.lock has 9999"):
        promotion.promote(root, "g0001", by="ada")
    assert registry_of(root).state().champion.generation == "base"


def test_a_new_analysis_needs_a_new_approval(root: Path) -> None:
    launch_and_analyse(root, 200)
    approve(root, "promotion")
    write_logs(root, "date=2026-11-10", ab_events(read_json(root / "launch/plan.json"), 3))
    analyse(root, "g0001", by="scheduler")
    with pytest.raises(RegistryError, match="was approved for model"):
        promotion.promote(root, "g0001", by="ada")


def test_an_invalid_test_asks_nobody_and_is_rolled_back(root: Path) -> None:
    assert launch_and_analyse(root, 10)["result"] == "invalid"
    with pytest.raises(ApprovalError, match="is invalid"):
        promotion_request(root, "g0001")
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
