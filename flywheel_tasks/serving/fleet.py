"""The models that can be asked now: prepared in the background, each behind a circuit breaker."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from flywheel_tasks.serving.backend import Backend, ModelError, Piece, Prompt, RequestRefusedError
from flywheel_tasks.serving.breaker import Breaker
from flywheel_tasks.settings import ServeBreaker
from flywheel_tasks.storage.registry_state import ModelRef

Prepare = Callable[[ModelRef], Awaitable[Backend]]
_log = logging.getLogger(__name__)
# Of the time-out: who leaves earlier says nothing about the model, who leaves later was kept waiting by it.
_LONG = 0.25


class NotReadyError(ModelError):
    """The model is not asked now: it could not be loaded, or its breaker is open."""

    reason = "not_ready"


class LoadingError(NotReadyError):
    """The model is being loaded for the first time: it has not failed."""

    reason = "loading"


class _Slot:
    """One model: its backend once it is there."""

    def __init__(self, model: ModelRef, breaker: Breaker) -> None:
        self.model, self.breaker = model, breaker
        self.backend: Backend | None = None
        self.loading: asyncio.Task[None] | None = None
        self.error: str | None = None
        self.try_at = 0.0

    @property
    def state(self) -> str:
        """As :meth:`Fleet.states` has it."""
        if self.backend is None:
            return "loading" if self.error is None else "broken"
        return "failing" if self.breaker.open else "ready"


class Fleet:
    """Keeps the models of a rollout ready.

    Args:
        prepare: makes a model's backend; may take long.
        breaker: section ``serve.breaker``.
        timeout_seconds: for a whole reply, and for the wait for each piece of one. A call that is cancelled after a
            quarter of it counts as a failure of its model; one that is cancelled before counts as nothing.
        grace_seconds: for which a model that leaves still answers what was routed to it before; longer than a safety
            check, after which a request asks its model.

    Attributes:
        abandoned: cancelled calls that counted as failures, by generation.
    """

    def __init__(
        self, prepare: Prepare, *, breaker: ServeBreaker, timeout_seconds: float, grace_seconds: float
    ) -> None:
        self._prepare, self._breaker = prepare, breaker
        self._timeout, self._grace = timeout_seconds, grace_seconds
        self.abandoned: Counter[str] = Counter()
        self._slots: dict[str, _Slot] = {}
        self._leaving: dict[str, _Slot] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()

    def want(self, models: Sequence[ModelRef]) -> None:
        """Begin to prepare these models; those that could not be are tried again after the breaker's pause."""
        for model in models:
            slot = self._slots.get(model.digest)
            if slot is None:
                slot = _Slot(model, Breaker(self._breaker.failures, self._breaker.seconds))
                self._slots[model.digest] = slot
            idle = slot.loading is None or slot.loading.done()
            if slot.backend is None and idle and time.monotonic() >= slot.try_at:
                slot.loading = asyncio.create_task(self._load(slot))

    async def _load(self, slot: _Slot) -> None:
        try:
            slot.backend = await self._prepare(slot.model)
            slot.error = None
            _log.info("model ready", extra={"model": slot.model.generation})
        except Exception as error:  # of whatever kind: the model is broken, the gateway is not
            slot.error = f"{type(error).__name__}: {error}"
            slot.try_at = time.monotonic() + self._breaker.seconds
            _log.error("model not loaded: %s", slot.error, extra={"model": slot.model.generation})

    async def settle(self) -> None:
        """Wait until nothing is being loaded."""
        loading = [slot.loading for slot in self._slots.values() if slot.loading is not None]
        await asyncio.gather(*loading)

    async def ready_within(self, model: ModelRef, seconds: float) -> bool:
        """Whether a model that is wanted has been prepared; if it is being loaded, wait so long for it at most."""
        loading = self._slots[model.digest].loading
        if not self.ready(model) and loading is not None:
            await asyncio.wait([loading], timeout=seconds)
        return self.ready(model)

    def keep(self, models: Sequence[ModelRef]) -> None:
        """Let go of all other models, in the background: one that is still being loaded may take long.

        For some seconds the others still answer requests that were routed to them before.

        Args:
            models: that requests are routed to from now on.
        """
        kept = {model.digest for model in models}
        for digest in [digest for digest in self._slots if digest not in kept]:
            slot = self._leaving[digest] = self._slots.pop(digest)
            task = asyncio.create_task(self._let_go(slot))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _let_go(self, slot: _Slot) -> None:
        if slot.loading is not None:
            await slot.loading
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), self._grace)
        if self._leaving.get(slot.model.digest) is slot:
            del self._leaving[slot.model.digest]
        if slot.backend is not None:
            await slot.backend.close()

    def ready(self, model: ModelRef) -> bool:
        """Whether a model has been prepared."""
        slot = self._slots.get(model.digest)
        return slot is not None and slot.backend is not None

    def broken(self, model: ModelRef) -> bool:
        """Whether a model that is wanted could not be prepared when that was tried last."""
        return self._slots[model.digest].state == "broken"

    def states(self) -> dict[str, str]:
        """Of each model: ready, loading, failing (its breaker is open) or broken (it cannot be loaded)."""
        return {slot.model.generation: slot.state for slot in self._slots.values()}

    def described(self, model: ModelRef) -> str:
        """The state of a model that is wanted, and the error if it cannot be loaded."""
        slot = self._slots[model.digest]
        return f"broken: {slot.error}" if slot.state == "broken" else slot.state

    def _asked(self, model: ModelRef) -> tuple[_Slot, Backend]:
        slot = self._slots.get(model.digest) or self._leaving.get(model.digest)
        if slot is not None and slot.backend is None and slot.error is None:
            raise LoadingError(f"model {model.generation} is being loaded")
        if slot is None or slot.backend is None:
            raise NotReadyError(f"model {model.generation} is not ready")
        if not slot.breaker.allows():
            raise NotReadyError(f"model {model.generation} failed too often")
        return slot, slot.backend

    def _count(self, slot: _Slot) -> None:
        if slot.breaker.failed():
            _log.error("model stopped: it failed too often", extra={"model": slot.model.generation})

    @contextmanager
    def _waiting(self, slot: _Slot) -> Iterator[None]:
        """A wait for the model, which whoever asked may give up.

        Without this, a model that hangs longer than its users have patience would never be seen to fail.
        """
        began = time.monotonic()
        try:
            yield
        except asyncio.CancelledError:
            if (waited := time.monotonic() - began) >= self._timeout * _LONG:
                self.abandoned[slot.model.generation] += 1
                fields = {"model": slot.model.generation, "reason": "abandoned", "seconds": round(waited, 3)}
                _log.warning("a model did not answer", extra=fields)
                self._count(slot)
            raise

    def _note(self, slot: _Slot, error: Exception) -> ModelError:
        """Count a failure; the error to raise."""
        if isinstance(error, RequestRefusedError):
            slot.breaker.succeeded()
            return error
        self._count(slot)
        if isinstance(error, ModelError):
            return error
        return ModelError(f"model {slot.model.generation}: {type(error).__name__}")

    async def complete(self, model: ModelRef, prompt: Prompt) -> Piece:
        """Ask a model for a whole reply.

        Raises:
            ModelError: it gave none in time.
        """
        slot, backend = self._asked(model)
        try:
            with self._waiting(slot):
                async with asyncio.timeout(self._timeout):
                    piece = await backend.complete(prompt)
        except Exception as error:
            raise self._note(slot, error) from error
        slot.breaker.succeeded()
        return piece

    async def stream(self, model: ModelRef, prompt: Prompt) -> AsyncIterator[Piece]:
        """Ask a model for a reply in pieces, the last one with ``finish``.

        Raises:
            ModelError: it stopped, or a piece did not come in time.
        """
        slot, backend = self._asked(model)
        pieces = backend.stream(prompt)
        try:
            while True:
                try:
                    with self._waiting(slot):
                        async with asyncio.timeout(self._timeout):
                            piece = await anext(pieces)
                except Exception as error:  # StopAsyncIteration too: a reply must have an end
                    raise self._note(slot, error) from error
                if piece.finish is not None:
                    slot.breaker.succeeded()
                yield piece
                if piece.finish is not None:
                    return
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]

    async def close(self) -> None:
        """Let go of all models."""
        self._closed.set()
        self.keep([])
        await asyncio.gather(*self._closing)
