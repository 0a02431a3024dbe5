"""Answers in the shapes of OpenAI's protocol, with what this gateway adds under ``flywheel``."""

import time
from collections.abc import Mapping
from typing import Any

import orjson

from flywheel_tasks.serving.exchange import Exchange
from flywheel_tasks.serving.linking import Caller
from flywheel_tasks.serving.outcome import Outcome
from flywheel_tasks.serving.requests import ChatRequest


def headers_of(request_id: str, outcome: Outcome, asked: ChatRequest) -> dict[str, str]:
    """Headers of an answer: who answered, whether a broken model was stood in for, what was not used."""
    headers = {"x-request-id": request_id}
    if outcome.model is not None:
        headers["x-flywheel-model"] = outcome.model
    if outcome.fallback is not None:
        headers["x-flywheel-fallback"] = outcome.fallback
    if unused := [name for name in asked.unused() if name.isascii() and name.isprintable()]:
        headers["x-flywheel-unused"] = ",".join(unused)[:500]
    return headers


def _more(exchange: Exchange, caller: Caller) -> dict[str, Any]:
    """What a client needs to go on, to rate and to try again; staff also see the arm."""
    out, turn = exchange.outcome, exchange.link.turn
    found: dict[str, Any] = {
        "conversation_id": turn.conversation_id,
        "user_message_id": turn.message_id,
        "message_id": out.message.message_id if out.message is not None else None,
        "model": out.model,
        "fallback": out.fallback,
    }
    if caller.staff and out.route is not None:
        found |= {"experiment": out.route.experiment, "arm": out.route.arm}
    return found


def _usage(outcome: Outcome) -> dict[str, int]:
    read, written = outcome.prompt_tokens, outcome.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def completion(asked: ChatRequest, exchange: Exchange, caller: Caller) -> dict[str, Any]:
    """A ``chat.completion``; its id is the reply's message id."""
    out = exchange.outcome
    assert out.message is not None
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": out.text},
        "finish_reason": out.finish,
        "logprobs": None,
    }
    return {
        "id": out.message.message_id,
        "object": "chat.completion",
        "created": int(out.message.time.timestamp()),
        "model": asked.model,
        "choices": [choice],
        "usage": _usage(out),
        "flywheel": _more(exchange, caller),
    }


def chunk(
    asked: ChatRequest, request_id: str, delta: Mapping[str, str], finish: str | None = None
) -> dict[str, Any]:
    """A ``chat.completion.chunk``. Its id is the request's: a reply has its own only once it is recorded."""
    return {
        "id": request_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": asked.model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}],
    }


def done_chunk(asked: ChatRequest, request_id: str, exchange: Exchange, caller: Caller) -> dict[str, Any]:
    """The last chunk: how it ended, and the ids of what was recorded."""
    last = chunk(asked, request_id, {}, exchange.outcome.finish) | {"flywheel": _more(exchange, caller)}
    if asked.stream_options is not None and asked.stream_options.include_usage:
        last["usage"] = _usage(exchange.outcome)
    return last


def event_line(value: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"
