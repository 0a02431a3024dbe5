"""Settings of the traffic: where logs are, how they are read and become conversations."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flywheel_tasks.settings.section import Positive, Section, Share

WAREHOUSE = "ibis+"  # before the URL of a warehouse


class Warehouse(Section):
    """Tables of a warehouse (``logs.location: ibis+URL``), by event type, and the folder that they are extracted to."""

    tables: dict[Literal["card", "message", "signal", "exposure"], str]
    extract_to: str


class Logs(Section):
    """Where the raw logs are, and how many of the newest days a generation reads.

    ``late_days``: of how many days before these it reads what no generation has read: the days since the last one's,
    and files that came late for days that one read.
    ``earlier``: whether conversations may have begun before what is read; ``auto``: where there are older logs.
    """

    location: str
    source: Literal["simulated", "files"]
    newest_days: Positive
    late_days: Annotated[int, Field(ge=0)]
    earlier: Literal["auto", "always", "never"]
    warehouse: Warehouse

    @property
    def in_a_warehouse(self) -> bool:
        """Whether the logs are tables of a warehouse, of which a generation extracts the newest days."""
        return self.location.startswith(WAREHOUSE)


class Simulation(Section):
    """Size of the demo's simulated population."""

    users: Positive
    internal_share: Share
    turns: Positive
    start_date: str
    days: Positive
    rule_sets: Annotated[int, Field(ge=1, le=20)] = 1  # cards of each character, with different instructions


class Ingest(Section):
    """Reading raw logs."""

    max_line_bytes: Positive
    rename: dict[str, str]  # old field names to new ones, of fields that logs write under another name
    cache_bytes: Annotated[
        int, Field(ge=0)
    ]  # of parsed partitions kept for the next generation, or look; 0: none
    sample_users: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of the users that a generation reads

    @model_validator(mode="after")
    def _names(self) -> "Ingest":
        if chained := sorted(set(self.rename) & set(self.rename.values())):
            raise ValueError(f"rename: {', '.join(chained)} is both an old and a new name")
        if len(set(self.rename.values())) < len(self.rename):
            raise ValueError("rename: two old names for one field")
        return self


class Assemble(Section):
    """Events to conversations. ``continue``: the user answered a reply within the window."""

    continue_window_minutes: Positive
    max_history_messages: Positive  # a longer history loses its oldest messages


class Validate(Section):
    """Limits of validation. ``memory_mb``: what the table engine may hold before it spills to disk (MB)."""

    max_quarantine_share: Share
    memory_mb: Annotated[int, Field(ge=100)]
