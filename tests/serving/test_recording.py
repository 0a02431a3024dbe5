"""An index of turns that cannot be written: what is in the logs is acknowledged."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import Live, logged, wait_for
from tests.serving.stub import REPLY

Start = Callable[..., Live]


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
        assert [row["text"] for row in logged(root, "message")] == ["Hi", REPLY]
        ready = gateway.client.get("/readyz")
        assert (ready.status_code, ready.json()["problems"]) == (
            503,
            ["events, or the index of turns, cannot be written"],
        )
    # By itself: a worker that is not ready is sent no requests.
    wait_for(lambda: gateway.client.get("/readyz").status_code == 200)
    assert gateway.chat("Hi", REPLY, "Go on").json()["error"]["code"] == "unknown_history"
    rated = gateway.post("/v1/feedback", {"message_id": reply, "signal": "thumb_up", "user": "ann"})
    assert rated.json()["error"]["code"] == "unknown_message"
    again = gateway.chat("Hi", metadata={"regenerate": reply})
    assert again.json()["error"]["code"] == "unknown_history"
    assert gateway.chat("Hello").status_code == 200
