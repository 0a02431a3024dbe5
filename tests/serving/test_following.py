"""What is served while the registry's champion is not there, and what goes on besides."""

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.serving import following
from flywheel_tasks.serving.gateway import Gateway
from tests.serving.conftest import Live, logged, promote, start_experiment, user_of, wait_for
from tests.serving.conftest import model as ref_of
from tests.serving.stub import Stub

Start = Callable[..., Live]


def answered_by(gateway: Live, user: str = "ann") -> str:
    response = gateway.chat("Hi", user=user)
    return str(response.headers.get("x-flywheel-model", response.status_code))


def running(gateway: Live) -> list[str]:
    rollout = gateway.gateway.rollout
    return [] if rollout is None else [experiment.name for experiment in rollout.running]


def problems(gateway: Live) -> tuple[int, list[str]]:
    response = gateway.client.get("/readyz")
    return response.status_code, response.json()["problems"]


def test_a_harmful_test_stops_though_another_ones_winner_is_not_there(
    live: Start, root: Path, stub: Stub
) -> None:
    stub.served = ["base", "g0001"]
    plan = start_experiment(root, "g0001", share=0.2)
    start_experiment(root, "g0002", share=0.2, layer="other")
    gateway = live()
    user = user_of(plan, "candidate")
    assert answered_by(gateway, user) == "g0001"
    promote(root, "g0002")
    wait_for(lambda: running(gateway) == ["g0001"])
    assert answered_by(gateway, user) == "g0001"
    registry_of(root).rollback("g0001", "it did harm", by="ada")
    wait_for(lambda: running(gateway) == [])
    exposures = len(logged(root, "exposure"))
    assert answered_by(gateway, user) == "base"
    assert len(logged(root, "exposure")) == exposures
    status, (told,) = problems(gateway)
    assert (status, told.split(":")[0]) == (
        200,
        "the registry's champion is g0002, but base is still served",
    )
    wait_for(lambda: set(gateway.gateway.fleet.states()) == {"base", "g0002"})


def test_a_test_of_a_champion_that_is_not_there_waits_for_it(live: Start, root: Path, stub: Stub) -> None:
    """Its control's users would be answered by another model and not be exposed; its candidate's would."""
    stub.served = ["base", "g0002"]
    start_experiment(root, "g0001", share=0.2)
    gateway = live()
    promote(root, "g0001")
    plan = start_experiment(root, "g0002", share=0.5)
    waits = "experiment g0002 is not served: it waits for g0001"
    wait_for(lambda: waits in problems(gateway)[1])
    assert {answered_by(gateway, user_of(plan, arm)) for arm in ("control", "candidate")} == {"base"}
    assert logged(root, "exposure") == []
    assert "flywheel_experiments_unserved{" in gateway.client.get("/metrics").text
    stub.served.append("g0001")
    wait_for(lambda: answered_by(gateway, user_of(plan, "control")) == "g0001")
    assert answered_by(gateway, user_of(plan, "candidate")) == "g0002"
    assert problems(gateway) == (200, [])


def test_a_worker_that_starts_while_the_champion_is_not_there_serves_the_one_before(
    live: Start, root: Path, stub: Stub
) -> None:
    stub.served = ["base"]
    start_experiment(root, "g0001", share=0.2)
    before = live()
    promote(root, "g0001")
    wait_for(lambda: problems(before)[1] != [])
    kept = root / ".flywheel/serve/champion.json"
    for served_last in (
        True,
        False,
    ):  # if it is not known any more, the registry knows who was champion before
        if not served_last:
            kept.unlink()
        one = live()
        assert answered_by(one) == "base"
        status, (told,) = problems(one)
        assert (status, told.split(":")[0]) == (
            200,
            "the registry's champion is g0001, but base is still served",
        )
    stub.served.append("g0001")
    wait_for(lambda: answered_by(one) == "g0001")
    wait_for(lambda: set(one.gateway.fleet.states()) == {"g0001"})
    wait_for(lambda: "g0001" in kept.read_text())


def test_after_a_roll_back_the_champion_that_was_served_last_stands_in(
    live: Start, root: Path, stub: Stub
) -> None:
    """The registry names no champion before then."""
    start_experiment(root, "g0001", share=0.2)
    promote(root, "g0001")
    assert answered_by(live()) == "g0001"
    registry_of(root).restore("complaints", by="ada")
    stub.served = ["g0001"]
    assert answered_by(live()) == "g0001"


def test_a_champion_that_is_taken_back_before_it_is_there_does_not_stay(
    live: Start, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_SOON_SECONDS", 0.1)
    prepare, goes_on, closed = Gateway._prepare_upstream, threading.Event(), []

    class Backend:
        async def close(self) -> None:
            closed.append(True)

    async def slow(gateway: Gateway, model: Any) -> Any:
        if model.generation != "g0007":
            return await prepare(gateway, model)
        while not goes_on.is_set():
            await asyncio.sleep(0.02)
        return Backend()

    monkeypatch.setattr(Gateway, "_prepare_upstream", slow)
    gateway = live()
    fleet, registry = gateway.gateway.fleet, gateway.gateway._registry
    monkeypatch.setattr(fleet, "_grace", 0.1)
    state = registry.state()
    monkeypatch.setattr(registry, "state", lambda: state.model_copy(update={"champion": ref_of("g0007")}))
    try:
        wait_for(lambda: set(fleet.states()) == {"base", "g0007"})
        monkeypatch.setattr(registry, "state", lambda: state)
        wait_for(lambda: set(fleet.states()) == {"base"})
    finally:
        goes_on.set()
    wait_for(lambda: closed == [True])


def test_a_test_goes_on_through_any_number_of_promotions(live: Start, root: Path) -> None:
    plan = start_experiment(root, "g0001", share=0.1, layer="long")
    start_experiment(root, "g0002", share=0.1, layer="short")
    gateway = live()
    promote(root, "g0002")
    start_experiment(root, "g0003", share=0.1, layer="short")
    promote(root, "g0003")
    wait_for(lambda: answered_by(gateway, "nobody-of-a-test") == "g0003")
    assert answered_by(gateway, user_of(plan, "control")) == "base"
    assert answered_by(gateway, user_of(plan, "candidate")) == "g0001"
    assert problems(gateway) == (200, [])


def test_after_its_end_a_test_exposes_nobody_until_its_candidate_is_champion(live: Start, root: Path) -> None:
    plan = start_experiment(root, "g0001", duration=timedelta(0))
    gateway = live()
    users = [user_of(plan, arm) for arm in ("control", "candidate")]
    assert [answered_by(gateway, user) for user in users] == ["base", "base"]
    assert logged(root, "exposure") == []
    status, (told,) = problems(gateway)
    assert (status, told.split(":")[0]) == (200, "experiment g0001 is not served")
    assert set(gateway.gateway.fleet.states()) == {"base"}
    promote(root, "g0001")
    wait_for(lambda: answered_by(gateway, users[0]) == "g0001")
    wait_for(lambda: problems(gateway) == (200, []))
