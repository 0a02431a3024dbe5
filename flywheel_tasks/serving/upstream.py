"""A model served by an OpenAI-compatible server, such as vLLM."""

import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import orjson

from flywheel_tasks.chat.card import in_first_user_turn, user_first
from flywheel_tasks.serving.backend import ModelError, Piece, Prompt, RequestRefusedError
from flywheel_tasks.settings import Sampling, ServeUpstream

API_KEY = "FLYWHEEL_UPSTREAM_API_KEY"
# Answers of a server that shows no list of its models, to this key or to anybody.
_NO_LIST = frozenset({401, 403, 404, 405, 501})
# Answers by which a server refuses one request and says nothing about its model.
_REFUSED = frozenset({400, 413, 422})


def upstream_client(settings: ServeUpstream, timeout_seconds: float) -> aiohttp.ClientSession:
    """The connection pool that all models share; the server's key comes from ``FLYWHEEL_UPSTREAM_API_KEY``.

    aiohttp rather than httpx, whose pool looks at every idle connection for each request: it took more than half of
    the gateway's own time (benchmarks/gateway.py).
    """
    key = os.environ.get(API_KEY)
    return aiohttp.ClientSession(
        headers={"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {}),
        timeout=aiohttp.ClientTimeout(
            total=None, sock_read=timeout_seconds, sock_connect=settings.connect_seconds
        ),
        connector=aiohttp.TCPConnector(limit=settings.connections),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _finish(value: Any) -> str:
    return "length" if value == "length" else "stop"


class UpstreamModel:
    """One model of a server.

    Args:
        model: the generation that made it; takes the place of ``{model}`` in the settings' url and name.
        settings: section ``serve.upstream``.
        sampling: how replies are drawn, as everywhere.
        history_turns: newest turns that are sent.
        client: the pool.
    """

    def __init__(
        self,
        model: str,
        *,
        settings: ServeUpstream,
        sampling: Sampling,
        history_turns: int,
        client: aiohttp.ClientSession,
    ) -> None:
        home = settings.url.replace("{model}", model).rstrip("/")
        self._url, self._list_url = f"{home}/chat/completions", f"{home}/models"
        self._name = settings.model.replace("{model}", model)
        self._of_generation = "{model}" in settings.model
        self._list_timeout = aiohttp.ClientTimeout(total=settings.connect_seconds)
        self._fixed: Mapping[str, Any] = {
            "model": self._name,
            "temperature": sampling.temperature,
            **settings.extra,
        }
        self._history_turns = history_turns
        self._greetings, self._system_role = settings.greetings, settings.system_role
        self._client = client

    async def check(self) -> None:
        """Make sure that the server is there and lists the model; one that shows no list is believed.

        So is one whose model has a fixed name in the settings: whatever it calls it, it has no other.

        Raises:
            ModelError: it is not there in time, or lists others only.
        """
        try:
            async with self._client.get(self._list_url, timeout=self._list_timeout) as response:
                if response.status in _NO_LIST:
                    return
                if response.status != 200:
                    raise ModelError(f"{self._list_url} answered {response.status}")
                listed = orjson.loads(await response.read())
            names = [str(model["id"]) for model in listed["data"]]
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ModelError(f"{self._list_url}: {type(error).__name__}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{self._list_url}: not a list of models: {type(error).__name__}") from error
        if self._of_generation and not any(name in (self._name, f"{self._name}:latest") for name in names):
            raise ModelError(
                f"{self._list_url} does not list {self._name}, but {', '.join(names[:10]) or 'none'}"
            )

    def _body(self, prompt: Prompt, *, stream: bool) -> bytes:
        turns = prompt.history[-self._history_turns :]
        if not (self._greetings and len(turns) == len(prompt.history)):  # cut, it begins anywhere
            turns = user_first(turns)
        card = prompt.card.system_prompt()
        told = [{"role": "system", "content": card}, *turns]
        body = {
            **self._fixed,
            "messages": told if self._system_role else in_first_user_turn(card, turns),
            "max_tokens": prompt.max_tokens,
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return orjson.dumps(body)

    def _refuse(self, status: int) -> None:
        if status in _REFUSED:
            raise RequestRefusedError(f"{self._url} refused the request: {status}")
        if status != 200:
            raise ModelError(f"{self._url} answered {status}")

    async def complete(self, prompt: Prompt) -> Piece:
        """See :class:`Backend`."""
        try:
            async with self._client.post(self._url, data=self._body(prompt, stream=False)) as response:
                self._refuse(response.status)
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ModelError(f"{self._url}: {type(error).__name__}") from error
        try:
            answer = orjson.loads(content)
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            text = choice["message"]["content"]
            if not isinstance(text, str):
                raise TypeError("content is no text")
            tokens = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
            return Piece(text, _finish(choice.get("finish_reason")), *tokens)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ModelError(f"{self._url}: not a chat completion: {type(error).__name__}") from error

    async def stream(self, prompt: Prompt) -> AsyncIterator[Piece]:
        """See :class:`Backend`."""
        finish: str | None = None
        usage: dict[str, Any] = {}
        try:
            async with self._client.post(self._url, data=self._body(prompt, stream=True)) as response:
                self._refuse(response.status)
                async for line in response.content:
                    data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
                    if data == b"[DONE]":
                        break
                    if not data:
                        continue
                    chunk = orjson.loads(data)
                    if "error" in chunk:
                        raise ModelError(f"{self._url}: the stream ended with an error")
                    usage = chunk.get("usage") or usage
                    for choice in chunk["choices"][:1]:
                        finish = choice.get("finish_reason") or finish
                        if text := choice["delta"].get("content"):
                            yield Piece(text)
            tokens = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ModelError(f"{self._url}: {type(error).__name__}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"{self._url}: not a chat completion: {type(error).__name__}") from error
        if finish is None:
            raise ModelError(f"{self._url}: the stream ended early")
        yield Piece("", _finish(finish), *tokens)

    async def close(self) -> None:
        """See :class:`Backend`; the pool belongs to the gateway."""
