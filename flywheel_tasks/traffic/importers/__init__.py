"""Importers of public formats.

Each takes a file and gives what it holds in this project's own form, with a list of the rows that it could
not take.
"""

from flywheel_tasks.traffic.importers.hh_rlhf import read_hh_rlhf
from flywheel_tasks.traffic.importers.persona_chat import read_persona_chat
from flywheel_tasks.traffic.importers.rows import Imported, ImportFormatError, SkippedRow, write_partitions
from flywheel_tasks.traffic.importers.rpbench import read_rpbench

__all__ = [
    "ImportFormatError",
    "Imported",
    "SkippedRow",
    "read_hh_rlhf",
    "read_persona_chat",
    "read_rpbench",
    "write_partitions",
]
