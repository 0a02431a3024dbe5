"""Journals: JSON Lines that a run appends to as it goes, for the run that goes on after a kill."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson


def read_journal(path: Path) -> list[Any]:
    """The rows of a journal; a last line that a kill cut short is dropped from the file.

    Args:
        path: of the journal; one that is not there has no rows.
    """
    if not path.exists():
        return []
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        with path.open("r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
    return [orjson.loads(line) for line in whole.splitlines() if line]


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row, which is there whole or, if a kill cuts it short, not at all.

    Args:
        path: of the journal, in a folder that is there.
        row: what orjson can write.
    """
    with path.open("ab") as file:
        file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        file.flush()
