"""Runs the gateway: one process, or several that share a socket."""

import gc
import logging
import os
import sys
from pathlib import Path

import uvicorn

from flywheel_tasks.pipeline.process import die_with_parent
from flywheel_tasks.serving.app import PARENT, ROOT, app_of_worker
from flywheel_tasks.serving.cards import load_cards
from flywheel_tasks.serving.keys import keys_path, read_keys
from flywheel_tasks.serving.structured import JsonLines
from flywheel_tasks.settings import load_settings

_log = logging.getLogger(__name__)
_KEEP_ALIVE_SECONDS = 65
# uvicorn's 5 s kill, again and again, each worker whose modules take longer to load on a busy machine or a cold disk.
# One that dies is seen at once, unless it dies between a question (two a second) and its answer: then after this.
_WORKER_ANSWERS_SECONDS = 60
# The recorder's thread comes back from each sync for a few microseconds only; it must not wait 5 ms for its turn.
_SWITCH_SECONDS = 0.0005


def log_as_json(level: int = logging.INFO) -> None:
    """Send all log records to standard error as JSON lines; they hold no user's text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("flywheel", "flywheel_tasks.serving", "uvicorn.error"):
        logging.getLogger(name).setLevel(level)


def worker_app():  # type: ignore[no-untyped-def]
    """The application in a worker process, which dies with its parent."""
    log_as_json()
    sys.setswitchinterval(_SWITCH_SECONDS)
    if os.getpid() != int(os.environ[PARENT]):
        die_with_parent()
    app = app_of_worker()
    # A full collection walks all that lives, and every request waits meanwhile (35 ms with the modules loaded so far).
    # What there is now stays until the end, so it need not be walked again.
    gc.collect()
    gc.freeze()
    return app


def run(root: Path, *, host: str | None = None, port: int | None = None, workers: int | None = None) -> None:
    """Serve until a signal: SIGTERM and SIGINT let requests in flight end, and seal the logs.

    Args:
        root: the workspace.
        host: instead of ``serve.host``.
        port: instead of ``serve.port``.
        workers: instead of ``serve.workers``.

    Raises:
        CardsError: there are no characters to serve.
        KeysError: the keys cannot be read.
    """
    serve = load_settings(root / "params.yaml").serve
    os.environ[ROOT], os.environ[PARENT] = str(root), str(os.getpid())
    log_as_json()
    load_cards(root / serve.cards)  # a mistake is told here once, and not by each worker
    if not read_keys(keys_path(root / serve.state)):
        _log.warning("there is no API key yet: flywheel serve keys add NAME")
    uvicorn.run(
        "flywheel_tasks.serving.server:worker_app",
        factory=True,
        host=host or serve.host,
        port=serve.port if port is None else port,
        workers=workers or serve.workers,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=serve.drain_seconds,
        timeout_worker_healthcheck=_WORKER_ANSWERS_SECONDS,
    )
