"""A model in this process: requests that wait are answered together, on a thread of the model's own."""

import asyncio
import logging
import queue
import secrets
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from flywheel_tasks.chat.prompt import prompt_ids
from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.serving.backend import ModelError, Piece, Prompt
from flywheel_tasks.settings import Compute, Sampling, ServeLocal

_log = logging.getLogger(__name__)
# Loading changes settings of the whole process for a while: two models at once come out broken.
_LOADING = threading.Lock()


@dataclass
class _Asked:
    """A request in the queue; ``gone`` once nobody waits for it."""

    max_tokens: int
    loop: asyncio.AbstractEventLoop
    pieces: "asyncio.Queue[Piece | ModelError]"
    ids: list[int] = field(default_factory=list)
    gone: bool = False
    drawn: list[int] = field(default_factory=list)
    shown: int = 0

    def tell(self, piece: Piece | ModelError) -> None:
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:  # the server has ended
            self.gone = True


class LocalModel:
    """A policy served from its folder.

    Requests that come within ``batch_wait_ms`` are read and answered as one batch; later ones wait for it to end.

    Args:
        model_dir: of the policy.
        settings: section ``serve.local``.
        sampling: how replies are drawn.
        compute: precision and threads.
        max_prompt_tokens: of card and history together; the oldest turns go first.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        settings: ServeLocal,
        sampling: Sampling,
        compute: Compute,
        max_prompt_tokens: int,
    ) -> None:
        self._settings, self._sampling = settings, sampling
        with _LOADING:
            self._sampler = Sampler(
                model_dir, sampling=sampling, compute=compute, max_prompt_tokens=max_prompt_tokens
            )
        self._generator = torch.Generator(device=self._sampler.model.device).manual_seed(secrets.randbits(63))
        self._queue: queue.Queue[_Asked | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name=f"model {model_dir.name}", daemon=True)
        self._thread.start()
        # One, since a tokenizer is not made to be called by several at once.
        self._reader = ThreadPoolExecutor(1, f"prompts {model_dir.name}")

    async def stream(self, prompt: Prompt) -> AsyncIterator[Piece]:
        """See :class:`Backend`."""
        loop = asyncio.get_running_loop()
        asked = _Asked(min(prompt.max_tokens, self._sampling.max_new_tokens), loop, asyncio.Queue())
        try:
            # Not on the event loop: a long conversation would keep everybody waiting.
            reading = loop.run_in_executor(self._reader, self._read, prompt, asked)
        except RuntimeError as error:  # the reader takes nothing more
            raise ModelError("the model has been let go of") from error
        try:
            await reading
            while True:
                piece = await asked.pieces.get()
                if isinstance(piece, ModelError):
                    raise piece
                yield piece
                if piece.finish is not None:
                    return
        finally:
            asked.gone = True

    async def complete(self, prompt: Prompt) -> Piece:
        """See :class:`Backend`."""
        text = ""
        async for piece in self.stream(prompt):
            text += piece.text
            if piece.finish is not None:
                return Piece(text, piece.finish, piece.prompt_tokens, piece.completion_tokens)
        raise ModelError("the model's reply has no end")

    async def close(self) -> None:
        """See :class:`Backend`."""
        # First the prompts that are being read: what came into the queue after its end would wait in vain.
        await asyncio.to_thread(self._reader.shutdown)
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _read(self, prompt: Prompt, asked: _Asked) -> None:
        """Put a request into the queue, from the reader's thread: once that has ended, the queue gets no more."""
        sampler = self._sampler
        asked.ids = prompt_ids(sampler.tokenizer, prompt.card, prompt.history, sampler.max_prompt_tokens)
        self._queue.put(asked)

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            waiting = [asked for asked in batch if not asked.gone]
            if not waiting:
                continue
            try:
                self._answer(waiting)
            except Exception as error:  # of whatever kind: these requests fail, the thread goes on
                _log.error("a local model failed: %s: %s", type(error).__name__, error)
                for asked in waiting:
                    asked.tell(ModelError(f"the model failed: {type(error).__name__}"))

    def _next(self) -> list[_Asked] | None:
        """The next requests, together; None at the end."""
        batch: list[_Asked] = []
        wait_until = 0.0
        while len(batch) < self._settings.max_batch:
            try:
                left = wait_until - time.monotonic()
                asked = self._queue.get(timeout=max(0.0, left)) if batch else self._queue.get()
            except queue.Empty:
                break
            if asked is None:
                self._queue.put(None)  # seen again after this batch
                return batch or None
            wait_until = wait_until or time.monotonic() + self._settings.batch_wait_ms / 1000
            batch.append(asked)
        return batch

    def _answer(self, batch: list[_Asked]) -> None:
        def step(rows: list[int], tokens: list[int]) -> list[bool]:
            return [self._take(batch[row], token) for row, token in zip(rows, tokens, strict=True)]

        self._sampler.follow([asked.ids for asked in batch], self._generator, step)

    def _take(self, asked: _Asked, token: int) -> bool:
        """One more token of a reply; True if the reply is over."""
        if asked.gone:
            return True
        ended = token in self._sampler.end_ids
        if not ended:
            asked.drawn.append(token)
        over = ended or len(asked.drawn) >= asked.max_tokens
        text = str(self._sampler.tokenizer.decode(asked.drawn, skip_special_tokens=True))
        # A character of several tokens shows as a replacement mark until it is whole.
        if over or not text.endswith("\ufffd"):
            new, asked.shown = text[asked.shown :], max(asked.shown, len(text))
            if over:
                finish = "stop" if ended else "length"
                asked.tell(Piece(new, finish, len(asked.ids), len(asked.drawn)))
                asked.gone = True
            elif new:
                asked.tell(Piece(new))
        return over
