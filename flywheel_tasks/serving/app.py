"""The HTTP side: OpenAI-compatible endpoints, feedback, health, metrics, the chat page."""

import asyncio
import math
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse

from flywheel_tasks.serving.answers import chunk, completion, done_chunk, event_line, headers_of
from flywheel_tasks.serving.call import Call, told_of
from flywheel_tasks.serving.cards import greeting_of
from flywheel_tasks.serving.events import signal_event
from flywheel_tasks.serving.exchange import Exchange
from flywheel_tasks.serving.gateway import Gateway, open_gateway
from flywheel_tasks.serving.keys import Key
from flywheel_tasks.serving.linking import Caller, link
from flywheel_tasks.serving.page import PAGE_POLICY, chat_page
from flywheel_tasks.serving.presence import while_there
from flywheel_tasks.serving.requests import (
    CHARACTER,
    ApiError,
    ChatRequest,
    FeedbackRequest,
    parse_body,
    refuse_unsupported,
)

ROOT, PARENT = "FLYWHEEL_SERVE_ROOT", "FLYWHEEL_SERVE_PARENT"
# A request holds a place among max_in_flight while its body comes: a sender that dribbles must not keep it.
_BODY_SECONDS = 10.0


class _Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


async def _body(request: Request, most: int) -> bytes:
    """The body, read no further and waited for no longer than allowed.

    Raises:
        ApiError: it is too large, or did not come in time.
    """
    parts, size = [], 0
    close = {"connection": "close"}
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise ApiError(413, "body_too_large", f"a body has at most {most} bytes", close)
                parts.append(part)
    except TimeoutError as error:
        raise ApiError(408, "body_too_slow", f"a body comes within {_BODY_SECONDS:g} s", close) from error
    return b"".join(parts)


def _key(gateway: Gateway, request: Request) -> Key:
    """The key that is presented.

    It is asked for before a request takes a place or its body is read: who has none costs the others nothing.

    Raises:
        ApiError: there is none, or it is wrong.
    """
    scheme, _, presented = request.headers.get("authorization", "").partition(" ")
    key = gateway.keys.find(presented.strip()) if scheme.lower() == "bearer" else None
    if key is None:
        raise ApiError(401, "invalid_api_key", "a valid API key is needed", {"www-authenticate": "Bearer"})
    return key


def _caller(key: Key, user: str | None) -> Caller:
    """Who asks.

    Raises:
        ApiError: no user is named, or one that is not the key's.
    """
    if key.user_id is None and user is None:
        raise ApiError(400, "missing_user", "this key speaks for many users: name one in the field user")
    if key.user_id is not None and user not in (None, key.user_id):
        raise ApiError(403, "other_user", "this key speaks for its own user only")
    staff = key.role == "staff"
    return Caller(key.user_id or str(user), key.source, staff, greets=staff or key.user_id is None)


def _take_token(gateway: Gateway, caller: Caller) -> None:
    if wait := gateway.limits.wait(caller.user_id):
        gateway.metrics.add("flywheel_rate_limited_total")
        headers = {"retry-after": str(math.ceil(wait))}
        raise ApiError(429, "rate_limited", f"too many requests; try again in {math.ceil(wait)} s", headers)


def _exchange(gateway: Gateway, caller: Caller, asked: ChatRequest) -> Exchange:
    """Everything that is checked before a model is asked."""
    refuse_unsupported(asked)
    card = gateway.cards.by_id.get(asked.card_id())
    if card is None:
        raise ApiError(404, "model_not_found", "there is no such character; see GET /v1/models")
    wanted = asked.wanted()
    if wanted.arm is not None and not caller.staff:
        raise ApiError(403, "not_staff", "only a staff key may choose an arm")
    history = asked.turns(gateway.settings.serve.max_message_characters)
    if gateway.rollout is None:
        raise ApiError(503, "not_ready", "there is no champion yet", {"retry-after": "5"})
    place = link(
        gateway.turns,
        caller,
        card.card_id,
        history,
        greeting=greeting_of(card, gateway.settings.serve),
        conversation_id=wanted.conversation_id,
        regenerate=wanted.regenerate,
    )
    return Exchange(
        gateway.services,
        gateway.rollout,
        caller=caller,
        card=card,
        history=history,
        link=place,
        max_tokens=asked.max_new_tokens(gateway.settings.sampling.max_new_tokens),
        arm=wanted.arm,
    )


async def _chat(gateway: Gateway, request: Request) -> Response:
    call = Call(gateway)
    try:
        key = _key(gateway, request)
        call.enter()
        asked = parse_body(await _body(request, gateway.settings.serve.max_body_bytes), ChatRequest)
        call.caller, call.stream = _caller(key, asked.user), bool(asked.stream)
        _take_token(gateway, call.caller)
        call.exchange = _exchange(gateway, call.caller, asked)
        if asked.stream:
            return await _begin_stream(call, asked, request)
        outcome = await while_there(request, call.exchange.complete())
    except Exception as error:
        told = call.fail(error)
        return _Json(told.body(), told.status, {**told.headers, "x-request-id": call.id})
    except BaseException:  # cancelled at the end of the drain
        call.end(499)
        raise
    call.end(200)
    headers = headers_of(call.id, outcome, asked)
    return _Json(completion(asked, call.exchange, call.caller), headers=headers)


async def _begin_stream(call: Call, asked: ChatRequest, request: Request) -> Response:
    """Wait for the first part, so that an error before it is an error, and the headers can tell of a fallback."""
    assert call.exchange is not None
    parts = call.exchange.stream()
    try:
        first = await while_there(request, anext(parts, ""))
    except BaseException:
        await parts.aclose()  # type: ignore[attr-defined]
        raise
    headers = headers_of(call.id, call.exchange.outcome, asked) | {"cache-control": "no-store"}
    return StreamingResponse(_sse(call, asked, first, parts), media_type="text/event-stream", headers=headers)


async def _sse(call: Call, asked: ChatRequest, first: str, parts: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """The parts as server-sent events; ``[DONE]`` comes only after all of it is recorded."""
    exchange, caller = call.exchange, call.caller
    assert exchange is not None
    assert caller is not None
    status, code = 499, None
    try:
        async with aclosing(parts):  # type: ignore[type-var]
            yield event_line(chunk(asked, call.id, {"role": "assistant", "content": first}))
            async for text in parts:
                yield event_line(chunk(asked, call.id, {"content": text}))
        yield event_line(done_chunk(asked, call.id, exchange, caller))
        yield b"data: [DONE]\n\n"
        status = 200
    except Exception as error:
        told = told_of(error)
        status, code = told.status, told.code
        yield event_line(told.body())
    finally:
        call.end(status, code)


async def _feedback(gateway: Gateway, request: Request) -> Response:
    status = 500
    try:
        key = _key(gateway, request)
        body = await _body(request, gateway.settings.serve.max_body_bytes)
        given = parse_body(body, FeedbackRequest).checked()
        caller = _caller(key, given.user)
        _take_token(gateway, caller)
        turn = gateway.turns.by_id(given.message_id)
        if turn is None or not turn.rated_by(caller.user_id, caller.source):
            raise ApiError(404, "unknown_message", "this user was sent no such reply")
        event = signal_event(
            turn,
            given.signal,
            given.value,
            user_id=caller.user_id,
            source=caller.source,
            time=max(datetime.now(UTC), turn.time),
        )
        await gateway.recorder.submit([event])
        gateway.metrics.add("flywheel_signals_total", signal=given.signal)
        status = 200
        return _Json({"object": "feedback", "id": event["event_id"], "signal": given.signal})
    except Exception as error:
        told = told_of(error)
        status = told.status
        return _Json(told.body(), told.status, told.headers)
    finally:
        gateway.metrics.add("flywheel_requests_total", path="/v1/feedback", status=str(status))


def create_app(gateway: Gateway) -> FastAPI:
    """The application of a gateway, which lives as long as it runs."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    app = FastAPI(
        title="CharacterFlywheel", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )

    async def chat(request: Request) -> Response:
        return await _chat(gateway, request)

    async def feedback(request: Request) -> Response:
        return await _feedback(gateway, request)

    # Plain routes: FastAPI's own would look for dependencies and validate, which these do themselves, for each request.
    app.add_route("/v1/chat/completions", chat, methods=["POST"])
    app.add_route("/v1/feedback", feedback, methods=["POST"])

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        try:
            _key(gateway, request)
        except ApiError as error:
            return _Json(error.body(), error.status, error.headers)
        listed = [
            {
                "id": CHARACTER + card.card_id,
                "object": "model",
                "created": 0,
                "owned_by": "flywheel",
                "name": card.name,
                "greeting": greeting_of(card, gateway.settings.serve),
            }
            for card in gateway.cards.by_id.values()
        ]
        return _Json({"object": "list", "data": listed})

    @app.get("/healthz")
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> Response:
        problems = gateway.problems()
        told = problems + gateway.warnings()
        body = {"ready": not problems, "problems": told, "models": gateway.fleet.states()}
        return _Json(body, 503 if problems else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        gateway.count()
        return PlainTextResponse(
            gateway.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    @app.get("/")
    async def page() -> Response:
        return HTMLResponse(chat_page(), headers=PAGE_POLICY)

    return app


def app_of_worker() -> FastAPI:
    """The application of a worker process; its workspace is in the environment."""
    return create_app(open_gateway(Path(os.environ[ROOT]), parent=int(os.environ[PARENT])))
