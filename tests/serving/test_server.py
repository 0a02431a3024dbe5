"""A worker process of the gateway, as uvicorn starts it."""

import os
import subprocess
import sys
from pathlib import Path

from flywheel_tasks.serving.app import PARENT, ROOT
from tests.conftest import PROJECT
from tests.serving.conftest import make_root

_WORKER = """
import gc
from flywheel_tasks.serving.server import worker_app
app = worker_app()
print(gc.get_freeze_count(), len(gc.get_objects()))
"""


def test_no_request_waits_for_a_collection_of_what_was_there_at_the_start(tmp_path: Path) -> None:
    root = make_root(tmp_path, "http://127.0.0.1:1")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), ROOT: str(root), PARENT: str(os.getpid())}
    said = subprocess.run(
        [sys.executable, "-c", _WORKER], env=environment, capture_output=True, text=True, check=True
    )
    left_out, walked = (int(number) for number in said.stdout.split())
    assert walked < left_out / 20
