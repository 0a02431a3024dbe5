"""Arms, exposures, changes without a restart, broken candidates."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.serving import fleet, following
from flywheel_tasks.serving.breaker import Breaker
from flywheel_tasks.serving.gateway import Gateway
from flywheel_tasks.storage.registry_state import restored
from tests.online.spooled import spooled
from tests.serving.conftest import Live, logged, start_experiment, user_of, wait_for
from tests.serving.conftest import model as ref_of
from tests.serving.stub import REPLY, Stub

Start = Callable[..., Live]


def answered_by(gateway: Live, user: str) -> str:
    return str(gateway.chat("Hi", user=user).headers["x-flywheel-model"])


def no_latency(gateway: Live, reply: dict[str, Any]) -> bool:
    """Whether neither the log nor the histogram has a time of the only reply so far."""
    wait_for(lambda: gateway.gateway.in_flight == 0)
    text = gateway.client.get("/metrics").text
    return "latency_ms" not in reply and "flywheel_model_seconds_count" not in text


def test_users_talk_to_their_arm_and_are_exposed(live: Start, root: Path, stub: Stub) -> None:
    plan = start_experiment(root, share=0.25)
    gateway = live()
    for arm, model in (("control", "base"), ("candidate", "g0001"), (None, "base")):
        user = user_of(plan, arm)
        first = gateway.chat("Hi", user=user)
        assert (first.headers["x-flywheel-model"], stub.asked[-1]["model"]) == (model, model)
        assert "arm" not in first.json()["flywheel"]
        rows = [row for row in logged(root) if row.get("user_id") == user]
        assert [row["model"] for row in rows if row["type"] == "message"] == [None, model]
        exposures = [row for row in rows if row["type"] == "exposure"]
        assert [(row["experiment"], row["arm"]) for row in exposures] == ([("g0001", arm)] if arm else [])
        # The analysis counts what a user did from the first exposure on: their message must not be before it.
        assert all(row["time"] <= rows[0]["time"] for row in exposures)


def test_staff_choose_an_arm_and_are_not_in_the_test_then(live: Start, root: Path) -> None:
    plan = start_experiment(root)
    gateway = live()
    user = user_of(plan, "control")
    for arm, model in (("candidate", "g0001"), ("champion", "base"), ("control", "base")):
        response = gateway.chat("Hi", user=user, role="staff", metadata={"arm": arm})
        assert response.headers["x-flywheel-model"] == model
    assert gateway.chat("Hi", user=user, role="staff", metadata={"arm": "third"}).status_code == 400
    assert logged(root, "exposure") == []
    drawn = gateway.chat("Hi", user=user, role="staff").json()["flywheel"]
    assert (drawn["experiment"], drawn["arm"]) == ("g0001", "control")
    assert [row["source"] for row in logged(root, "exposure")] == ["internal"]
    assert {row["source"] for row in logged(root, "message")} == {"internal"}


def test_changes_of_the_registry_need_no_restart(live: Start, root: Path) -> None:
    gateway = live()
    assert answered_by(gateway, "user-1") == "base"
    plan = start_experiment(root)
    user = user_of(plan, "candidate")
    wait_for(lambda: answered_by(gateway, user) == "g0001")
    registry_of(root).rollback("g0001", "it was worse", by="ada")
    wait_for(lambda: answered_by(gateway, user) == "base")
    exposed = len(logged(root, "exposure"))
    answered_by(gateway, user)
    assert len(logged(root, "exposure")) == exposed
    wait_for(lambda: gateway.gateway.fleet.states() == {"base": "ready"})


@pytest.mark.parametrize("mode", ["error", "garbage", "hang", "refuse"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_candidate_falls_back_and_says_so(
    make_live: Start, stub: Stub, mode: str, stream: bool
) -> None:
    gateway = make_live(timeout_seconds=3.0 if mode == "hang" else 20.0)
    root, plan = gateway.root, start_experiment(gateway.root)
    user = user_of(plan, "candidate")
    wait_for(lambda: gateway.gateway.fleet.states().get("g0001") == "ready")
    wait_for(lambda: bool(gateway.gateway.rollout and gateway.gateway.rollout.running))
    stub.modes["g0001"] = mode
    response = gateway.chat("Hi", user=user, stream=stream)
    assert response.status_code == 200
    assert response.headers["x-flywheel-fallback"] == "failed"
    assert response.headers["x-flywheel-model"] == "base"
    reply = logged(root, "message")[-1]
    assert (reply["text"], reply["model"], reply["fallback"]) == (REPLY, "base", "failed")
    if mode == "hang":  # the champion's own time, without what the other model used up
        assert reply["latency_ms"] < 3_000
    assert logged(root, "exposure") == []
    text = gateway.client.get("/metrics").text
    assert 'flywheel_fallbacks_total{model="g0001",reason="failed"} 1' in text


def test_a_candidate_that_keeps_failing_is_not_asked_until_it_may_have_recovered(
    live: Start, root: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = start_experiment(root)
    gateway = live()
    stub.modes["g0001"] = "error"
    user, now = user_of(plan, "candidate"), 0.0
    breaker = gateway.gateway.fleet._slots[plan.model_digest].breaker
    monkeypatch.setattr(breaker, "_now", lambda: now)
    reasons = [gateway.chat("Hi", user=user).headers["x-flywheel-fallback"] for _ in range(5)]
    assert reasons == ["failed"] * 3 + ["not_ready"] * 2
    assert sum(request["model"] == "g0001" for request in stub.asked) == 3
    assert gateway.client.get("/readyz").json()["models"] == {"base": "ready", "g0001": "failing"}
    del stub.modes["g0001"]
    assert answered_by(gateway, user) == "base"
    now = gateway.gateway.settings.serve.breaker.seconds
    assert answered_by(gateway, user) == "g0001"
    assert gateway.client.get("/readyz").json()["models"] == {"base": "ready", "g0001": "ready"}
    assert len(logged(root, "exposure")) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_no_model_at_all_is_an_error_and_nothing_is_recorded(
    live: Start, root: Path, stub: Stub, stream: bool
) -> None:
    gateway = live()
    stub.modes["base"] = "error"
    response = gateway.chat("Hi", stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_unavailable")
    assert response.headers["retry-after"] == "5"
    assert logged(root, "message") == []


def test_a_reply_that_breaks_off_is_recorded_as_far_as_it_was_shown(
    live: Start, root: Path, stub: Stub
) -> None:
    gateway = live()
    stub.modes["base"] = "break"
    _, parts = gateway.stream("Hi")
    assert parts[0]["choices"][0]["delta"]["content"] == "I keep the light."
    assert parts[-1]["error"]["code"] == "model_unavailable"
    wait_for(lambda: len(logged(root, "message")) == 2)
    reply = logged(root, "message")[-1]
    assert (reply["text"], reply["finish_reason"], reply["model"]) == ("I keep the light.", "error", "base")
    assert no_latency(gateway, reply)
    del stub.modes["base"]
    # The turn that broke off may still be closing: until then another turn of it is told to wait (409).
    wait_for(lambda: gateway.chat("Hi", "I keep the light.", "Go on").status_code == 200)


def test_a_candidates_reply_that_breaks_off_is_no_fallback(live: Start, root: Path, stub: Stub) -> None:
    plan = start_experiment(root)
    gateway = live()
    stub.modes["g0001"] = "break"
    _, parts = gateway.stream("Hi", user=user_of(plan, "candidate"))
    assert parts[-1]["error"]["code"] == "model_unavailable"
    wait_for(lambda: len(logged(root, "message")) == 2)
    reply = logged(root, "message")[-1]
    assert (reply["finish_reason"], reply["model"]) == ("error", "g0001")
    assert "fallback" not in reply
    assert "flywheel_fallbacks_total{" not in gateway.client.get("/metrics").text


def test_while_a_candidate_is_loaded_the_champion_answers_and_nothing_has_failed(
    live: Start, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_SOON_SECONDS", 0.1)
    plan = start_experiment(root)
    prepare, asked = Gateway._prepare_upstream, threading.Event()

    async def slow(gateway: Gateway, model: Any) -> Any:
        while model.generation == "g0001" and not asked.is_set():
            await asyncio.sleep(0.02)
        return await prepare(gateway, model)

    monkeypatch.setattr(Gateway, "_prepare_upstream", slow)
    gateway = live()
    response = gateway.chat("Hi", user=user_of(plan, "candidate"))
    asked.set()
    assert response.headers["x-flywheel-fallback"] == "loading"
    assert [row["kind"] for row in spooled(logged(root, "message"))[1]] == ["message", "reply"]


def test_a_client_that_goes_away_has_seen_what_is_recorded(live: Start, root: Path, stub: Stub) -> None:
    gateway = live()
    stub.replies["base"] = "First. Second sentence. Third sentence. The last."
    stub.pace = 0.1
    with gateway.open_stream("Hi") as lines:
        assert '"First."' in next(lines)
    wait_for(lambda: len(logged(root, "message")) == 2)
    reply = logged(root, "message")[-1]
    assert reply["finish_reason"] == "interrupted"
    assert reply["text"].startswith("First.")
    assert not reply["text"].endswith("The last.")
    assert no_latency(gateway, reply)
    wait_for(lambda: gateway.gateway.turns.by_id(reply["message_id"]) is not None)
    assert gateway.chat("Hi", "First.", "Go on").status_code == 200
    assert {row["conversation_id"] for row in logged(root, "message")} == {reply["conversation_id"]}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_it_is_shown_anything_was_not_exposed_and_said_nothing(
    make_live: Start, stub: Stub, stream: bool
) -> None:
    gateway = make_live(timeout_seconds=60.0)
    plan = start_experiment(gateway.root)
    wait_for(lambda: bool(gateway.gateway.rollout and gateway.gateway.rollout.running))
    user, stub.seconds = user_of(plan, "candidate"), 5.0
    body = {"model": "character:mira", "messages": [{"role": "user", "content": "Hi"}], "user": user}
    for _ in range(2):
        stub.asked.clear()
        with gateway.leaving("/v1/chat/completions", orjson.dumps(body | {"stream": stream})):
            wait_for(lambda: len(stub.asked) == 1)
        wait_for(lambda: gateway.gateway.in_flight == 0)
    assert logged(gateway.root) == []
    assert gateway.counted("/v1/chat/completions", 499) == 2
    stub.seconds = 0.0
    assert gateway.chat("Hi", user=user, stream=stream).status_code == 200
    rows = [row for row in logged(gateway.root) if row.get("user_id") == user]
    assert sorted(row["type"] for row in rows) == ["exposure", "message", "message"]
    assert gateway.chat("Hi", REPLY, "Go on", user=user).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_hangs_longer_than_its_users_wait_is_seen_to_fail(
    make_live: Start, stub: Stub, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(fleet, "_LONG", 0.01)  # 0.6 s
    gateway = make_live(**{"timeout_seconds": 60.0, "breaker.seconds": 60.0})
    plan = start_experiment(gateway.root)
    wait_for(lambda: bool(gateway.gateway.rollout and gateway.gateway.rollout.running))
    user, stub.modes["g0001"] = user_of(plan, "candidate"), "hang"
    body = {"model": "character:mira", "messages": [{"role": "user", "content": "Hi"}], "user": user}
    with ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(
                gateway.leaving("/v1/chat/completions", orjson.dumps(body | {"stream": stream}))
            )
        wait_for(lambda: len(stub.asked) == 3)
        time.sleep(0.7)
    wait_for(lambda: gateway.gateway.in_flight == 0)
    assert gateway.counted("/v1/chat/completions", 499) == 3
    assert gateway.gateway.fleet.states() == {"base": "ready", "g0001": "failing"}
    text = gateway.client.get("/metrics").text
    assert 'flywheel_model_failures_total{model="g0001",reason="abandoned"} 3' in text
    assert logged(gateway.root) == []
    assert gateway.chat("Hi", user=user, stream=stream).headers["x-flywheel-fallback"] == "not_ready"


def test_a_client_that_leaves_during_the_last_sync_is_recorded_once(
    live: Start, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = live()
    recorder = gateway.gateway.recorder
    commit, recording, left = recorder._commit, [], threading.Event()

    def slow(batches: Any) -> None:
        recording.append(True)
        if len(recording) == 2:  # the first one has the message and lets the stream begin
            left.wait(60)
        commit(batches)

    monkeypatch.setattr(recorder, "_commit", slow)
    with gateway.open_stream("Hi") as lines:
        assert ["keep the light" in next(lines), "calm tonight" in next(lines)] == [True, True]
        wait_for(lambda: len(recording) == 2)
    wait_for(lambda: gateway.gateway.in_flight == 0)
    left.set()
    assert gateway.chat("Hello").status_code == 200  # written after all that was handed over before
    texts = [row["text"] for row in logged(root, "message")]
    assert sorted(texts) == sorted(["Hi", REPLY, "Hello", REPLY])
    assert logged(root, "message")[1]["finish_reason"] == "stop"
    assert gateway.chat("Hi", REPLY, "Go on").status_code == 200


def test_breaker() -> None:
    now = 0.0
    breaker = Breaker(2, 10, now=lambda: now)
    assert breaker.allows()
    assert not breaker.failed()
    breaker.succeeded()
    assert not breaker.failed()
    assert breaker.failed()
    assert breaker.open
    assert not breaker.allows()
    now = 10.0
    assert [breaker.allows(), breaker.allows()] == [True, False]
    assert not breaker.failed()
    now = 20.0
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.allows()


def test_a_champion_that_its_server_does_not_list_never_takes_over(
    live: Start, root: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A roll-back to a model that the server has let go must not take the product down."""
    stub.served = ["base"]
    gateway = live()
    restored = registry_of(root).state().model_copy(update={"champion": ref_of("g0001")})
    monkeypatch.setattr(gateway.gateway._registry, "state", lambda: restored)
    wait_for(lambda: "/v1/models does not list g0001, but base" in caplog.text)
    assert answered_by(gateway, "ann") == "base"

    def ready() -> tuple[int, bool, list[str]]:
        response = gateway.client.get("/readyz")
        return response.status_code, response.json()["ready"], response.json()["problems"]

    wait_for(lambda: ready()[2] != [])
    wait_for(lambda: "is broken" in ready()[2][0])
    status, able, (problem,) = ready()
    assert (status, able) == (200, True)  # it goes on serving, but not what the registry says
    assert problem.startswith("the registry's champion is g0001, but base is still served: g0001 is broken")
    assert problem.endswith("/v1/models does not list g0001, but base")
    overdue = "flywheel_champion_overdue{"
    (line,) = [line for line in gateway.client.get("/metrics").text.splitlines() if line.startswith(overdue)]
    assert line.endswith(" 1.0")
    stub.served = ["base", "g0001"]
    wait_for(lambda: answered_by(gateway, "ann") == "g0001")
    wait_for(lambda: ready() == (200, True, []))


def test_a_roll_back_ends_tests_at_once_even_while_its_champion_is_not_there(
    live: Start, root: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.served = ["base", "g0001"]
    plan = start_experiment(root)
    user = user_of(plan, "candidate")
    gateway = live()
    wait_for(lambda: answered_by(gateway, user) == "g0001")
    restored_ = restored(registry_of(root).state(), "complaints", ref_of("g0002"))
    monkeypatch.setattr(gateway.gateway._registry, "state", lambda: restored_)
    wait_for(lambda: answered_by(gateway, user) == "base")
    exposed = len(logged(root, "exposure"))
    assert answered_by(gateway, user) == "base"
    assert len(logged(root, "exposure")) == exposed
    wait_for(lambda: set(gateway.gateway.fleet.states()) == {"base", "g0002"})
    stub.served.append("g0002")
    wait_for(lambda: answered_by(gateway, user) == "g0002")


def test_a_server_that_lists_others_only_is_not_ready(live: Start, root: Path, stub: Stub) -> None:
    stub.served = ["somebody-else"]
    gateway = live()
    assert gateway.chat("Hi").status_code == 503
    wait_for(lambda: gateway.gateway.following.overdue is not None)
    assert gateway.client.get("/readyz").json()["problems"] == ["the champion is broken"]
    stub.served = ["base:latest"]  # as some servers call what answers to the plain name
    wait_for(lambda: gateway.chat("Hi").status_code == 200)
