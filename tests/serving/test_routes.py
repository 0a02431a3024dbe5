"""Routes from the registry alone: staff by override, tests beside each other, a champion that changed meanwhile."""

from datetime import UTC, datetime, timedelta

import pytest

from flywheel_tasks.online.assignment import assign, staff_key
from flywheel_tasks.serving.rollout import Route, RoutingError, rollout_of
from flywheel_tasks.storage.registry_state import Experiment, ModelRef, Override, Plan, State
from tests.online.people import DIGEST, make_plan

CONTROL = "sha256:" + "1" * 64
AT = datetime(2026, 11, 9, tzinfo=UTC)
END = AT + timedelta(days=7)


def model(generation: str, digest: str) -> ModelRef:
    return ModelRef(generation=generation, digest=digest, dvc=None, code_version="c", data_version="d")


def running(plan: Plan, *overrides: Override) -> Experiment:
    return Experiment(
        plan=plan, status="running", started_at=AT, ends_at=END, started_by="ada", overrides=overrides
    )


def test_staff_by_override_get_their_arm_and_are_not_exposed() -> None:
    plan = make_plan("g0001", share=0.5)
    given = Override(user=staff_key(plan.salt, "ada"), arm="candidate")
    none = Override(user=staff_key(plan.salt, "bob"), arm=None)
    state = State(
        champion=model("base", CONTROL),
        candidates={"g0001": model("g0001", DIGEST)},
        experiments={"g0001": running(plan, given, none)},
    )
    rollout = rollout_of(state, AT)
    ada, bob, eve = (rollout.route(user, AT) for user in ("ada", "bob", "eve"))
    assert (ada.model.generation, ada.arm, ada.exposes) == ("g0001", "candidate", False)
    assert (bob.model.generation, bob.arm, bob.exposes) == ("base", None, False)
    assert (eve.arm, eve.exposes) == (assign(plan.model_dump(mode="json"), "eve"), True)


def test_tests_beside_each_other_are_both_served() -> None:
    other = "sha256:" + "2" * 64
    first = make_plan("g0001", share=0.2, salt="a")
    second = make_plan("g0002", share=0.2, salt="b").beside([first])
    arms = (second.arms[0], second.arms[1].model_copy(update={"digest": other}))
    second = second.model_copy(update={"arms": arms, "model_digest": other})
    state = State(
        champion=model("base", CONTROL),
        candidates={"g0001": model("g0001", DIGEST), "g0002": model("g0002", other)},
        experiments={"g0001": running(first), "g0002": running(second)},
    )
    routes = [rollout_of(state, AT).route(f"user-{n}", AT) for n in range(500)]
    assert {(route.experiment, route.arm) for route in routes} == {
        ("g0001", "control"),
        ("g0001", "candidate"),
        ("g0002", "control"),
        ("g0002", "candidate"),
        (None, None),
    }


def test_a_test_goes_on_against_the_champion_of_its_start() -> None:
    plan = make_plan("g0001", share=0.5)
    state = State(
        champion=model("g0002", "sha256:" + "3" * 64),
        previous=model("base", CONTROL),
        candidates={"g0001": model("g0001", DIGEST)},
        experiments={"g0001": running(plan)},
    )
    served = {rollout_of(state, AT).route(f"user-{n}", AT).model.generation for n in range(100)}
    assert served == {"base", "g0001"}


def test_a_test_whose_control_is_not_known_any_more_is_told() -> None:
    """One that an older release started, after two promotions."""
    state = State(
        champion=model("g0003", "sha256:" + "3" * 64),
        previous=model("g0002", "sha256:" + "2" * 64),
        candidates={"g0001": model("g0001", DIGEST)},
        experiments={"g0001": running(make_plan("g0001", share=0.5))},
    )
    rollout = rollout_of(state, AT)
    assert rollout.running == ()
    assert rollout.unserved == ("experiment g0001 is not served: the registry lacks a model of it",)


def test_a_test_that_is_over_is_not_served_while_it_waits_for_its_answer() -> None:
    state = State(
        champion=model("base", CONTROL),
        candidates={"g0001": model("g0001", DIGEST)},
        experiments={"g0001": running(make_plan("g0001", share=0.5))},
    )
    before = rollout_of(state, END - timedelta(seconds=1))
    assert (len(before.running), before.over) == (1, ())
    after = rollout_of(state, END)
    told = "experiment g0001 is not served: its time was over at 2026-11-16 00:00 UTC, and it waits for its answer"
    assert (after.running, after.models(), after.unserved, after.over) == ((), [state.champion], (), (told,))
    users = [f"user-{n}" for n in range(100)]
    for rollout in (before, after):  # before: the registry is out of reach at the end
        assert {rollout.route(user, END) for user in users} == {Route(state.champion)}
    late = END - timedelta(microseconds=1)
    assert {before.route(user, late).arm for user in users} == {"control", "candidate"}
    with pytest.raises(RoutingError, match="no such arm now"):
        before.route("ada", END, "candidate")
