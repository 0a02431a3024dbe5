"""The gateway's parts, put together, and the watch that picks up changes without a restart."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from flywheel_tasks.safety.classifier import SafetyClassifier, classifier_of
from flywheel_tasks.serving.backend import Backend
from flywheel_tasks.serving.cards import Cards, card_lines, load_cards
from flywheel_tasks.serving.exchange import Services
from flywheel_tasks.serving.fleet import Fleet
from flywheel_tasks.serving.following import Following
from flywheel_tasks.serving.keys import KeyRing, keys_path, read_keys
from flywheel_tasks.serving.limits import RateLimiter
from flywheel_tasks.serving.metrics import Metrics, metrics_folder
from flywheel_tasks.serving.recorder import Recorder
from flywheel_tasks.serving.remembered import RememberedChampion, RememberedRegistry
from flywheel_tasks.serving.rollout import Rollout
from flywheel_tasks.serving.safety import Guard
from flywheel_tasks.serving.turns import TurnIndex
from flywheel_tasks.serving.upstream import UpstreamModel, upstream_client
from flywheel_tasks.serving.workers import process_name
from flywheel_tasks.settings import Settings, load_settings
from flywheel_tasks.storage.registry import open_registry
from flywheel_tasks.storage.registry_state import ModelRef
from flywheel_tasks.storage.simulated import MARKER

_log = logging.getLogger(__name__)
_PUBLISH_SECONDS = 1.0
_LAST_WORDS_SECONDS = 2.0
_ROUTING_SECONDS = 3.0  # from the check of a message to the call of its model, at most
# Word lists take microseconds; a model in this process is asked by one thread at a time.
_SAFETY_THREADS = {"words": 0, "local": 1, "http": 32}


class GatewayError(RuntimeError):
    """The gateway cannot start; the message says why and what to do."""


def _logs_folder(root: Path, settings: Settings) -> Path:
    if "://" in settings.serve.logs:
        raise GatewayError(f"serve.logs is {settings.serve.logs}: the gateway writes to a folder")
    folder = root / settings.serve.logs
    if (folder / MARKER).exists():
        raise GatewayError(
            f"{folder} (serve.logs) holds simulated traffic; real conversations need another folder"
        )
    return folder


@dataclass
class _Watched:
    """A file that is read again when it changes."""

    path: Path
    seen: tuple[int, int] | None = None

    @contextlib.contextmanager
    def change(self) -> Iterator[bool]:
        """Whether it changed since it was last read in such a block; one that fails does not count as read."""
        try:
            status = self.path.stat()
            now = (status.st_mtime_ns, status.st_ino)
        except FileNotFoundError:
            now = None
        yield now != self.seen
        self.seen = now


@dataclass(frozen=True)
class _Step:
    """What is done again and again.

    Attributes:
        what: it brings up to date, for the log.
        run: does it once.
        pause: seconds between two times.
    """

    what: str
    run: Callable[[], Awaitable[None]]
    pause: float


class Gateway:
    """One worker's gateway.

    Args:
        root: the workspace.
        settings: all settings.
        classifier: of safety; by default the one of the settings.
        parent: process id of the gateway's parent, which names the workers' common folder.
    """

    def __init__(
        self,
        root: Path,
        settings: Settings,
        *,
        classifier: SafetyClassifier | None = None,
        parent: int | None = None,
    ) -> None:
        self.root, self.settings = root, settings
        serve = settings.serve
        self.state = root / serve.state
        self.state.mkdir(parents=True, exist_ok=True)
        registry = open_registry(settings.registry.location, root)
        self._registry = RememberedRegistry(registry, self.state / "registry.json")
        self._cards_file = _Watched(root / serve.cards)
        with self._cards_file.change():
            self.cards: Cards = load_cards(self._cards_file.path)
        self._keys_file = _Watched(keys_path(self.state))
        with self._keys_file.change():
            self.keys = KeyRing(read_keys(self._keys_file.path))
        self.limits = RateLimiter(
            self.state / "limits", per_minute=serve.rate.per_minute, burst=serve.rate.burst
        )
        self.metrics = Metrics(metrics_folder(self.state, parent or os.getpid()), process_name())
        self.recorder = Recorder(
            _logs_folder(root, settings),
            self.state / "turns.sqlite",
            window=serve.segment_seconds,
            turn_days=serve.turn_days,
            heading=lambda: card_lines(self.cards),
        )
        self.turns = TurnIndex(self.state / "turns.sqlite")
        self.in_flight = 0
        self.draining = False
        self._client: aiohttp.ClientSession | None = None
        self._watching: list[asyncio.Task[None]] = []
        self.fleet = Fleet(
            self._prepare_local if serve.backend == "local" else self._prepare_upstream,
            breaker=serve.breaker,
            timeout_seconds=serve.timeout_seconds,
            grace_seconds=serve.safety_seconds + _ROUTING_SECONDS,
        )
        served = RememberedChampion(self.state / "champion.json")
        self.following = Following(self._registry, self.fleet, served)
        self._looks = (
            _Step("keys", self._look_at_keys, serve.poll_seconds),
            _Step("cards", self._look_at_cards, serve.poll_seconds),
            _Step("rollout", self.following.look, serve.poll_seconds),
        )
        if classifier is None:
            classifier = classifier_of(settings, root / "safety_words")
        guard = Guard(
            classifier,
            threshold=settings.safety.threshold,
            seconds=serve.safety_seconds,
            threads=_SAFETY_THREADS[settings.safety.classifier],
        )
        self.services = Services(self.fleet, guard, self.recorder, self.metrics, serve.refusal)

    @property
    def rollout(self) -> Rollout | None:
        """Who talks to which model now; None before there is a champion."""
        return self.following.rollout

    # Models

    async def _prepare_local(self, model: ModelRef) -> Backend:
        from flywheel_tasks.pipeline.model_files import model_folder
        from flywheel_tasks.serving.local import LocalModel

        def load() -> Backend:
            return LocalModel(
                model_folder(self.root, model),
                settings=self.settings.serve.local,
                sampling=self.settings.sampling,
                compute=self.settings.compute,
                max_prompt_tokens=self.settings.prompt.max_tokens,
            )

        return await asyncio.to_thread(load)

    async def _prepare_upstream(self, model: ModelRef) -> Backend:
        serve = self.settings.serve
        if self._client is None:
            self._client = upstream_client(serve.upstream, serve.timeout_seconds)
        upstream = UpstreamModel(
            model.generation,
            settings=serve.upstream,
            sampling=self.settings.sampling,
            history_turns=serve.history_turns,
            client=self._client,
        )
        await upstream.check()
        return upstream

    # Changes

    async def look(self) -> None:
        """Look at the keys, the cards and the registry once; take over what changed."""
        for step in self._looks:
            await self._try(step)

    async def _try(self, step: _Step) -> None:
        try:
            await step.run()
        except Exception as error:  # what was there before goes on, until a later try succeeds
            _log.error("%s not brought up to date: %s: %s", step.what, type(error).__name__, error)

    async def _look_at_keys(self) -> None:
        with self._keys_file.change() as changed:
            if changed:
                self.keys = KeyRing(read_keys(self._keys_file.path))
                _log.info("keys read again", extra={"keys": len(self.keys)})

    async def _look_at_cards(self) -> None:
        with self._cards_file.change() as changed:
            if changed:
                await self._read_cards()

    async def _read_cards(self) -> None:
        cards = await asyncio.to_thread(load_cards, self._cards_file.path)
        known = self.cards.events
        new = [event for card_id, event in cards.events.items() if known.get(card_id) != event]
        if new:  # the logs know a card before anybody talks to it
            await self.recorder.submit(new)
        self.cards = cards
        _log.info("cards read again", extra={"cards": len(cards.by_id), "changed": len(new)})

    async def start(self) -> None:
        """Look for the first time and keep looking."""
        await self.look()
        # A task each: a registry that hangs, or a model that takes long, must not keep a revoked key alive.
        steps = (*self._looks, _Step("counters", self._publish, _PUBLISH_SECONDS))
        self._watching = [asyncio.create_task(self._repeat(step)) for step in steps]

    async def _repeat(self, step: _Step) -> None:
        while True:
            await asyncio.sleep(step.pause)
            await self._try(step)

    async def _publish(self) -> None:
        self.count()
        await asyncio.to_thread(self.metrics.publish)

    def count(self) -> None:
        """Bring the figures that are kept elsewhere into the metrics."""
        self.metrics.set("flywheel_events_written_total", self.recorder.written)
        self.metrics.set("flywheel_commits_total", self.recorder.commits)
        self.metrics.set("flywheel_in_flight", self.in_flight)
        self.metrics.set("flywheel_champion_overdue", float(bool(self.following.late())))
        self.metrics.set("flywheel_experiments_unserved", len(self.following.unserved()))
        ready = {model: float(state == "ready") for model, state in self.fleet.states().items()}
        self.metrics.set_each("flywheel_model_ready", "model", ready)
        for model, calls in self.fleet.abandoned.items():
            self.metrics.set("flywheel_model_failures_total", calls, model=model, reason="abandoned")

    def problems(self) -> list[str]:
        """Why the gateway cannot serve now; empty if it can."""
        found = []
        if self.rollout is None:
            found.append("the registry has no champion, or cannot be read")
        elif (state := self.fleet.states().get(self.rollout.champion.generation)) != "ready":
            found.append(f"the champion is {state}")
        if not self.recorder.healthy:
            found.append("events, or the index of turns, cannot be written")
        if self.draining:
            found.append("shutting down")
        return found

    def warnings(self) -> list[str]:
        """What is not as the registry wants it, though the gateway can serve; empty if all is."""
        return [*self.following.late(), *self.following.unserved()]

    async def stop(self) -> None:
        """Write and seal everything, let go of everything."""
        self.draining = True
        for task in self._watching:
            task.cancel()
        # Requests that were cancelled at the end of the drain still record what their users have seen.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                while self.in_flight:
                    await asyncio.sleep(0.01)
        await asyncio.to_thread(self.recorder.close)
        self.count()
        self.metrics.publish()
        await self.fleet.close()
        if self._client is not None:
            await self._client.close()
        self.turns.close()


def open_gateway(
    root: Path, classifier: SafetyClassifier | None = None, parent: int | None = None
) -> Gateway:
    """The gateway of a workspace."""
    return Gateway(root, load_settings(root / "params.yaml"), classifier=classifier, parent=parent)
