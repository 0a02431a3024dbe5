"""Nothing is acknowledged that is not in the logs; what is there is, even if the index of turns cannot be written."""

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.conftest import Live, logged, wait_for
from tests.serving.stub import REPLY

Start = Callable[..., Live]
UNWRITABLE = ["events, or the index of turns, cannot be written"]


def break_disk(patch: pytest.MonkeyPatch, gateway: Live, *, after: int = 0) -> None:
    """No file can be made durable any more, once so many more batches of events have been."""
    sync, recorder = os.fdatasync, gateway.gateway.recorder
    last = recorder.commits + after

    def fails(handle: int) -> None:
        if recorder.commits >= last:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(handle)

    patch.setattr(os, "fdatasync", fails)


def not_recorded(response: httpx.Response) -> bool:
    told = (response.status_code, response.json()["error"]["code"], response.headers["retry-after"])
    return told == (503, "not_recorded", "5")


def readiness(gateway: Live) -> tuple[int, list[str]]:
    response = gateway.client.get("/readyz")
    return response.status_code, response.json()["problems"]


def texts(root: Path) -> list[str]:
    return [row["text"] for row in logged(root, "message")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_that_cannot_be_written_is_not_acknowledged(
    live: Start, root: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    gateway = live()
    with monkeypatch.context() as broken:
        break_disk(broken, gateway)
        for _ in range(2):
            assert not_recorded(gateway.chat("Hi", stream=stream))
        assert logged(root) == []
        assert readiness(gateway) == (503, UNWRITABLE)
    assert gateway.counted("/v1/chat/completions", 503) == 2
    wait_for(lambda: readiness(gateway) == (200, []))
    assert gateway.chat("Hi", stream=stream).status_code == 200
    assert texts(root) == ["Hi", REPLY]
    assert len({row["message_id"] for row in logged(root, "message")}) == 2


def test_a_stream_whose_end_cannot_be_written_has_no_end(
    live: Start, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message was written before the first part was shown; its reply is not, nor what was shown of it."""
    gateway = live()
    with monkeypatch.context() as broken:
        break_disk(broken, gateway, after=1)
        response, parts = gateway.stream("Hi")
        assert (response.status_code, parts[-1]["error"]["code"]) == (200, "not_recorded")
        assert [part["choices"][0]["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert "[DONE]" not in response.text
        assert not_recorded(gateway.chat("Hello"))  # tried after all that was handed over before
        assert texts(root) == ["Hi"]
        assert readiness(gateway) == (503, UNWRITABLE)
    assert gateway.counted("/v1/chat/completions", 503) == 2
    wait_for(lambda: readiness(gateway) == (200, []))
    assert gateway.stream("Hi")[0].text.endswith("data: [DONE]\n\n")
    assert texts(root) == ["Hi", "Hi", REPLY]
    assert len({row["message_id"] for row in logged(root, "message")}) == 3


def test_feedback_that_cannot_be_written_is_not_acknowledged(
    live: Start, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = live()
    given = {"message_id": gateway.chat("Hi").json()["id"], "signal": "thumb_up", "user": "ann"}
    with monkeypatch.context() as broken:
        break_disk(broken, gateway)
        assert not_recorded(gateway.post("/v1/feedback", given))
        assert logged(root, "signal") == []
        assert texts(root) == ["Hi", REPLY]  # what was durable before stays
        assert readiness(gateway) == (503, UNWRITABLE)
    assert gateway.counted("/v1/feedback", 503) == 1
    wait_for(lambda: readiness(gateway) == (200, []))
    assert gateway.post("/v1/feedback", given).status_code == 200
    assert [row["signal"] for row in logged(root, "signal")] == ["thumb_up"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_in_the_logs_is_acknowledged_though_its_turns_are_not_indexed(
    live: Start, root: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    gateway = live()

    def locked(_: Any) -> None:
        raise sqlite3.OperationalError("database is locked")

    with monkeypatch.context() as broken:
        broken.setattr(gateway.gateway.recorder._index, "add", locked)
        if stream:
            response, parts = gateway.stream("Hi")
            assert response.text.endswith("data: [DONE]\n\n")
            reply = parts[-1]["flywheel"]["message_id"]
        else:
            response = gateway.chat("Hi")
            reply = response.json()["id"]
        assert response.status_code == 200
        assert texts(root) == ["Hi", REPLY]
        assert readiness(gateway) == (503, UNWRITABLE)
    # By itself: a worker that is not ready is sent no requests.
    wait_for(lambda: gateway.client.get("/readyz").status_code == 200)
    assert gateway.chat("Hi", REPLY, "Go on").json()["error"]["code"] == "unknown_history"
    rated = gateway.post("/v1/feedback", {"message_id": reply, "signal": "thumb_up", "user": "ann"})
    assert rated.json()["error"]["code"] == "unknown_message"
    again = gateway.chat("Hi", metadata={"regenerate": reply})
    assert again.json()["error"]["code"] == "unknown_history"
    assert gateway.chat("Hello").status_code == 200
