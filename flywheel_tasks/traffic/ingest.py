"""Stage ``ingest``: raw log events to tables, user ids hashed.

Every line (or row) read ends in exactly one place: a table, the quarantine, the count of repeated events, or the count
of lines of users to forget. The stage fails if these do not add up to the number of lines read.

Partitions are parsed, a few at a time, into sorted runs on disk (kept for later generations), then merged; memory grows
with neither.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import track

from flywheel_tasks.pipeline.stage_io import STATE, StageIO
from flywheel_tasks.settings import Ingest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.traffic.drift import Profile
from flywheel_tasks.traffic.events import TYPES
from flywheel_tasks.traffic.identity import Identity, read_identity
from flywheel_tasks.traffic.in_order import THREADS, in_order
from flywheel_tasks.traffic.log_window import partition_date
from flywheel_tasks.traffic.logs import (
    LogsError,
    partition_blocks,
    partition_tables,
    read_pinned,
)
from flywheel_tasks.traffic.merge import write_events, write_origins, write_quarantine
from flywheel_tasks.traffic.parsed import Parsed, Parser
from flywheel_tasks.traffic.partition import DOCUMENT, lateness, write_partition
from flywheel_tasks.traffic.partition_cache import PartitionCache, code_version, key_of
from flywheel_tasks.traffic.refused import no_event, refused_lines
from flywheel_tasks.traffic.repeats import Entry, Repeats, find_repeats


class CountError(RuntimeError):
    """Lines were lost or counted twice: a defect of this stage."""


class Ingestion:
    """Parses partitions and merges them.

    Args:
        location: of the logs.
        root: the workspace.
        settings: of ingestion.
        identity: hashes user ids, and knows whom to forget.
        scratch: a folder for parsed partitions.
        cache: folder of partitions parsed before; None: none are kept.
    """

    def __init__(
        self,
        location: str,
        root: Path,
        settings: Ingest,
        identity: Identity,
        scratch: Path,
        cache: Path | None,
    ) -> None:
        self._location, self._root, self._settings, self._scratch = location, root, settings, scratch
        self._parser = Parser(identity, settings.max_line_bytes, settings.rename)
        scope = {
            "code": code_version(),
            "max_line_bytes": settings.max_line_bytes,
            "rename": settings.rename,
            "key": identity.key.fingerprint,
            "forgotten": sorted(identity.forgotten),
            "sample_users": identity.sample,
        }
        self._cache = PartitionCache(cache, key_of(scope), settings.cache_bytes) if cache else None
        self.parsed: list[str] = []

    def entry(self, number: int, partition: Mapping[str, Any], pool: Executor) -> Entry:
        """A partition's runs, from the cache or parsed now."""
        folder, path = self._scratch / f"{number}", partition["path"]
        key = key_of({"path": path, "sha256": partition["sha256"]})
        document = self._cache.get(key, folder) if self._cache else None
        if document is None:
            self.parsed.append(path)
            write_partition(self._parse(partition, pool), folder, partition_date(path))
            if self._cache is not None:
                self._cache.put(key, folder)
            document = read_json(folder / DOCUMENT)
        return Entry(number, path, folder, document)

    def _parse(self, partition: Mapping[str, Any], pool: Executor) -> Iterator[Parsed]:
        if partition["path"].endswith(".parquet"):
            yield from self._parse_rows(partition)
            return
        blocks = partition_blocks(
            self._location, self._root, partition, max_line_bytes=self._settings.max_line_bytes
        )
        yield from in_order(pool, self._parser.lines, blocks)

    def _parse_rows(self, partition: Mapping[str, Any]) -> Iterator[Parsed]:
        first = 1
        for table in partition_tables(self._location, self._root, partition, self._settings.rename):
            yield self._parser.rows(table, first)
            first += table.num_rows

    def run(self, partitions: Sequence[Mapping[str, Any]], out: Path) -> dict[str, Any]:
        """Parse what is new, merge everything, and write the tables.

        Args:
            partitions: pinned ones, sorted by path.
            out: folder for the tables.

        Returns:
            the metrics.

        Raises:
            LogsError: a partition is gone, changed or damaged.
            CountError: the books do not balance.
        """
        out.mkdir(parents=True, exist_ok=True)
        # While the rows of one partition are sorted and written, the lines of the next are parsed.
        with ThreadPoolExecutor(THREADS) as pool, ThreadPoolExecutor(THREADS) as reading:
            made = in_order(reading, lambda item: self.entry(*item, pool), enumerate(partitions))
            entries = list(track(made, "Reading logs", total=len(partitions), transient=True))
            self.parsed.sort()
            repeats = find_repeats(entries)
            merged = {kind: pool.submit(write_events, kind, entries, repeats, out) for kind in TYPES}
            origins = pool.submit(write_origins, entries, repeats, out)
            counts = {kind: made.result() for kind, made in merged.items()}
            origins.result()
        quarantined = write_quarantine(entries, repeats, out)
        if self._cache is not None:
            self._cache.trim()
        return _metrics(entries, counts, repeats, quarantined)


def _sum(entries: Sequence[Entry], name: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for entry in entries:
        total.update(entry.document[name])
    return total


def _metrics(
    entries: Sequence[Entry], accepted: Mapping[str, int], repeats: Repeats, quarantine_rows: int
) -> dict[str, Any]:
    """The counts.

    Raises:
        CountError: they do not add up.
    """
    read = sum(entry.document["read"] for entry in entries)
    forgotten, not_sampled = (
        sum(entry.document[name] for entry in entries) for name in ("forgotten", "not_sampled")
    )
    left_out = forgotten + not_sampled
    refused = _sum(entries, "refused")
    refused["conflicting_duplicate"] += repeats.contradicting
    total = sum(accepted.values())
    if total + refused.total() + repeats.duplicates + left_out != read or refused.total() != quarantine_rows:
        raise CountError(
            f"{read} lines read, but {total} accepted, {refused.total()} quarantined ({quarantine_rows} written), "
            f"{repeats.duplicates} duplicates, {forgotten} of forgotten users, {not_sampled} of users not sampled"
        )
    profile = Profile()
    for entry in entries:
        profile.merge(Profile.from_json(entry.document["profile"]))
    unknown: Counter[str] = Counter()
    for (kind, name), count in profile.unknown.items():
        unknown["other" if name == "other" else f"{kind}.{name}"] += count
    late = _sum(entries, "lateness")
    return {
        "read": read,
        "accepted": {"total": total, **dict(accepted)},
        "quarantined": {"total": refused.total(), **{k: n for k, n in sorted(refused.items()) if n}},
        "duplicates": repeats.duplicates,
        "forgotten": forgotten,
        "not_sampled": not_sampled,
        "lateness": {name: late.get(name, 0) for name in lateness_names()},
        "unknown_fields": {"total": unknown.total(), **dict(sorted(unknown.items()))},
        "renamed": dict(sorted(_sum(entries, "renamed").items())),
        "drift": profile.report(),
    }


def lateness_names() -> list[str]:
    """Classes of lateness, in their order."""
    import numpy as np

    return list(lateness(np.zeros(0, np.int64)))


def run(io: StageIO) -> Mapping[str, Any]:
    """Entry of the stage: :func:`ingest`, which must find an event.

    Raises:
        IdentityError: the environment lacks the key that this generation hashes user ids with.
        LogsError: no logs are pinned, a partition is gone, changed or damaged, or no line is an event.
    """
    metrics = ingest(io)
    if not metrics["accepted"]["total"]:
        location, partitions = read_pinned(io.dep("inputs/logs.json"))
        _, lines = refused_lines(io.out("data/ingested") / "quarantine.parquet")
        raise LogsError(no_event(metrics, location, len(partitions), lines))
    return metrics


def ingest(io: StageIO) -> Mapping[str, Any]:
    """Make ``data/ingested`` of ``inputs/logs.json`` and ``inputs/users.json``.

    Returns:
        the metrics; perhaps of no event.

    Raises:
        IdentityError: the environment lacks the key that this generation hashes user ids with.
        LogsError: no logs are pinned, or a partition is gone, changed or damaged.
    """
    location, partitions = read_pinned(io.dep("inputs/logs.json"))
    identity = replace(read_identity(io.dep("inputs/users.json")), sample=io.settings.ingest.sample_users)
    cache = io.root / STATE / "cache" / "ingest"
    ingestion = Ingestion(location, io.root, io.settings.ingest, identity, io.scratch(), cache)
    metrics = ingestion.run(partitions, io.out("data/ingested"))
    print(f"{len(ingestion.parsed)} of {len(partitions)} partitions parsed, the others were before")
    return {"partitions": len(partitions), "user_key": identity.key.fingerprint, **metrics}
