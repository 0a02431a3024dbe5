"""Events a second and peak memory of ingest, validate and assemble, by the stages themselves, on synthetic logs.

    python -m benchmarks.ingestion --events 10000000 --folder /scratch/ingestion

The logs are made once in the folder (a file of 100,000 events at a time: conversations, 3% of replies regenerated,
signals, exposures, cards) and removed at the end unless ``--keep`` is given. Each stage runs in a process of its own;
its peak is the largest sum of resident memory over its process tree. Peers, on the first files only, read the same
lines: line by line (the exact parser, rows to Arrow, everything in memory), ``pandas.read_json`` in chunks, which
checks nothing, and DuckDB's ``read_json_auto`` sorted to Parquet, which checks nothing either.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import psutil
from rich.console import Console
from rich.table import Table

PROJECT = Path(__file__).resolve().parent.parent
STAGES = ("ingest", "validate", "assemble")
FILE_EVENTS = 100_000
DAYS = 7
FIRST = datetime(2026, 11, 2, tzinfo=UTC)
_COPY, _DATE = b"@@@@", b"@DATE@"  # in the template: number of the file, date
_WORDS = [
    "the",
    "a",
    "storm",
    "lighthouse",
    "keeper",
    "night",
    "sea",
    "you",
    "me",
    "tell",
    "story",
    "why",
    "how",
    "what",
    "dragon",
    "castle",
    "friend",
    "coffee",
    "love",
    "smile",
    "walks",
    "looks",
    "quietly",
    "😊",
    "rain",
    "café",
    "music",
    "dance",
    "laugh",
    "together",
    "tomorrow",
    "secret",
    "door",
    "window",
    "light",
    "dark",
    "blue",
    "red",
]


def _texts(chance: random.Random, least: int, most: int, end: str) -> list[str]:
    return [
        " ".join(chance.choices(_WORDS, k=chance.randint(least, most))).capitalize() + end
        for _ in range(5000)
    ]


def _conversation(
    chance: random.Random, number: int, asks: list[str], replies: list[str]
) -> list[tuple[float, dict]]:
    """Events of one conversation with their seconds of the day."""
    at, parent = chance.random() * 82_000, None
    source = "user" if chance.random() < 0.9 else "internal"
    said = {
        "type": "message",
        "source": source,
        "conversation_id": f"c-@@@@-{number:06x}",
        "user_id": f"user-@@@@-{chance.randrange(6000)}",
        "card_id": f"card-{chance.randrange(200)}",
    }
    rows: list[tuple[float, dict]] = []

    def add(seconds: float, **fields: Any) -> None:
        rows.append((seconds, {"event_id": f"e-@@@@-{chance.getrandbits(72):018x}", "time": "", **fields}))

    if chance.random() < 0.3:
        arm = chance.choice(["control", "candidate"])
        add(at, type="exposure", source=source, user_id=said["user_id"], experiment="g0001", arm=arm)
    for _ in range(min(1 + int(chance.expovariate(0.35)), 20)):
        asked = f"m-@@@@-{chance.getrandbits(56):014x}"
        add(at, **said, message_id=asked, role="user", text=chance.choice(asks), parent_id=parent, model=None)
        for sibling in range(2 if chance.random() < 0.03 else 1):
            parent, text = f"m-@@@@-{chance.getrandbits(56):014x}", chance.choice(replies)
            told = at + 2 + 5 * sibling
            add(told, **said, message_id=parent, role="assistant", text=text, parent_id=asked, model="g0001")
        if chance.random() < 0.25:
            signal = {key: said[key] for key in ("source", "conversation_id", "user_id")}
            name = chance.choice(["thumb_up", "love", "thumb_down"])
            add(at + 8, type="signal", **signal, message_id=parent, signal=name, value=None)
        at += chance.uniform(15, 200)
    return rows


def _template(seed: int) -> bytes:
    """The lines of one file, in the order of time."""
    chance = random.Random(seed)
    asks, replies = _texts(chance, 4, 20, "?"), _texts(chance, 20, 60, ".")
    rows: list[tuple[float, dict]] = []
    number = 0
    while len(rows) < FILE_EVENTS:
        rows += _conversation(chance, number, asks, replies)
        number += 1
    lines = []
    for seconds, event in sorted(rows[:FILE_EVENTS], key=lambda row: row[0]):
        clock = (datetime.min + timedelta(seconds=seconds % 86_400)).strftime("%H:%M:%S")
        event["time"] = f"@DATE@T{clock}.{int(seconds % 1 * 1000):03d}Z"
        lines.append(orjson.dumps(event))
    return b"\n".join(lines) + b"\n"


def generate(folder: Path, events: int) -> None:
    """Write the logs: files of one template with ids of their own, and the cards."""
    template = _template(1)
    for file in range(max(1, events // FILE_EVENTS)):
        day = f"{FIRST + timedelta(days=file % DAYS):%Y-%m-%d}"
        path = folder / f"date={day}" / f"part-{file:04d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(template.replace(_COPY, b"%04d" % file).replace(_DATE, day.encode()))
    cards = folder / f"date={FIRST:%Y-%m-%d}" / "cards.jsonl"
    with cards.open("wb") as out:
        for number in range(200):
            card = {
                "event_id": f"card-{number}",
                "type": "card",
                "time": "2026-11-01T00:00:00Z",
                "source": "internal",
                "card_id": f"card-{number}",
                "name": f"Name {number}",
                "traits": ["kind", "dry"],
                "instructions": ["Never use emoji."],
            }
            out.write(orjson.dumps(card) + b"\n")


def workspace(root: Path, logs: Path, files: int | None = None) -> None:
    """A workspace whose inputs are pinned on the logs (the first files of them)."""
    from flywheel_tasks.storage.documents import write_json
    from flywheel_tasks.traffic.identity import DEMO_FINGERPRINT, pin_users
    from flywheel_tasks.traffic.logs import pin_logs

    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(PROJECT / name, root / name)
    shutil.copytree(PROJECT / "data_contracts", root / "data_contracts")
    pinned = pin_logs(str(logs), root)
    if files is not None:
        wanted = [item for item in pinned["partitions"] if not item["path"].endswith("cards.jsonl")][:files]
        pinned["partitions"] = sorted(
            [*wanted, *(item for item in pinned["partitions"] if item["path"].endswith("cards.jsonl"))],
            key=lambda item: item["path"],
        )
    write_json({**pinned, "earlier": True}, root / "inputs/logs.json")  # as in every week but the first
    write_json(pin_users(DEMO_FINGERPRINT, set()), root / "inputs/users.json")
    write_json({"generation": None, "profile": None}, root / "inputs/profile.json")


def run_stage(name: str, root: Path) -> None:
    """Run a stage in this process and print what it took."""
    from flywheel_tasks.pipeline.stage import run_stage as run

    started, busy = time.perf_counter(), time.process_time()
    run(name, root)
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu": time.process_time() - busy}))


def _measured(*arguments: str) -> dict[str, float]:
    """Run this file in a process of its own; its last line, and the peak of its tree's resident memory."""
    command = [sys.executable, "-m", "benchmarks.ingestion", *arguments]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    peak, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        for member in (watched, *_children(watched)):
            try:
                total += member.memory_info().rss
            except psutil.Error:
                continue
        peak = max(peak, total)
        time.sleep(0.05)
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return {**json.loads(lines[-1]), "peak": peak}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def run_peer(name: str, root: Path) -> None:
    """Read the pinned files in another way and print what it took."""
    from flywheel_tasks.traffic.logs import read_pinned

    location, partitions = read_pinned(root / "inputs/logs.json")
    paths = [str(Path(location) / item["path"]) for item in partitions]
    out = root / "peer.parquet"
    started, busy = time.perf_counter(), time.process_time()
    if name == "line by line":
        import pyarrow.parquet as pq

        from flywheel_tasks.traffic.identity import DEMO_KEY, Identity, UserKey
        from tests.traffic.line_by_line import Ingestion, open_partition

        ingestion = Ingestion(Identity(UserKey(DEMO_KEY), frozenset()))
        for item in partitions:
            for line in open_partition(location, root, item, max_line_bytes=1_000_000):
                ingestion.take(item["path"], line)
        ingestion.metrics()
        for table in ingestion.tables().values():
            pq.write_table(table, out, compression="zstd")
    elif name == "pandas":
        import pandas as pd

        for path in paths:
            for chunk in pd.read_json(path, lines=True, chunksize=50_000, dtype=False):
                len(chunk)
    else:
        import duckdb

        connection = duckdb.connect(
            config={"threads": 2, "memory_limit": "800MB", "temp_directory": str(root / "spill")}
        )
        connection.execute(
            f"COPY (SELECT * FROM read_json_auto({paths!r}, format='newline_delimited') ORDER BY time, event_id) "
            f"TO '{out}' (FORMAT parquet, COMPRESSION zstd)"
        )
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu": time.process_time() - busy}))


def _row(table: Table, name: str, events: int, found: dict[str, float], ours: float | None = None) -> None:
    rate = events / found["seconds"]
    table.add_row(
        name,
        f"{events:,}",
        f"{found['seconds']:.1f}",
        f"{found['cpu']:.1f}",
        f"{rate:,.0f}",
        f"{found['peak'] / 2**20:,.0f}",
        "" if ours is None else f"{ours / rate:.1f}",
    )


def _table(title: str) -> Table:
    table = Table(title=title)
    for name in ("", "events", "seconds", "CPU s", "events/s", "peak MiB", "ours / it"):
        table.add_column(name, justify="left" if not name else "right")
    return table


def main() -> None:
    """Parse the options, make the logs, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--peer-files", type=int, default=3, help="files of 100,000 events that peers read")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument(
        "--keep", action="store_true", help="leave the logs in the folder, and use those there"
    )
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--workspace", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        run_stage(options.stage, options.workspace)
        return
    if options.peer:
        run_peer(options.peer, options.workspace)
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="ingestion-"))
    logs, root, small = folder.resolve() / "logs", folder / "workspace", folder / "small"
    try:
        if not logs.exists():
            generate(logs, options.events)
        workspace(root, logs)
        events = max(1, options.events // FILE_EVENTS) * FILE_EVENTS + 200
        console, table = Console(), _table(f"{events:,} events, stage by stage")
        total: dict[str, float] = {"seconds": 0.0, "cpu": 0.0, "peak": 0}
        for stage in STAGES:
            found = _measured("--stage", stage, "--workspace", str(root))
            _row(table, stage, events, found)
            total = {
                "seconds": total["seconds"] + found["seconds"],
                "cpu": total["cpu"] + found["cpu"],
                "peak": max(total["peak"], found["peak"]),
            }
        _row(table, "together", events, total)
        again = root / "data/ingested"
        shutil.rmtree(again)
        _row(
            table,
            "ingest again (parsed before)",
            events,
            _measured("--stage", "ingest", "--workspace", str(root)),
        )
        console.print(table)
        shutil.rmtree(root)

        workspace(small, logs, options.peer_files)
        events = options.peer_files * FILE_EVENTS + 200
        table = _table(f"ingest and its peers on {events:,} events")
        ours = _measured("--stage", "ingest", "--workspace", str(small))
        _row(table, "ingest", events, ours, events / ours["seconds"])
        for peer in ("line by line", "pandas", "duckdb"):
            found = _measured("--peer", peer, "--workspace", str(small))
            _row(table, peer, events, found, events / ours["seconds"])
        console.print(table)
    finally:
        for path in (root, small, *(() if options.keep else (logs,))):
            shutil.rmtree(path, ignore_errors=True)
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
