"""Data contracts on many messages: the table engine against Great Expectations alone, on the same rows.

Great Expectations reads the same Parquet file into a pandas frame and validates the expectations of
``data_contracts/messages.yaml``: its row rules (all of them but the relations, which it has no words for) and, as
expectations of its own, the table rules that it can compute. The engine does all of these, the relations, the drift
rules, and writes what it keeps and the quarantine. Each runs in a process of its own.

    python -m benchmarks.contracts [ROWS] [--skip-peer]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_WORDS = "the sea was calm and nobody on the pier had seen the captain leave that night so we waited"
_TURNS = 8  # of a conversation
_CHUNK = 80_000
_DAY = 86_400_000_000
_START = 20_000 * _DAY


def _write(folder: Path, rows: int) -> None:
    """Messages of conversations of eight turns, with a few rows that break each kind of rule; cards; no signals."""
    from flywheel_tasks.contracts.load import load_contracts
    from flywheel_tasks.contracts.schema import arrow_schema

    contracts = load_contracts(Path("data_contracts"))
    words = _WORDS.split()
    rng = np.random.default_rng(7)
    texts = pa.array([" ".join(rng.choice(words, size=n)) for n in rng.integers(3, 60, size=4000)])
    cards = [
        {
            "event_id": f"card-{n}",
            "time": _START,
            "source": "internal",
            "card_id": f"character-{n:04d}",
            "name": f"Name {n}",
            "traits": ["calm"],
            "instructions": ["Never use emoji."],
        }
        for n in range(500)
    ]
    pq.write_table(
        pa.Table.from_pylist(cards, schema=arrow_schema(contracts["cards"])), folder / "cards.parquet"
    )
    schema = arrow_schema(contracts["messages"])
    origins = pa.schema([("event_id", pa.string()), ("file", pa.string()), ("line", pa.int64())])
    with (
        pq.ParquetWriter(folder / "messages.parquet", schema, compression="zstd") as writer,
        pq.ParquetWriter(folder / "origins.parquet", origins, compression="zstd") as places,
    ):
        for start in range(0, rows, _CHUNK):
            n = np.arange(start, min(start + _CHUNK, rows))
            writer.write_table(table := _messages(n, texts, rng, schema, 7 * _DAY / rows))
            file = pa.array(["date=2024-10-04/part-000.jsonl.gz"]).take(pa.array(np.zeros(len(n), int)))
            places.write_table(
                pa.table({"event_id": table["event_id"], "file": file, "line": n + 1}, schema=origins)
            )


def _messages(
    n: np.ndarray, texts: pa.Array, rng: np.random.Generator, schema: pa.Schema, step: float
) -> pa.Table:
    conversation, turn = n // _TURNS, n % _TURNS
    ids = [f"{i * 2654435761 % 2**32:08x}-4a1c-4e0b-9f3d-{i:012x}" for i in n]
    previous = np.where(turn > 0, n - 1, -1)
    parents = [None if p < 0 else f"{p * 2654435761 % 2**32:08x}-4a1c-4e0b-9f3d-{p:012x}" for p in previous]
    text = texts.take(pa.array(rng.integers(0, len(texts), len(n)))).to_pylist()
    role = np.where(turn % 2 == 0, "user", "assistant").tolist()
    source = np.where(conversation % 3 == 0, "internal", "user").tolist()
    card = [f"character-{c * 7919 % 500:04d}" for c in conversation]
    user = [f"u_{c * 104729 % 200_000:032x}" for c in conversation]
    time = (_START + n * step).astype(np.int64)
    for i in np.flatnonzero(rng.random(len(n)) < 0.0005):
        kind = i % 5
        if kind == 0:
            text[i] = "\u00a0 "
        elif kind == 1:
            source[i] = "bot"
        elif kind == 2:
            card[i] = "character-9999"
        elif kind == 3 and parents[i]:
            parents[i] = "nobody"
        else:
            time[i] -= _DAY
    return pa.table(
        {
            "event_id": [f"e-{x}" for x in ids],
            "time": pa.array(time, pa.timestamp("us", tz="UTC")),
            "source": source,
            "conversation_id": [f"c-{c * 2654435761 % 2**32:08x}-{c:012x}" for c in conversation],
            "message_id": ids,
            "user_id": user,
            "card_id": card,
            "role": role,
            "text": text,
            "parent_id": pa.array(parents, pa.string()),
            "model": pa.array([None if r == "user" else "g0001" for r in role], pa.string()),
            "replaces": pa.nulls(len(n), pa.string()),
        },
        schema=schema,
    )


def _profile(folder: Path) -> dict[str, float]:
    """Some earlier profile, so that drift is measured."""
    from flywheel_tasks.contracts.load import load_contracts
    from flywheel_tasks.contracts.profile import profile_table
    from flywheel_tasks.contracts.sql import Database

    contract = load_contracts(Path("data_contracts"))["messages"]
    with Database(folder / "spill", 200) as database:
        database.attach("messages", folder / "messages.parquet")
        profile = profile_table(database, "messages", contract)
    (folder / "profile.json").write_text(json.dumps({"tables": {"messages": profile}}))
    return {}


def _ours(folder: Path) -> dict[str, float]:
    from flywheel_tasks.contracts.load import load_contracts
    from flywheel_tasks.contracts.validation import Source, validate

    source = Source(
        {name: folder / f"{name}.parquet" for name in ("cards", "messages")},
        load_contracts(Path("data_contracts")),
        Path("data_contracts"),
        folder / "origins.parquet",
        json.loads((folder / "profile.json").read_text()),
    )
    (folder / "out").mkdir(exist_ok=True)
    started = time.monotonic()
    outcome = validate(source, folder / "out", folder / "spill", 300)
    seconds = time.monotonic() - started
    rules = outcome.report["tables"]["messages"]["row_rules"]
    return {"seconds": seconds, "set_aside": outcome.quarantined(), "row_rules": len(rules)}


def _peer(folder: Path) -> dict[str, float]:
    started = time.monotonic()  # both load Great Expectations within their time
    from flywheel_tasks.contracts.judge import Judge
    from flywheel_tasks.contracts.load import load_contracts
    from flywheel_tasks.contracts.model import Rule

    contract = load_contracts(Path("data_contracts"))["messages"]
    rules = [
        *contract.expectations(),
        Rule(
            name="has_messages_",
            why="-",
            expectation="expect_table_row_count_to_be_between",
            kwargs={"min_value": 1},
        ),
        Rule(
            name="unique_event_id_",
            why="-",
            expectation="expect_column_values_to_be_unique",
            kwargs={"column": "event_id"},
        ),
        Rule(
            name="both_roles_",
            why="-",
            expectation="expect_column_unique_value_count_to_be_between",
            kwargs={"column": "role", "min_value": 2},
        ),
    ]
    judge = Judge()
    frame = pq.read_table(folder / "messages.parquet").to_pandas()
    outcomes = judge.check("messages", frame, rules, Path("messages.yaml"))
    seconds = time.monotonic() - started
    broken = {row for outcome in outcomes for row in outcome.broken}
    return {"seconds": seconds, "set_aside": len(broken), "row_rules": len(contract.expectations())}


def _in_process(what: str, folder: str) -> dict[str, float]:
    code = [sys.executable, "-m", "benchmarks.contracts", "--run", what, "--folder", folder]
    done = subprocess.run(code, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _peak_mib() -> float:
    """Peak resident memory of this process (what getrusage says may be that of the process which started it)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def main() -> None:
    """Print seconds, rows a second and peak memory of both, and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="?", type=int, default=2_000_000)
    parser.add_argument("--skip-peer", action="store_true")
    parser.add_argument("--run", choices=("profile", "ours", "peer"))
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    if arguments.run:
        result = {"profile": _profile, "ours": _ours, "peer": _peer}[arguments.run](Path(arguments.folder))
        result["rss"] = _peak_mib()
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory(prefix="contracts-", dir=os.environ.get("BENCH_DIR")) as folder:
        _write(Path(folder), arguments.rows)
        size = (Path(folder) / "messages.parquet").stat().st_size / 2**20
        print(f"{arguments.rows:,} messages, {size:,.0f} MiB of Parquet, {os.cpu_count()} cores")
        _in_process("profile", folder)
        names = ["ours"] if arguments.skip_peer else ["ours", "peer"]
        results = {name: _in_process(name, folder) for name in names}
    print(f"{'':24}{'row rules':>10}{'seconds':>10}{'rows/s':>12}{'peak MiB':>10}{'set aside':>11}")
    for name, result in results.items():
        title = {"ours": "table engine", "peer": "Great Expectations"}[name]
        print(
            f"{title:24}{result['row_rules']:>10.0f}{result['seconds']:>10.1f}"
            f"{arguments.rows / result['seconds']:>12,.0f}{result['rss']:>10,.0f}{result['set_aside']:>11,.0f}"
        )
    if "peer" in results:
        print(f"ratio of rows/s: {results['peer']['seconds'] / results['ours']['seconds']:.2f}")


if __name__ == "__main__":
    main()
