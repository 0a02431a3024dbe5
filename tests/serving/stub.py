"""A stand-in for an OpenAI-compatible model server: a real HTTP server that can be told to fail."""

import asyncio
import itertools
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvicorn

REPLY = "I keep the light. The sea is calm tonight."
HANG_SECONDS = 10.0


@dataclass
class Stub:
    """What the stub says, and what it was asked.

    Attributes:
        modes: by model name: ``ok``, ``error`` (500), ``refuse`` (400), ``hang`` (for :data:`HANG_SECONDS`),
            ``garbage``, ``break`` (a stream that breaks off after its first sentence).
        replies: by model name; :data:`REPLY` by default.
        asked: bodies of all requests.
        served: names in its list of models; None: it keeps no list.
        seconds: it takes over a reply.
        pace: seconds between the words of a stream.
    """

    modes: dict[str, str] = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    served: list[str] | None = None
    seconds: float = 0.0
    pace: float = 0.0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"].endswith("/models"):
            await self._list(send)
            return
        request = orjson.loads(body)
        self.asked.append(request)
        del self.asked[:-1000]
        mode = self.modes.get(request["model"], "ok")
        if mode == "hang":
            await asyncio.sleep(HANG_SECONDS)
        if self.seconds:
            await asyncio.sleep(self.seconds)
        status = {"error": 500, "refuse": 400}.get(mode, 200)
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        if request.get("stream") and status == 200 and mode != "garbage":
            await self._stream(request, mode, send)
            return
        answer = b"{}" if mode == "garbage" or status != 200 else self._whole(request)
        await send({"type": "http.response.body", "body": answer})

    async def _list(self, send: Any) -> None:
        status = 404 if self.served is None else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in self.served or ()]}
        await send({"type": "http.response.body", "body": orjson.dumps(listed)})

    def _whole(self, request: dict[str, Any]) -> bytes:
        text = self.replies.get(request["model"], REPLY)
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 7, "completion_tokens": 5}
        return orjson.dumps(
            {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        )

    async def _stream(self, request: dict[str, Any], mode: str, send: Any) -> None:
        text = self.replies.get(request["model"], REPLY)
        words = text.split(" ")
        if mode == "break":
            words = words[: next(n for n, word in enumerate(words, 1) if word.endswith(".")) + 1]
        for word in words:
            await asyncio.sleep(self.pace)
            delta = {"content": word if word is words[0] else f" {word}"}
            await self._event(send, {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        if mode != "break":
            await self._event(send, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            await self._event(send, {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _event(self, send: Any, value: dict[str, Any]) -> None:
        data = b"data: " + orjson.dumps(value) + b"\n\n"
        await send({"type": "http.response.body", "body": data, "more_body": True})


class Served:
    """An ASGI application on a port of its own, in a thread.

    Args:
        app: the application.
    """

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        for _ in itertools.repeat(None, 6000):
            if self.server.started:
                break
            if not self._thread.is_alive():
                raise RuntimeError("the server did not start")
            self._thread.join(0.01)
        (socket,) = self.server.servers[0].sockets
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}"

    def stop(self) -> None:
        """Shut it down as a signal would."""
        self.server.should_exit = True
        self._thread.join()


if __name__ == "__main__":
    uvicorn.run(Stub(seconds=float(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), log_config=None)
