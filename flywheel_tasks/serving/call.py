"""One chat request, from its count to its line in the log."""

import logging
import time
from typing import Any

from starlette.requests import ClientDisconnect

from flywheel_tasks.serving.backend import ModelError, RequestRefusedError
from flywheel_tasks.serving.events import new_id
from flywheel_tasks.serving.exchange import Exchange
from flywheel_tasks.serving.gateway import Gateway
from flywheel_tasks.serving.journal import JournalError
from flywheel_tasks.serving.linking import Caller
from flywheel_tasks.serving.requests import ApiError
from flywheel_tasks.serving.rollout import RoutingError
from flywheel_tasks.serving.turns import owner_of

_log = logging.getLogger("flywheel.serve")


def told_of(error: Exception) -> ApiError:
    """What a client is told of an error, and how it is counted."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ClientDisconnect):  # nobody reads it
        return ApiError(499, "client_left", "the client went away")
    if isinstance(error, RequestRefusedError):
        return ApiError(
            400, "refused_by_model", "the model's server does not take this request; is it too long?"
        )
    if isinstance(error, ModelError):
        return ApiError(503, "model_unavailable", "no model answers now", {"retry-after": "5"})
    if isinstance(error, JournalError):
        return ApiError(503, "not_recorded", "the conversation could not be recorded", {"retry-after": "5"})
    if isinstance(error, RoutingError):
        return ApiError(400, "unknown_arm", str(error))
    raise error


class Call:
    """A request that is being served.

    Args:
        gateway: which serves it.

    Attributes:
        id: for logs and the header ``x-request-id``.
        caller: whose it is, once that is known.
        exchange: what is done for it, once it was accepted.
        stream: whether it is answered in parts.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway, self.id = gateway, new_id("r")
        self.started = time.monotonic()
        self.caller: Caller | None = None
        self.exchange: Exchange | None = None
        self.stream = False
        self._inside = False

    def enter(self) -> None:
        """Take a place among the requests that are served at once; :meth:`end` gives it back.

        Raises:
            ApiError: there is none left.
        """
        if self.gateway.in_flight >= self.gateway.settings.serve.max_in_flight:
            raise ApiError(503, "busy", "too many requests are being served", {"retry-after": "1"})
        self.gateway.in_flight += 1
        self._inside = True

    def end(self, status: int, code: str | None = None) -> None:
        """Count it and write its line."""
        gateway, seconds = self.gateway, time.monotonic() - self.started
        if self._inside:
            gateway.in_flight -= 1
        gateway.metrics.add("flywheel_requests_total", path="/v1/chat/completions", status=str(status))
        gateway.metrics.observe("flywheel_request_seconds", seconds, path="/v1/chat/completions")
        fields: dict[str, Any] = {"request": self.id, "status": status, "code": code, "stream": self.stream}
        fields["ms"] = round(seconds * 1000, 3)
        if self.caller is not None:
            fields["user"] = owner_of(self.caller.user_id).hex()[:12]
        if self.exchange is not None:
            out = self.exchange.outcome
            if out.message is not None:
                gateway.metrics.add("flywheel_replies_total", model=out.model or "gateway", finish=out.finish)
            if out.model_seconds is not None:
                gateway.metrics.observe("flywheel_model_seconds", out.model_seconds, model=out.model)
                fields["model_ms"] = round(out.model_seconds * 1000, 3)
            route = out.route
            fields |= {"model": out.model, "finish": out.finish, "fallback": out.fallback}
            fields |= {"experiment": route.experiment, "arm": route.arm} if route is not None else {}
        _log.info("chat", extra=fields)

    def fail(self, error: Exception) -> ApiError:
        """End it with an error; what the client is told."""
        try:
            told = told_of(error)
        except Exception:
            self.end(500, type(error).__name__)
            raise
        self.end(told.status, told.code)
        return told
