"""One message and its reply: check, route, ask, check, record; and only then acknowledge."""

import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.serving.backend import ModelError, Piece, Prompt
from flywheel_tasks.serving.events import Event, exposure_event, message_event, signal_event
from flywheel_tasks.serving.fleet import Fleet, NotReadyError
from flywheel_tasks.serving.journal import JournalError
from flywheel_tasks.serving.linking import Caller, Link
from flywheel_tasks.serving.metrics import Metrics
from flywheel_tasks.serving.outcome import BROKEN_OFF, FILTERED, INTERRUPTED, Outcome
from flywheel_tasks.serving.recorder import Recorder
from flywheel_tasks.serving.rollout import Rollout
from flywheel_tasks.serving.safety import Guard, Verdict
from flywheel_tasks.serving.speech import Speech, finished
from flywheel_tasks.serving.turns import REFUSAL, LoggedTurn, longer
from flywheel_tasks.storage.registry_state import ModelRef
from flywheel_tasks.traffic.schemas import REFUSAL_MODEL

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """What an exchange needs of the gateway.

    Attributes:
        fleet: the models.
        guard: the safety check.
        recorder: the logs.
        metrics: the counters.
        refusal: what is said in place of what may not be said.
    """

    fleet: Fleet
    guard: Guard
    recorder: Recorder
    metrics: Metrics
    refusal: str


class Exchange:
    """One message of a user and the reply to it.

    Args:
        services: of the gateway.
        rollout: who talks to which model.
        caller: whose message it is.
        card: the character.
        history: all turns, the last one the user's.
        link: its place in the logs.
        max_tokens: of the reply.
        arm: what staff chose, or None.
    """

    def __init__(
        self,
        services: Services,
        rollout: Rollout,
        *,
        caller: Caller,
        card: Card,
        history: list[Turn],
        link: Link,
        max_tokens: int,
        arm: str | None = None,
    ) -> None:
        self._services, self._rollout = services, rollout
        self._caller, self._card, self.link = caller, card, link
        # What was refused on its way in, or never judged, reaches no model with a later message either.
        shown = [turn for place, turn in enumerate(history) if place not in link.refused]
        self._prompt = Prompt(card, shown, max_tokens)
        self._arm = arm
        self._opened = self._refused = False
        self.outcome = Outcome()

    # The two ways to answer

    async def complete(self) -> Outcome:
        """The whole reply, recorded.

        Raises:
            ModelError: no model answered; nothing is recorded.
            JournalError: it could not be recorded.
        """
        out = self.outcome
        if await self._input_refused():
            return out
        for model in self._models():
            started = time.monotonic()  # of this model: one that failed before it may have taken a minute
            try:
                piece = await self._services.fleet.complete(model, self._prompt)
            except ModelError as error:
                self._failed(model, error)
                continue
            self._answered(model, piece, started)
            text = finished(piece.text, piece.finish or "stop")
            verdict = await self._services.guard.judge(text)
            if verdict.allowed:
                out.text = text
            else:
                self._block(verdict, "")
            await self._record()
            return out
        raise self._error

    async def stream(self) -> AsyncIterator[str]:
        """The reply in parts, each checked before it is given out; :attr:`outcome` is whole after the last one.

        Raises:
            ModelError: no model answered, or it stopped in the middle (what was shown is recorded).
            JournalError: it could not be recorded.
        """
        if await self._input_refused():
            yield self.outcome.text
            return
        for model in self._models():
            speech, started = Speech(), time.monotonic()
            try:
                async for text in self._spoken(model, speech, started):
                    yield text
                return
            except ModelError as error:
                self._failed(model, error, broken_off=bool(speech.shown))
                if speech.shown:
                    self.outcome.finish = BROKEN_OFF
                    raise
            finally:
                # Also when the client went away: the user has seen this much.
                if speech.shown and self.outcome.message is None:
                    self._left_early(model, speech)
        raise self._error

    async def _spoken(self, model: ModelRef, speech: Speech, started: float) -> AsyncIterator[str]:
        """One model's reply, up to the record of it."""
        pieces = self._services.fleet.stream(model, self._prompt)
        try:
            async for piece in pieces:
                upto = speech.add(piece.text)
                if piece.finish is not None:
                    upto = speech.end(piece.finish)
                    self._answered(model, piece, started)
                if len(upto) == len(speech.shown):
                    continue
                verdict = await self._services.guard.judge(upto)
                if not verdict.allowed:
                    # It may be stopped before its end: then how long the whole takes is not known.
                    self.outcome.model = model.generation
                    self._block(verdict, speech.shown)
                    if not speech.shown:
                        await self._record(self._opening(model))
                        yield self.outcome.text
                    break
                if not self._opened:
                    self._opened, self.outcome.model = True, model.generation
                    await self._services.recorder.submit(*self._opening(model))
                yield speech.show(upto)
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]
        if self.outcome.finish != FILTERED:
            self.outcome.text = speech.shown
        if self.outcome.message is None:
            await self._record()

    # Steps

    async def _input_refused(self) -> bool:
        """Check the user's message; True if it was refused, and that is recorded."""
        verdict = await self._services.guard.judge(self._prompt.history[-1]["content"])
        if verdict.allowed:
            return False
        self._note_block(verdict, "input")
        self._refused = True
        self.outcome.text, self.outcome.finish = self._services.refusal, FILTERED
        await self._record()
        return True

    def _models(self) -> list[ModelRef]:
        """Whom to ask: the arm's model, then the champion."""
        route = self.outcome.route = self._rollout.route(self._caller.user_id, self.link.time, self._arm)
        champion = self._rollout.champion
        self._error: ModelError = NotReadyError("no model was asked")
        return [route.model] if route.model.digest == champion.digest else [route.model, champion]

    def _failed(self, model: ModelRef, error: ModelError, *, broken_off: bool = False) -> None:
        self._error = error
        reason = error.reason if isinstance(error, NotReadyError) else "failed"
        self._services.metrics.add("flywheel_model_failures_total", model=model.generation, reason=reason)
        route = self.outcome.route
        own = route is not None and model.digest == route.model.digest != self._rollout.champion.digest
        if own and not broken_off:  # nobody stands in for the rest of a reply
            self.outcome.fallback = reason
            self._services.metrics.add("flywheel_fallbacks_total", model=model.generation, reason=reason)
        fields = {"model": model.generation, "reason": reason, "error": str(error)}
        _log.warning("a model did not answer", extra=fields)

    def _answered(self, model: ModelRef, piece: Piece, started: float) -> None:
        out = self.outcome
        out.model, out.finish = model.generation, piece.finish or "stop"
        out.prompt_tokens, out.completion_tokens = piece.prompt_tokens, piece.completion_tokens
        out.model_seconds = time.monotonic() - started

    def _note_block(self, verdict: Verdict, side: str) -> None:
        self._services.metrics.add("flywheel_safety_blocks_total", side=side, category=verdict.category)
        fields = {"side": side, "category": verdict.category, "model": self.outcome.model}
        _log.warning("refused by the safety check", extra=fields)

    def _block(self, verdict: Verdict, shown: str) -> None:
        """The model's reply may not be shown (any further)."""
        self._note_block(verdict, "output")
        self.outcome.finish = FILTERED
        self.outcome.text = shown or self._services.refusal

    # Recording

    def _opening(self, model: ModelRef | None) -> tuple[list[Event], list[LoggedTurn]]:
        """What is recorded before the reply: the user's message (a greeting first) or wish for another, their arm."""
        caller, link = self._caller, self.link
        who = {"user_id": caller.user_id, "source": caller.source}
        events: list[Event] = []
        turns: list[LoggedTurn] = []
        if link.replaces is None:
            for turn, text in link.said(self._prompt.history):
                events.append(message_event(turn, text, card_id=self._card.card_id, model=None, **who))
                turns.append(turn)
        else:
            events.append(signal_event(link.replaces, "regenerate", None, time=link.time, **who))
        route = self.outcome.route
        if model is not None and route is not None and route.exposes and model.digest == route.model.digest:
            assert route.experiment is not None
            assert route.arm is not None
            events.append(exposure_event(experiment=route.experiment, arm=route.arm, time=link.time, **who))
        return events, turns

    def _closing(self) -> tuple[list[Event], list[LoggedTurn]]:
        """What is recorded of the reply.

        A refusal is in the gateway's own words, no model's. Whose output was refused, all of it or the rest of what
        was shown, is in ``refused_model``, so that each violation counts for the model that committed it.
        """
        out, link = self.outcome, self.link
        turn = link.reply(out.text, datetime.now(UTC))
        filtered = out.finish == FILTERED
        more: dict[str, Any] = {"finish_reason": out.finish, "fallback": out.fallback}
        if out.model_seconds is not None:
            more |= {"latency_ms": round(out.model_seconds * 1000, 3)}
        if filtered:
            more |= {"refused_model": out.model}
        event = message_event(
            turn,
            out.text,
            user_id=self._caller.user_id,
            source=self._caller.source,
            card_id=self._card.card_id,
            model=REFUSAL_MODEL if filtered and out.text == self._services.refusal else out.model,
            **more,
        )
        return [event], [replace(turn, role=REFUSAL) if self._refused else turn]

    def _asked(self) -> ModelRef | None:
        """The model that answered."""
        route = self.outcome.route
        if self.outcome.model is None or route is None:
            return None
        return self._rollout.champion if self.outcome.fallback else route.model

    async def _record(self, opening: tuple[list[Event], list[LoggedTurn]] | None = None) -> None:
        """Make the rest of the exchange durable.

        Raises:
            JournalError: nothing of it was written.
        """
        events, turns = self._closing()
        if not self._opened:
            self._opened = True
            first = opening or self._opening(self._asked())
            events, turns = first[0] + events, first[1] + turns
        # Before the wait: what was handed over will be written, also if the client goes away meanwhile, and must
        # not be handed over a second time then.
        self.outcome.message = turns[-1]
        try:
            await self._services.recorder.submit(events, turns)
        except JournalError:
            self.outcome.message = None
            raise

    def _left_early(self, model: ModelRef, speech: Speech) -> None:
        """Record what was shown of a reply that did not come to its end."""
        out = self.outcome
        out.text, out.model = speech.shown, model.generation
        if out.finish not in (BROKEN_OFF, FILTERED):  # a violation counts, whoever leaves after it
            out.finish = INTERRUPTED
        events, (turn,) = self._closing()
        # How much of it arrived is not known: the conversation can be gone on with after any part.
        chains = [longer(self.link.turn.chain, "assistant", text) for text in speech.states()]
        self._services.recorder.submit(events, [replace(turn, chain=chain) for chain in chains])
        out.message = turn
