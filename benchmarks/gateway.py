"""Time that the gateway adds to a model's own, under a steady load.

    python -m benchmarks.gateway [--rate 200] [--seconds 20] [--workers 1] [--stream] [--folder /dev/shm]

A stub model server (a process of its own, 20 ms a reply) is asked at a fixed rate, directly and through the gateway,
by turns. Requests start on the clock, whether earlier ones have ended or not: a slow answer does not lower the load.
The gateway checks the key and the rate limit, looks the conversation up, draws the arm, checks both texts, writes
message, exposure and reply to the logs and syncs them, before it answers. Printed are the percentiles of both, and
of the gateway's over the direct ones. The disk's own time for such a sync is measured before: no answer can be faster.
With ``--folder /dev/shm`` it is nothing, and what is left is the gateway's own.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import numpy as np
import orjson

from flywheel_tasks.serving.keys import add_key
from tests.conftest import PROJECT
from tests.ports import free_port
from tests.serving.conftest import make_root, start_experiment

_MODEL_SECONDS = 0.02
_USERS = 500
_WARM_UP = 2.0


@contextmanager
def _process(command: list[str], port: int) -> Iterator[None]:
    """A server in a process of its own, once its port answers."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen([sys.executable, "-m", *command], env=environment, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError(f"{command[0]} ended with {process.returncode}") from None
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def _sync_milliseconds(folder: Path) -> np.ndarray:
    """What the disk takes to make three events durable."""
    times = []
    with (folder / "sync").open("wb") as file:
        for _ in range(300):
            file.write(b"x" * 1200)
            file.flush()
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(1000 * (time.perf_counter() - started))
            time.sleep(0.005)
    return np.percentile(times, (50, 90, 99))


class _Load:
    """Asks one server at a fixed rate."""

    def __init__(
        self, client: aiohttp.ClientSession, url: str, key: str | None, model: str, stream: bool
    ) -> None:
        self._client, self._url, self._model, self._stream = (
            client,
            f"{url}/v1/chat/completions",
            model,
            stream,
        )
        self._headers = {"content-type": "application/json"} | (
            {"authorization": f"Bearer {key}"} if key else {}
        )

    async def _ask(self, number: int, due: float) -> float:
        message = {"role": "user", "content": f"Tell me about storm number {number}."}
        body = {
            "model": self._model,
            "messages": [message],
            "user": f"user-{number % _USERS}",
            "stream": self._stream,
        }
        async with self._client.post(self._url, data=orjson.dumps(body), headers=self._headers) as response:
            await response.read()
            if response.status != 200:
                raise RuntimeError(f"{self._url} answered {response.status}")
        return time.perf_counter() - due

    async def run(self, rate: float, seconds: float) -> list[float]:
        """Latencies in seconds, from when each request was due."""
        started = time.perf_counter()
        tasks = []
        for number in range(int(rate * seconds)):
            due = started + number / rate
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            tasks.append(asyncio.create_task(self._ask(number, due)))
        return list(await asyncio.gather(*tasks))


async def _measure(
    urls: dict[str, tuple[str, str | None, str]], options: argparse.Namespace
) -> dict[str, np.ndarray]:
    """Latencies in milliseconds by name; the servers take turns, so that a busy machine hits both."""
    found: dict[str, list[float]] = {name: [] for name in urls}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        loads = {
            name: _Load(client, url, key, model, options.stream) for name, (url, key, model) in urls.items()
        }
        for load in loads.values():
            await load.run(options.rate, _WARM_UP)
        for _ in range(options.turns):
            for name, load in loads.items():
                found[name] += await load.run(options.rate, options.seconds / options.turns)
    return {name: 1000 * np.array(values) for name, values in found.items()}


def _report(measured: dict[str, np.ndarray]) -> None:
    shares = (50, 90, 99, 99.9)
    print(f"{'ms':<10}" + "".join(f"{f'p{share:g}':>10}" for share in shares) + f"{'requests':>10}")
    table = {name: np.percentile(values, shares) for name, values in measured.items()}
    for name, row in table.items():
        print(f"{name:<10}" + "".join(f"{value:10.2f}" for value in row) + f"{len(measured[name]):10d}")
    over = table["gateway"] - table["direct"]
    print(f"{'over':<10}" + "".join(f"{value:10.2f}" for value in over))
    print(f"{'ratio':<10}" + "".join(f"{value:10.2f}" for value in table["gateway"] / table["direct"]))
    print("target: over the model's own time at most 2 ms at p50 and 10 ms at p99")


def main() -> None:
    """Start both servers, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of load, for each")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the gateway's workspace is made")
    options = parser.parse_args()
    stub, port = free_port(), free_port()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{options.rate:g} requests/s, {options.workers} worker(s), {os.cpu_count()} cores, load average {load}"
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        sync = _sync_milliseconds(Path(folder))
        print(f"a sync of the disk, ms: p50 {sync[0]:.2f}, p90 {sync[1]:.2f}, p99 {sync[2]:.2f}")
        root = make_root(
            Path(folder),
            f"http://127.0.0.1:{stub}",
            timeout_seconds=10.0,
            poll_seconds=5.0,
            segment_seconds=60,
        )
        start_experiment(root)
        key = add_key(root / ".flywheel/serve/keys.json", "load", "user", None)[1]
        serve = ["flywheel_tasks.cli", "serve", "--root", str(root), "--port", str(port)]
        urls = {
            "direct": (f"http://127.0.0.1:{stub}", None, "base"),
            "gateway": (f"http://127.0.0.1:{port}", key, "character:mira"),
        }
        with (
            _process(["tests.serving.stub", str(stub), str(_MODEL_SECONDS)], stub),
            _process([*serve, "--workers", str(options.workers)], port),
        ):
            time.sleep(2)
            _report(asyncio.run(_measure(urls, options)))


if __name__ == "__main__":
    main()
