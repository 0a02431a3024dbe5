"""What an A/B test makes of logged events."""

from collections.abc import Sequence
from typing import Any

import orjson

from flywheel_tasks.online.log_spool import LogReader
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.experiment_records import Override, Plan
from flywheel_tasks.traffic.lines import Block
from tests.conftest import PROJECT


def spooled(
    events: Sequence[dict[str, Any] | bytes], plan: Plan | None = None, overrides: tuple[Override, ...] = ()
) -> tuple[LogReader, list[dict[str, Any]]]:
    """The reader after it has read the events (or lines), and the rows of the spool in the order of the lines."""
    lines = [event if isinstance(event, bytes) else orjson.dumps(event) for event in events]
    reader = LogReader(plan, overrides, load_settings(PROJECT / "params.yaml").ingest, bytes(32))
    rows = reader.lines(Block(1, b"".join(line + b"\n" for line in lines)))
    return reader, sorted(rows.to_pylist(), key=lambda row: row["ordinal"])
