"""Models that come and go while requests are under way."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.serving import fleet as fleet_module
from flywheel_tasks.serving.backend import ModelError, Piece, Prompt
from flywheel_tasks.serving.events import message_event
from flywheel_tasks.serving.fleet import Fleet, NotReadyError
from flywheel_tasks.serving.gateway import open_gateway
from flywheel_tasks.serving.linking import Caller, link
from flywheel_tasks.settings import ServeBreaker
from flywheel_tasks.storage.registry_state import ModelRef
from tests.serving.conftest import logged, model

PROMPT = Prompt(Card("mira", "Mira", (), ()), [{"role": "user", "content": "Hi"}], 10)


class _Model:
    closed = False

    async def complete(self, prompt: Prompt) -> Piece:
        return Piece("Hello.", "stop")

    async def close(self) -> None:
        self.closed = True


def _fleet(backends: dict[str, Any], grace_seconds: float = 5.0) -> Fleet:
    async def prepare(one: ModelRef) -> Any:
        backend = backends[one.generation]
        return await backend if asyncio.isfuture(backend) else backend

    breaker = ServeBreaker(failures=3, seconds=1)
    return Fleet(prepare, breaker=breaker, timeout_seconds=20, grace_seconds=grace_seconds)


def test_a_model_that_leaves_answers_what_was_routed_to_it_before() -> None:

    async def run() -> None:
        old, new = _Model(), _Model()
        fleet = _fleet({"base": old, "g0001": new}, grace_seconds=0.2)
        fleet.want([model("base"), model("g0001")])
        await fleet.settle()
        fleet.keep([model("g0001")])
        assert (await fleet.complete(model("base"), PROMPT)).text == "Hello."
        assert set(fleet.states()) == {"g0001"}
        async with asyncio.timeout(20):
            while not old.closed:
                await asyncio.sleep(0.05)
        with pytest.raises(NotReadyError):
            await fleet.complete(model("base"), PROMPT)
        await fleet.close()
        assert new.closed

    asyncio.run(run())


def test_nobody_waits_for_a_model_that_hangs_while_it_is_loaded() -> None:
    async def run() -> None:
        hangs: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        fleet = _fleet({"base": _Model(), "g0001": hangs})
        fleet.want([model("base"), model("g0001")])
        await asyncio.sleep(0.01)
        fleet.keep([model("base")])  # at once
        assert fleet.states() == {"base": "ready"}
        hangs.set_result(late := _Model())
        await fleet.close()
        assert late.closed

    asyncio.run(run())


class _Hangs(_Model):
    """Has one piece, then none."""

    broken = False

    async def complete(self, prompt: Prompt) -> Piece:
        if self.broken:
            raise ModelError("it broke")
        await asyncio.Event().wait()
        raise AssertionError

    async def stream(self, prompt: Prompt) -> AsyncIterator[Piece]:
        yield Piece("Hello.")
        await asyncio.Event().wait()


def test_a_call_that_is_given_up_counts_once_it_has_waited_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "_LONG", 0.01)  # 0.2 s

    async def run() -> None:
        hangs = _Hangs()
        fleet = _fleet({"base": hangs})
        fleet.want([model("base")])
        await fleet.settle()

        async def whole() -> None:
            await fleet.complete(model("base"), PROMPT)

        async def pieces() -> None:
            async for _ in fleet.stream(model("base"), PROMPT):
                pass

        async def give_up(seconds: float, *calls: Callable[[], Coroutine[Any, Any, None]]) -> None:
            tasks = [asyncio.create_task(call()) for call in calls]
            await asyncio.sleep(seconds)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        await give_up(0.0, *[whole, pieces] * 3)
        assert (fleet.states(), fleet.abandoned) == ({"base": "ready"}, {})
        await give_up(0.4, whole, pieces)
        await give_up(0.0, whole, pieces)  # no success either: the count goes on
        assert (fleet.states(), fleet.abandoned) == ({"base": "ready"}, {"base": 2})
        hangs.broken = True
        with pytest.raises(ModelError, match="it broke"):
            await whole()
        assert fleet.states() == {"base": "failing"}
        await fleet.close()

    asyncio.run(run())


def test_what_a_cancelled_request_still_records_is_written(root: Path) -> None:
    """At the end of the drain requests are cancelled; their users have seen part of a reply."""

    async def run() -> None:
        gateway = open_gateway(root)
        gateway.in_flight = 1

        async def late() -> None:
            await asyncio.sleep(0.2)
            turn = link(gateway.turns, Caller("ann", "user", False), "mira", PROMPT.history).turn
            event = message_event(turn, "Hi", user_id="ann", source="user", card_id="mira", model=None)
            gateway.recorder.submit([event], [turn])
            gateway.in_flight = 0

        task = asyncio.create_task(late())
        await gateway.stop()
        await task

    asyncio.run(run())
    assert [row["text"] for row in logged(root, "message")] == ["Hi"]
