"""Stage ``assemble``: validated events to conversations.

Every message and signal is used or listed under ``problems`` with its reason; the stage fails if these do not add up.
Memory does not grow with the log: conversations are taken a range of ids at a time.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flywheel_tasks.conversations.buckets import Buckets, boundaries
from flywheel_tasks.conversations.group import Group, assemble_group
from flywheel_tasks.conversations.schemas import CARDS, PROBLEMS, REASONS, SIBLINGS, TIMED_PROMPTS
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.settings import Assemble
from flywheel_tasks.storage.tables import read_table, write_table

_BUCKET_ROWS = 65_536  # messages assembled at once
_BUCKET_BYTES = 1 << 26  # of their texts
_MOST_BYTES = (1 << 31) - 1  # of one conversation's texts: an Arrow array of strings holds no more
_THREADS = 2
_COUNTS = (
    "messages",
    "signals",
    "conversations",
    "broken_conversations",
    "prompts",
    "replies",
    "refusals",
    "regenerated",
    "edited",
    "unanswered",
    "shortened",
)


class AssemblyError(ValueError):
    """Conversations cannot be assembled; the message names the table and the rule."""


def newest_cards(cards: pa.Table) -> pa.Table:
    """The newest version of each card, sorted by id; of versions with one time the last event id wins."""
    if not cards.num_rows:
        return CARDS.empty_table()
    rows = cards.sort_by([(name, "ascending") for name in ("card_id", "time", "event_id")])
    ids = rows["card_id"].to_pylist()
    last = [k for k, name in enumerate(ids) if k + 1 == len(ids) or ids[k + 1] != name]
    return rows.take(pa.array(last)).select(CARDS.names).cast(CARDS)


def _check_size(messages: pa.Table, table: Path) -> None:
    size = pc.binary_length(messages["text"]).cast(pa.int64())
    if (pc.sum(size).as_py() or 0) <= _MOST_BYTES:
        return
    sizes = (
        pa.table({"name": messages["conversation_id"], "bytes": size})
        .group_by("name")
        .aggregate([("bytes", "sum")])
    )
    name, most = max(
        zip(sizes["name"].to_pylist(), sizes["bytes_sum"].to_pylist(), strict=True),
        key=lambda found: found[1],
    )
    raise AssemblyError(
        f"{table}: conversation {name} has {most} bytes of text; of the conversations that are assembled together "
        f"all may have {_MOST_BYTES}: take it out of the logs"
    )


def _groups(folder: Path, settings: Assemble, scratch: Path) -> Iterator[Group]:
    """Assembled groups in the order of conversation ids, a few ahead of the reader."""
    messages = folder / "messages.parquet"
    cuts = boundaries(messages, "conversation_id", _BUCKET_ROWS, "text", _BUCKET_BYTES)
    sources = [
        Buckets(folder / f"{name}.parquet", "conversation_id", cuts, scratch)
        for name in ("messages", "signals")
    ]

    def work(bucket: int) -> Group:
        events, signals = (source.read(bucket) for source in sources)
        _check_size(events, messages)
        return assemble_group(
            events,
            signals,
            window=timedelta(minutes=settings.continue_window_minutes),
            longest_history=settings.max_history_messages,
        )

    ahead: deque[Future[Group]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for bucket in range(len(cuts) + 1):
            ahead.append(pool.submit(work, bucket))
            if len(ahead) > _THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def assemble(folder: Path, out: Path, settings: Assemble, scratch: Path) -> dict[str, Any]:
    """Assemble the conversations of validated tables.

    Args:
        folder: ``cards``, ``messages`` and ``signals`` as Parquet.
        out: folder for ``cards``, ``prompts``, ``siblings`` and ``problems``.
        settings: the window of ``continue``, the longest history.
        scratch: a folder for what does not fit into memory.

    Returns:
        the counts.

    Raises:
        AssemblyError: a conversation is too large, or events were lost or counted twice (a defect).
    """
    out.mkdir(parents=True, exist_ok=True)
    cards = read_table(folder / "cards.parquet")
    newest = newest_cards(cards)
    write_table(newest, out / "cards.parquet")
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    known: Counter[str] = Counter()
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(pq.ParquetWriter(out / f"{name}.parquet", schema, compression="zstd"))
            for name, schema in (("prompts", TIMED_PROMPTS), ("siblings", SIBLINGS), ("problems", PROBLEMS))
        }
        for group in _groups(folder, settings, scratch):
            counts.update(group.counts)
            for name, tables in vars(group).items():
                for table in tables if name in files else ():
                    files[name].write_table(table)
                    counts[name] += table.num_rows
            for table in group.problems:
                reasons.update(table["reason"].to_pylist())
            for table in group.siblings:
                known.update(table["known_by"].to_pylist())
    return _metrics(counts, reasons, known, cards.num_rows, newest.num_rows)


def _metrics(
    counts: Mapping[str, int], reasons: Mapping[str, int], known: Mapping[str, int], versions: int, cards: int
) -> dict[str, Any]:
    read = counts.get("messages", 0) + counts.get("signals", 0)
    used = counts.get("used_messages", 0) + counts.get("used_signals", 0)
    problems = counts.get("problems", 0)
    if used + problems != read:
        raise AssemblyError(f"{read} events read, but {used} used and {problems} in problems.parquet")
    return {
        "read": read,
        "used": used,
        "problems": {"total": problems, **{name: reasons[name] for name in REASONS if reasons.get(name)}},
        **{name: counts.get(name, 0) for name in _COUNTS},
        "siblings": {"total": counts.get("siblings", 0), **dict(sorted(known.items()))},
        "card_versions": versions,
        "cards": cards,
    }


def run(io: StageIO) -> Mapping[str, Any]:
    """Entry of the stage: ``data/validated`` to ``data/conversations``.

    Raises:
        AssemblyError: there is no turn of a user, or the books do not balance.
    """
    metrics = assemble(
        io.dep("data/validated"), io.out("data/conversations"), io.settings.assemble, io.scratch()
    )
    if not metrics["prompts"]:
        raise AssemblyError(
            "data/validated/messages.parquet: no conversation with a user's turn, so there is no prompt; "
            f"problems: {metrics['problems']}"
        )
    return metrics
