"""Replies from an OpenAI-compatible chat-completions endpoint (vLLM and others): ``POST {endpoint}/chat/completions``.

Bounded concurrency and retries with back-off. What one prompt gets no answer to costs that prompt; a server that does
not answer at all, or not as it should, fails the draw.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Event
from typing import Any

import httpx

from flywheel_tasks.chat.card import Card, user_first
from flywheel_tasks.chat.server_answers import REFUSES_ONE, asked_wait, asks_again, said
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.policy.sentences import whole_sentences
from flywheel_tasks.settings import RemotePolicy, Sampling

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_SEEDS = 2**31  # what servers take
# Reasons to end that leave a reply whole; any other (length, content_filter, tool_calls) has cut it off.
_WHOLE = (None, "stop")
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")  # half of an emoji, where a server cuts within one


class EndpointError(RuntimeError):
    """A remote policy does not answer as it should; the message names it and the request."""


class _RefusedError(Exception):
    """The server refuses one request; the message is its reason."""


@dataclass(frozen=True)
class Asked:
    """One prompt to ask.

    Attributes:
        number: that tells the answer.
        card: the character.
        turns: that are shown, the last one the user's.
        seed: sent with the requests; whether it fixes the replies is up to the server.
    """

    number: int
    card: Card
    turns: Sequence[Mapping[str, Any]]
    seed: int


class ChatEndpoint:
    """A remote model.

    Args:
        entry: where it is, its name there, and how patient to be.
        sampling: temperature and longest reply.
        wait: called with seconds between two attempts.
    """

    def __init__(
        self, entry: RemotePolicy, sampling: Sampling, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self._entry = entry
        self._sampling = sampling
        self._wait = wait

    def draw(self, prompts: Sequence[Asked], n: int) -> Iterator[tuple[int, list[Reply]]]:
        """Draw ``n`` replies to each prompt.

        Args:
            prompts: turns before the first one of the user are not sent: the server's chat template is not known, and
                some refuse them.
            n: replies a prompt.

        Yields:
            number and replies of each prompt as it is answered, in any order. Replies are trimmed; one that was cut off
            ends with its last whole sentence, one that was all held back is empty, and one that was refused or has no
            text says so in ``unanswered``.

        Raises:
            EndpointError: the key is missing, a request keeps failing, or an answer is malformed. What was being
                asked by then is waited for and given first.
        """
        given_up = Event()
        with (
            httpx.Client(timeout=self._entry.timeout_seconds, headers=self._headers()) as client,
            ThreadPoolExecutor(self._entry.concurrency) as workers,
        ):
            tasks = {workers.submit(self._replies, client, asked, n, given_up): asked for asked in prompts}
            try:
                yield from self._answered(tasks, given_up)
            finally:
                _give_up(tasks, given_up)

    def _answered(
        self, tasks: dict["Future[list[Reply]]", Asked], given_up: Event
    ) -> Iterator[tuple[int, list[Reply]]]:
        failed: BaseException | None = None
        for task in as_completed(tasks):
            if task.cancelled():
                continue
            if (error := task.exception()) is None:
                yield tasks[task].number, task.result()
            elif failed is None:
                failed = error
                _give_up(tasks, given_up)
        if failed is not None:
            raise failed

    def _headers(self) -> dict[str, str]:
        if self._entry.api_key_env is None:
            return {}
        key = os.environ.get(self._entry.api_key_env)
        if not key:
            raise EndpointError(
                f"policy {self._entry.name}: the environment variable {self._entry.api_key_env} is not set"
            )
        return {"Authorization": f"Bearer {key}"}

    def _replies(self, client: httpx.Client, asked: Asked, n: int, given_up: Event) -> list[Reply]:
        """``n`` replies; servers that ignore ``n`` are asked again for what is missing."""
        messages = [{"role": "system", "content": asked.card.system_prompt()}]
        messages += [{"role": turn["role"], "content": turn["content"]} for turn in user_first(asked.turns)]
        found: list[Reply] = []
        while len(found) < n:
            body = {
                "model": self._entry.model,
                "messages": messages,
                "n": n - len(found),
                "temperature": self._sampling.temperature,
                "max_tokens": self._sampling.max_new_tokens,
                "seed": (asked.seed + len(found)) % _SEEDS,
            }
            try:
                found += [self._reply(choice) for choice in self._choices(client, body, given_up)]
            except _RefusedError as error:
                found += [_unanswered(str(error))] * (n - len(found))
        return found[:n]

    def _choices(self, client: httpx.Client, body: dict[str, Any], given_up: Event) -> list[dict[str, Any]]:
        answer = self._post(client, body, given_up)
        try:
            choices = answer.json()["choices"]
        except (ValueError, KeyError, TypeError) as error:
            raise EndpointError(f"{self._where()}: the answer is no chat completion") from error
        if not isinstance(choices, list) or not choices:
            raise EndpointError(f"{self._where()}: the answer has no choices")
        return choices

    def _post(self, client: httpx.Client, body: dict[str, Any], given_up: Event) -> httpx.Response:
        url = self._entry.endpoint.rstrip("/") + "/chat/completions"
        problem, wait_asked = "", 0.0
        for attempt in range(self._entry.retries + 1):
            if attempt:
                if given_up.is_set():
                    break
                self._wait(max(min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (attempt - 1)), wait_asked))
            try:
                answer = client.post(url, json=body)
            except httpx.TransportError as error:
                problem, wait_asked = f"{type(error).__name__}: {error}", 0.0
                continue
            if answer.status_code == 200:
                return answer
            problem = f"HTTP {answer.status_code}{said(answer)}"
            if answer.status_code in REFUSES_ONE:
                raise _RefusedError(problem)
            if not asks_again(answer.status_code):
                break
            wait_asked = asked_wait(answer)
        raise EndpointError(f"{self._where()}: {problem}")

    def _reply(self, choice: Any) -> Reply:
        try:
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (KeyError, TypeError, AttributeError) as error:
            raise EndpointError(f"{self._where()}: a choice has no message") from error
        if text is None:  # a filter let nothing through, or a reasoning model had no tokens left to answer
            return _unanswered("a message has no text") if reason in _WHOLE else Reply("", None, False)
        if not isinstance(text, str):
            raise EndpointError(f"{self._where()}: a message is no text")
        text = _LONE_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
        if reason in _WHOLE:
            return Reply(text.strip(), None, True)
        return Reply(whole_sentences(text) or text.strip(), None, False)

    def _where(self) -> str:
        return f"policy {self._entry.name} ({self._entry.model} at {self._entry.endpoint})"


def _unanswered(reason: str) -> Reply:
    return Reply("", None, False, reason)


def _give_up(tasks: dict["Future[list[Reply]]", Asked], given_up: Event) -> None:
    """Ask nothing more: neither what has not been asked yet, nor what failed once."""
    given_up.set()
    for task in tasks:
        task.cancel()
