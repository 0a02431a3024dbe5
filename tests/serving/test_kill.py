"""A gateway killed under load: what was acknowledged is in the logs, whole, and the pipeline takes all of it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
import pytest

from flywheel_tasks.contracts import validate
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.serving.keys import add_key
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.storage.tables import read_rows
from flywheel_tasks.traffic import ingest
from flywheel_tasks.traffic.identity import DEMO_FINGERPRINT, pin_users
from flywheel_tasks.traffic.logs import pin_logs
from tests.conftest import PROJECT
from tests.ports import free_port
from tests.serving.conftest import make_root, start_experiment
from tests.serving.stub import REPLY, Stub

CLIENTS = 12


@contextmanager
def gateway(
    root: Path, port: int, workers: int, *before: Path, seconds: float = 120
) -> Iterator[subprocess.Popen[bytes]]:
    """``flywheel serve`` as a process group of its own, ready; ``before``: folders of modules that come first."""
    command = [sys.executable, "-m", "flywheel_tasks.cli", "serve", "--root", str(root), "--port", str(port)]
    with (root / "gateway.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--workers", str(workers)],
            start_new_session=True,
            stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*before, PROJECT)))},
        )
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, (root / "gateway.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Load:
    """Users who talk with a gateway, all at once, until it is told that it ends.

    Attributes:
        acknowledged: ids of what the gateway said that it recorded.
        ending: set before the gateway is ended: a connection that breaks after it is not made again.
    """

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self.ending = False

    async def more(self, ids: int, seconds: float = 60) -> None:
        """Wait until so many more ids are acknowledged."""
        wanted = len(self.acknowledged) + ids
        async with asyncio.timeout(seconds):
            while len(self.acknowledged) < wanted:
                await asyncio.sleep(0.02)

    async def talk(self, client: httpx.AsyncClient, user: str) -> None:
        """One user, who begins anew where something is not answered."""
        said: list[str] = []
        number = 0
        while True:
            said.append(f"{user} says {number}")
            try:
                answered = await self._say(client, user, said, stream=number % 3 == 2)
            except httpx.TransportError:
                if self.ending:
                    return
                answered = False
            number += 1
            said = [*said, REPLY] if answered and number % 4 else []

    async def _say(self, client: httpx.AsyncClient, user: str, said: list[str], *, stream: bool) -> bool:
        """One message, and feedback on its reply; False if there is none."""
        roles = ["user", "assistant"] * len(said)
        messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
        body = {"model": "character:mira", "messages": messages, "user": user, "stream": stream}
        response = await client.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            return False
        last = response.text.split("\n\n")[-3].removeprefix("data: ") if stream else response.text
        more = orjson.loads(last)["flywheel"]
        self.acknowledged += [more["user_message_id"], more["message_id"]]
        rated = {"message_id": more["message_id"], "signal": "thumb_up", "user": user}
        given = await client.post("/v1/feedback", json=rated)
        self.acknowledged.append(given.json()["id"])
        return True


async def _load(port: int, key: str, run: int, end: Callable[[Load], Awaitable[None]]) -> list[str]:
    """Put load on the gateway, which ``end`` ends in the middle of it; the acknowledged ids."""
    load = Load()
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
        talks = [load.talk(client, f"u{run}-{number}") for number in range(CLIENTS)]
        tasks = [asyncio.create_task(talk) for talk in talks]
        await load.more(60)
        await end(load)
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
    return load.acknowledged


def pipeline(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The stages ingest and validate on what the gateway wrote; their metrics."""
    for name in ("dvc.yaml", "data_contracts"):
        (root / name).symlink_to(PROJECT / name)
    write_json(pin_logs("data/served", root), root / "inputs/logs.json")
    write_json(pin_users(DEMO_FINGERPRINT, ()), root / "inputs/users.json")
    write_json({"generation": None, "profile": None}, root / "inputs/profile.json")
    found = []
    for name, stage in (("ingest", ingest), ("validate", validate)):
        io = StageIO(load_graph(root / "dvc.yaml")[name], root, load_settings(root / "params.yaml"))
        found.append(dict(stage.run(io)))
        write_json(found[-1], io.out(f"metrics/{name}.json"))
        io.commit()
    return found[0], found[1]


@pytest.mark.slow
def test_a_gateway_killed_under_load_loses_nothing_it_acknowledged(
    stub_server: tuple[Stub, str], stub: Stub, tmp_path: Path
) -> None:
    # No segment is sealed before the kill, or it might come just between two and leave nothing open.
    root = make_root(tmp_path, stub_server[1], segment_seconds=3600)
    start_experiment(root)
    key = add_key(root / ".flywheel/serve/keys.json", "load", "user", None)[1]
    port = free_port()
    acknowledged = []
    with gateway(root, port, workers=2) as process:

        async def kill(load: Load) -> None:
            load.ending = True
            os.killpg(process.pid, signal.SIGKILL)

        acknowledged += asyncio.run(_load(port, key, 0, kill))
    assert list((root / "data/served").glob("date=*/.open-*"))
    settings = root / "params.yaml"
    changed = settings.read_text(encoding="utf-8").replace("segment_seconds: 3600", "segment_seconds: 1")
    settings.write_text(changed, encoding="utf-8")
    with gateway(root, port, workers=2) as process:

        async def kill_one_worker_then_stop(load: Load) -> None:
            children = psutil.Process(process.pid).children()
            worker = next(child for child in children if "spawn_main" in str(child.cmdline()))
            worker.kill()
            with suppress(psutil.NoSuchProcess):
                while worker.status() != psutil.STATUS_ZOMBIE:
                    await asyncio.sleep(0.01)
            await load.more(60)  # of what was sent after its death, too
            load.ending = True
            process.terminate()

        acknowledged += asyncio.run(_load(port, key, 1, kill_one_worker_then_stop))
        assert process.wait(120) == 0

    left = [path.name for path in (root / "data/served").glob("date=*/.*")]
    assert [name for name in left if not name.startswith(".torn-")] == []
    ingested, validated = pipeline(root)
    assert ingested["quarantined"]["total"] == 0
    assert validated["quarantine_share"] == 0
    assert read_rows(root / "data/validated/quarantine.parquet") == []
    assert ingested["accepted"]["exposure"] > 0
    messages = read_rows(root / "data/validated/messages.parquet")
    kept = {row["message_id"] for row in messages}
    kept |= {row["event_id"] for row in read_rows(root / "data/validated/signals.parquet")}
    assert set(acknowledged) <= kept
    assert len(messages) == len({row["message_id"] for row in messages})


@pytest.mark.slow
def test_workers_whose_modules_take_long_to_load_are_let_start(
    stub_server: tuple[Stub, str], stub: Stub, tmp_path: Path
) -> None:
    root = make_root(tmp_path / "root", stub_server[1])
    slow = "import sys, time\nif '--multiprocessing-fork' in sys.orig_argv:\n    time.sleep(8)\n"
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/sitecustomize.py").write_text(slow)
    with gateway(root, free_port(), 2, tmp_path / "slow"):
        assert "died" not in (root / "gateway.log").read_text()
