"""One partition, parsed: sorted runs of rows in files, with what later steps need to merge them.

A folder holds, of one partition:

- ``<type>-<number>.arrow``: at most ``_RUN_ROWS`` rows of one type with their line numbers, sorted by time and id;
- ``keys-<number>.npy``: hash of the event id, hash of the content and line of every row, (3, rows), sorted by id hash;
- ``origins.arrow``: event id and line of every row, in the order of the file;
- ``quarantine.arrow``: refused lines;
- ``partition.json``: the counts and the list of the runs, written last.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.traffic.drift import Profile
from flywheel_tasks.traffic.events import TABLE_OF
from flywheel_tasks.traffic.parsed import LINE, Parsed
from flywheel_tasks.traffic.schemas import INGEST_QUARANTINE, TABLES

DOCUMENT = "partition.json"
BATCH_ROWS = 4_096  # rows of a run that are read together
_RUN_ROWS = 131_072
_RUN_BYTES = 1 << 26
_KEY_ROWS = 1 << 20
_DAY = 86_400_000_000  # microseconds
_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)

ORIGIN = pa.schema([("event_id", pa.string()), LINE])
REFUSED = pa.schema([INGEST_QUARANTINE.field(name) for name in ("line", "rule", "detail", "raw", "user_ids")])
_STREAMS = {"origins.arrow": ORIGIN, "quarantine.arrow": REFUSED}


def run_schema(kind: str) -> pa.Schema:
    """Schema of a run: that of the table, and the line."""
    return TABLES[TABLE_OF[kind]].append(LINE)


def lateness(days: np.ndarray) -> Counter[str]:
    """Events by the days from their own date to their partition's."""
    return Counter(
        {
            "early": int((days < 0).sum()),
            "same_day": int((days == 0).sum()),
            "late_1_day": int((days == 1).sum()),
            "late_2_to_7_days": int(((days > 1) & (days <= 7)).sum()),
            "late_over_7_days": int((days > 7).sum()),
        }
    )


class _Hasher:
    """64-bit hashes of ids and of whole rows, by DuckDB."""

    def __init__(self) -> None:
        self._connection = duckdb.connect(config={"threads": 1})

    def hashes(self, kind: str, rows: pa.Table) -> np.ndarray:
        """Hash of the event id and of the content (type included), (2, rows)."""
        at = rows.schema.get_field_index("time")
        plain = rows.set_column(at, "time", rows["time"].cast(pa.int64()))
        names = ", ".join(f'"{name}"' for name in plain.schema.names if name != "line")  # of the schema
        query = f"SELECT hash(event_id) AS id, hash('{kind}', {names}) AS content FROM plain"  # noqa: S608
        found: pa.Table = self._connection.from_arrow(plain).query("plain", query).to_arrow_table()  # type: ignore[union-attr]
        return np.stack([found["id"].to_numpy(), found["content"].to_numpy()])


class PartitionWriter:
    """Takes the parsed blocks of one partition, in order.

    Args:
        folder: for the files; must be empty.
        day: of the partition.
    """

    def __init__(self, folder: Path, day: date) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._day = folder, np.datetime64(day, "us").astype(np.int64)
        self._pending: dict[str, list[pa.Table]] = {}
        self._keys: list[np.ndarray] = []
        self._hasher = _Hasher()
        self._runs: list[dict[str, Any]] = []
        self._key_files: list[str] = []
        self._read = self._forgotten = self._not_sampled = self._rows = 0
        self._refused: Counter[str] = Counter()
        self._renamed: Counter[str] = Counter()
        self._late: Counter[str] = Counter()
        self._profile = Profile()
        self._files = ExitStack()
        self._origins, self._quarantine = (
            self._files.enter_context(pa.ipc.new_stream(folder / name, schema, options=_LZ4))
            for name, schema in _STREAMS.items()
        )

    def add(self, parsed: Parsed) -> None:
        """Take one block."""
        self._read += parsed.read
        self._forgotten += parsed.forgotten
        self._not_sampled += parsed.not_sampled
        self._renamed.update(parsed.renamed)
        self._profile.merge(parsed.profile)
        if parsed.refused:
            refused = sorted(parsed.refused, key=lambda row: row["line"])
            self._refused.update(row["rule"] for row in refused)
            self._quarantine.write_table(pa.Table.from_pylist(refused, schema=REFUSED))
        tables = {kind: pa.concat_tables(tables) for kind, tables in parsed.tables.items()}
        origins = pa.concat_tables([ORIGIN.empty_table(), *(t.select(ORIGIN.names) for t in tables.values())])
        if origins.num_rows:
            self._origins.write_table(origins.sort_by("line").combine_chunks())
        for kind, table in tables.items():
            pending = self._pending.setdefault(kind, [])
            pending.append(table)
            if sum(t.num_rows for t in pending) >= _RUN_ROWS or sum(t.nbytes for t in pending) >= _RUN_BYTES:
                self._write_run(kind)

    def _write_run(self, kind: str) -> None:
        rows = pa.concat_tables(self._pending.pop(kind)).combine_chunks()
        if not rows.num_rows:
            return
        hashes = self._hasher.hashes(kind, rows)
        self._keys.append(np.concatenate([hashes, rows["line"].to_numpy().astype(np.uint64)[None]]))
        self._rows += rows.num_rows
        rows = rows.sort_by([("time", "ascending"), ("event_id", "ascending")])
        time = rows["time"].cast(pa.int64()).to_numpy()
        self._late.update(lateness((self._day - time // _DAY * _DAY) // _DAY))
        firsts = np.arange(0, rows.num_rows, BATCH_ROWS)
        name = f"{kind}-{len(self._runs)}.arrow"
        with pa.ipc.new_file(self._folder / name, run_schema(kind), options=_LZ4) as file:
            file.write_table(rows.combine_chunks(), BATCH_ROWS)
        ids = rows["event_id"].take(pa.array(firsts)).to_pylist()
        first_keys = [[int(time[row]), key] for row, key in zip(firsts, ids, strict=True)]
        self._runs.append({"type": kind, "file": name, "rows": rows.num_rows, "firsts": first_keys})
        if sum(keys.shape[1] for keys in self._keys) >= _KEY_ROWS:
            self._write_keys()

    def _write_keys(self) -> None:
        if not self._keys:
            return
        keys = np.concatenate(self._keys, axis=1)
        name = f"keys-{len(self._key_files)}.npy"
        np.save(self._folder / name, keys[:, np.argsort(keys[0], kind="stable")], allow_pickle=False)
        self._key_files.append(name)
        self._keys = []

    def close(self) -> dict[str, Any]:
        """Write what is left, and the document."""
        for kind in list(self._pending):
            self._write_run(kind)
        self._write_keys()
        self._files.close()
        document = {
            "read": self._read,
            "forgotten": self._forgotten,
            "not_sampled": self._not_sampled,
            "rows": self._rows,
            "refused": dict(self._refused),
            "renamed": dict(self._renamed),
            "lateness": dict(self._late),
            "profile": self._profile.to_json(),
            "runs": self._runs,
            "keys": self._key_files,
        }
        write_json(document, self._folder / DOCUMENT)
        return document


def write_partition(parsed: Iterable[Parsed], folder: Path, day: date) -> dict[str, Any]:
    """Write the parsed blocks of a partition.

    Args:
        parsed: in order.
        folder: a new one.
        day: of the partition.

    Returns:
        the document of the partition.
    """
    writer = PartitionWriter(folder, day)
    for block in parsed:
        writer.add(block)
    return writer.close()


def read_whole(folder: Path) -> dict[str, Any] | None:
    """The document of a partition; None if it, or a file that goes with it, is not in the folder."""
    try:
        document: dict[str, Any] = read_json(folder / DOCUMENT)
    except FileNotFoundError:
        return None
    names = (*_STREAMS, *(run["file"] for run in document["runs"]), *document["keys"])
    return document if all((folder / name).exists() for name in names) else None


def read_stream(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of ``origins.arrow`` or ``quarantine.arrow``."""
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        yield from stream
