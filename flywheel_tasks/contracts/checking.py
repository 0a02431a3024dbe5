"""Contracts on any file: what ``flywheel contracts check`` does."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.contracts.model import ContractError
from flywheel_tasks.contracts.reading import Found, Unreadable, find_tables, is_raw_log
from flywheel_tasks.contracts.resumed import beginnings
from flywheel_tasks.contracts.validate import newest_date
from flywheel_tasks.contracts.validation import QUARANTINE, Source, Validated, validate
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.settings import Settings, load_settings
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.traffic.schemas import TABLES

RAW_LOGS = "raw logs"
_UNDATED = "date=1970-01-01"  # of a file that lies in no date's folder
_ALONE = "not applicable: no profile to compare with (--against)"


@dataclass(frozen=True)
class Checked:
    """The outcome on tables that were checked together.

    Attributes:
        what: the file or folder.
        validated: the outcome of the contracts.
        quarantine: the table of what they set aside, in the scratch folder.
        unreadable: lines that are no rows.
        ingested: counts of ingestion; None unless these are raw logs.
        reference: the profile they were compared with.
        no_event: that raw logs hold no event, in words; empty unless so.
        linked: what the file or folder is called in tables of raw logs, if they call it otherwise; else empty.
    """

    what: str
    validated: Validated
    quarantine: Path
    unreadable: list[Unreadable] = field(default_factory=list)
    ingested: dict[str, Any] | None = None
    reference: dict[str, Any] | None = None
    no_event: str = ""
    linked: str = ""

    def named(self, text: str) -> str:
        """A text of a table in which the file or folder is called as it was given, not as it was linked."""
        return text.replace(self.linked, self.what) if self.linked else text

    def share(self) -> float:
        """Share of lines and rows that are set aside."""
        read = sum(of["read"] for of in self.validated.report["tables"].values())
        return (len(self.unreadable) + self.validated.quarantined()) / max(1, read + len(self.unreadable))

    def problems(self, limit: float) -> list[str]:
        """What blocks, in words.

        Args:
            limit: the share that may be set aside.
        """
        if self.no_event:  # nothing else needs to be said of empty tables
            return [self.no_event]
        found = self.validated.problems()
        if (share := self.share()) > limit:
            found.append(f"{share:.1%} of all rows are set aside, above the limit of {limit:.1%}")
        return found


def check(
    path: Path,
    root: Path,
    scratch: Path,
    *,
    table: str | None = None,
    reference: dict[str, Any] | None = None,
) -> list[Checked]:
    """Run the contracts on a file, a folder of tables, or raw logs.

    Args:
        path: what to check.
        root: the workspace: its contracts, settings and graph.
        scratch: an empty folder.
        table: the contract of a single file.
        reference: a profile to compare distributions with.

    Returns:
        one outcome for the tables that belong together; a second file of one table is checked alone.

    Raises:
        ContractError: nothing there can be checked, or a table has other columns than its contract.
    """
    folder = root / "data_contracts"
    contracts = load_contracts(folder)
    settings = load_settings(root / "params.yaml")
    memory = settings.validate_.memory_mb
    if path.exists() and table is None and is_raw_log(path):
        return [_check_raw(path, root, scratch, settings, reference)]
    together: dict[str, Found] = {}
    alone: list[Found] = []
    for found in find_tables(path, contracts, table, scratch):
        if found.table in together:
            alone.append(found)
        else:
            together[found.table] = found
    repeated = {found.table for found in alone}
    groups = [[found for name, found in together.items() if name not in repeated]]
    groups += [[found] for found in [*(together[name] for name in sorted(repeated)), *alone]]
    outcomes = []
    for number, group in enumerate(filter(None, groups)):
        out = scratch / f"out-{number}"
        out.mkdir()
        source = Source(
            tables={found.table: found.path for found in group},
            contracts=contracts,
            folder=folder,
            reference=reference,
            alone=_ALONE,
            names={found.table: str(found.source) for found in group},
        )
        what = str(path) if len(group) > 1 else str(group[0].source)
        lines = [line for found in group for line in found.unreadable]
        outcomes.append(
            Checked(
                what,
                validate(source, out, scratch / "spill", memory),
                out / f"{QUARANTINE}.parquet",
                lines,
                None,
                reference,
            )
        )
    return outcomes


def _link(path: Path, location: Path) -> str:
    """Make a folder of logs that has only one file, or one date's folder, and say what that is called in it."""
    location.mkdir()
    if path.is_dir():
        (location / path.name).symlink_to(path.resolve())
        return path.name
    day = next((part for part in path.resolve().parts if part.startswith("date=")), _UNDATED)
    (location / day).mkdir()
    (location / day / path.name).symlink_to(path.resolve())
    return f"{day}/{path.name}"


def _check_raw(
    path: Path, root: Path, scratch: Path, settings: Settings, reference: dict[str, Any] | None
) -> Checked:
    """What ingestion would make of raw logs, and the contracts on that; in a workspace of its own."""
    from flywheel_tasks.traffic import ingest
    from flywheel_tasks.traffic.identity import pin_users, user_key
    from flywheel_tasks.traffic.logs import pin_logs
    from flywheel_tasks.traffic.refused import no_event as in_words

    location, linked, earlier = path, "", settings.logs.earlier == "always"
    if path.is_file() or path.name.startswith("date="):
        earlier = settings.logs.earlier != "never"  # this is a part, and conversations go on from others
        location = scratch / "logs"
        linked = _link(path, location)
    work = scratch / "workspace"
    pinned = pin_logs(str(location.resolve()), work)
    write_json(pinned, work / "inputs/logs.json")
    write_json(pin_users(user_key(settings.logs.source).fingerprint, []), work / "inputs/users.json")
    (work / "params.yaml").write_text(
        yaml.safe_dump(settings.model_dump(mode="json", by_alias=True)), encoding="utf-8"
    )
    stage = load_graph(root / "dvc.yaml")["ingest"]
    io = StageIO(stage, work, settings)
    metrics = dict(ingest.ingest(io))
    ingested = io.out("data/ingested")
    refused = pq.read_table(
        ingested / "quarantine.parquet", columns=["file", "line", "rule", "detail"]
    ).to_pylist()
    out = scratch / "out"
    out.mkdir()
    dated = not any(item["path"].startswith(f"{_UNDATED}/") for item in pinned["partitions"])
    tables = {name: ingested / f"{name}.parquet" for name in TABLES}
    memory = settings.validate_.memory_mb
    source = Source(
        tables=tables,
        cleared={"messages": beginnings(tables["messages"], scratch / "spill", memory)} if earlier else {},
        contracts=load_contracts(root / "data_contracts"),
        folder=root / "data_contracts",
        origins=ingested / "origins.parquet",
        reference=reference,
        alone=_ALONE,
        as_of=newest_date(read_json(work / "inputs/logs.json")) if dated else None,
    )
    validated = validate(source, out, scratch / "spill", memory)
    no_event = ""
    if not metrics["accepted"]["total"]:
        no_event = in_words(metrics, str(path), len(pinned["partitions"]), [])
    found = Checked(
        str(path),
        validated,
        out / f"{QUARANTINE}.parquet",
        ingested=metrics,
        reference=reference,
        no_event=no_event,
        linked=linked,
    )
    named = found.named
    lines = [
        Unreadable(RAW_LOGS, named(row["file"]), row["line"], named(row["detail"]), row["rule"])
        for row in refused
    ]
    examples = [{**row, "file": named(row["file"])} if row["file"] else row for row in validated.examples]
    return replace(found, validated=replace(validated, examples=examples), unreadable=lines)


def read_reference(path: Path) -> dict[str, Any]:
    """A profile that stage ``validate`` wrote, or a generation's pinned one.

    Raises:
        ContractError: it is none.
    """
    if not path.is_file():
        raise ContractError(f"{path}: there is no such file")
    document = read_json(path)
    profile = document.get("profile", document) if isinstance(document, dict) else None
    tables = profile.get("tables") if isinstance(profile, dict) else None
    whole = isinstance(tables, dict) and all(
        isinstance(of, dict) and isinstance(of.get("rows"), int) for of in tables.values()
    )
    if not isinstance(profile, dict) or not whole:
        raise ContractError(f"{path}: no profile of data (data/validated/profile.json)")
    return profile
