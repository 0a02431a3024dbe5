"""Replies from an OpenAI-compatible chat-completions endpoint (vLLM and others): ``POST {endpoint}/chat/completions``.

Bounded concurrency, retries with back-off, and no half result: a request that keeps failing fails the draw.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from flywheel_tasks.chat.card import Card, Turn, user_first
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.policy.sentences import whole_sentences
from flywheel_tasks.settings import RemotePolicy, Sampling

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_SEEDS = 2**31  # what servers take
# Reasons to end that leave a reply whole; any other (length, content_filter, tool_calls) has cut it off.
_WHOLE = (None, "stop")


class EndpointError(RuntimeError):
    """A remote policy does not answer as it should; the message names it and the request."""


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

    def draw(self, prompts: Sequence[tuple[Card, Sequence[Turn]]], n: int, seed: int) -> list[list[Reply]]:
        """Draw ``n`` replies to each prompt.

        Args:
            prompts: cards and histories that end with a user's turn. Turns before the first one of the user are not
                sent: the server's chat template is not known, and some refuse them.
            n: replies a prompt.
            seed: sent with the requests; whether it fixes the replies is up to the server.

        Returns:
            for each prompt its ``n`` replies, trimmed; one that was cut off ends with its last whole sentence, and one
            that the server's filter held back whole is empty.

        Raises:
            EndpointError: the key is missing, a request is refused or keeps failing, or an answer is malformed.
        """
        with (
            httpx.Client(timeout=self._entry.timeout_seconds, headers=self._headers()) as client,
            ThreadPoolExecutor(self._entry.concurrency) as workers,
        ):
            tasks = [
                workers.submit(self._replies, client, prompt, n, seed + 7919 * number)
                for number, prompt in enumerate(prompts)
            ]
            try:
                return [task.result() for task in tasks]
            except BaseException:
                for task in tasks:
                    task.cancel()
                raise

    def _headers(self) -> dict[str, str]:
        if self._entry.api_key_env is None:
            return {}
        key = os.environ.get(self._entry.api_key_env)
        if not key:
            raise EndpointError(
                f"policy {self._entry.name}: the environment variable {self._entry.api_key_env} is not set"
            )
        return {"Authorization": f"Bearer {key}"}

    def _replies(
        self, client: httpx.Client, prompt: tuple[Card, Sequence[Turn]], n: int, seed: int
    ) -> list[Reply]:
        """``n`` replies; servers that ignore ``n`` are asked again for what is missing."""
        card, history = prompt
        messages = [{"role": "system", "content": card.system_prompt()}]
        messages += [{"role": turn["role"], "content": turn["content"]} for turn in user_first(history)]
        found: list[Reply] = []
        while len(found) < n:
            body = {
                "model": self._entry.model,
                "messages": messages,
                "n": n - len(found),
                "temperature": self._sampling.temperature,
                "max_tokens": self._sampling.max_new_tokens,
                "seed": (seed + len(found)) % _SEEDS,
            }
            found += [self._reply(choice) for choice in self._choices(client, body)]
        return found[:n]

    def _choices(self, client: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
        try:
            choices = self._post(client, body).json()["choices"]
        except (ValueError, KeyError, TypeError) as error:
            raise EndpointError(f"{self._where()}: the answer is no chat completion") from error
        if not isinstance(choices, list) or not choices:
            raise EndpointError(f"{self._where()}: the answer has no choices")
        return choices

    def _post(self, client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
        url = self._entry.endpoint.rstrip("/") + "/chat/completions"
        problem = ""
        for attempt in range(self._entry.retries + 1):
            if attempt:
                self._wait(min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (attempt - 1)))
            try:
                answer = client.post(url, json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if answer.status_code == 200:
                return answer
            problem = f"HTTP {answer.status_code}: {answer.text[:200]}"
            if answer.status_code not in _AGAIN:
                break
        raise EndpointError(f"{self._where()}: {problem}")

    def _reply(self, choice: Any) -> Reply:
        try:
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (KeyError, TypeError, AttributeError) as error:
            raise EndpointError(f"{self._where()}: a choice has no message") from error
        if text is None and reason == "content_filter":
            text = ""  # nothing was let through: one reply less, and no reason to fail all the others
        if not isinstance(text, str):
            raise EndpointError(f"{self._where()}: a message has no text")
        if reason in _WHOLE:
            return Reply(text.strip(), None, True)
        return Reply(whole_sentences(text) or text.strip(), None, False)

    def _where(self) -> str:
        return f"policy {self._entry.name} ({self._entry.model} at {self._entry.endpoint})"
