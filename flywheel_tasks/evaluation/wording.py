"""Word lists and set phrases of ``wording.yaml``."""

import re
from functools import cache
from importlib.resources import files
from typing import Any

from flywheel_tasks.storage.fast_yaml import load_yaml


@cache
def _sections() -> dict[str, Any]:
    text = files("flywheel_tasks.evaluation").joinpath("wording.yaml").read_text(encoding="utf-8")
    return dict(load_yaml(text))


@cache
def words_of(section: str) -> frozenset[str]:
    """The words of a section."""
    return frozenset(_sections()[section].split())


@cache
def pattern_of(section: str) -> re.Pattern[str]:
    """One pattern that finds any of a section's phrases, in any case."""
    return re.compile("|".join(_sections()[section]), re.IGNORECASE)
