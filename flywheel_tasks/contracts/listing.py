"""What a check set aside as one file: lines that are no rows, and rows that break a contract."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from flywheel_tasks.contracts.checking import Checked
from flywheel_tasks.contracts.model import ContractError
from flywheel_tasks.contracts.quarantine import write_batches
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.tables import read_batches
from flywheel_tasks.traffic.schemas import VALIDATION_QUARANTINE

ENDINGS = (".parquet", ".jsonl")
_ROWS = 16_384


def check_ending(path: Path) -> None:
    """See that a list can be written there, before anything is checked.

    Raises:
        ContractError: the name ends otherwise.
    """
    if path.suffix not in ENDINGS:
        raise ContractError(f"{path}: a list of what is set aside ends in {' or '.join(ENDINGS)}")


def write_list(outcomes: Sequence[Checked], path: Path) -> int:
    """Write all lines and rows that were set aside, those of ingestion first.

    Args:
        outcomes: of checks, whose scratch folder is still there.
        path: where to; Parquet or JSON Lines, by its ending.

    Returns:
        how many.
    """
    batches = (batch for checked in outcomes for batch in _batches(checked))
    if path.suffix == ".parquet":
        return write_batches(batches, VALIDATION_QUARANTINE, path)
    count = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for batch in batches:
            count += batch.num_rows
            for row in batch.to_pylist():
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return count


def _batches(checked: Checked) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(checked.unreadable), _ROWS):
        yield _batch(
            [
                {
                    "table": line.table,
                    "event_id": None,
                    "file": line.file,
                    "line": line.line,
                    "rule": line.rule,
                    "detail": line.detail,
                }
                for line in checked.unreadable[start : start + _ROWS]
            ]
        )
    for batch in read_batches(checked.quarantine, _ROWS):
        rows = batch.to_pylist()
        yield _batch([{**row, "file": row["file"] and checked.named(row["file"])} for row in rows])


def _batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=VALIDATION_QUARANTINE)
