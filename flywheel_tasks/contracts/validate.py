"""Stage ``validate``: data contracts on the ingested tables.

A row that breaks a row rule goes to quarantine under the first rule it breaks. What remains must keep the table rules
that block, and the quarantine must stay below its limit, or the generation stops; the page with all results and the
quarantine are then kept in ``.flywheel/contracts``.
"""

import shutil
from collections import Counter
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.contracts.model import ContractError
from flywheel_tasks.contracts.page import plain, render_page
from flywheel_tasks.contracts.resumed import beginnings
from flywheel_tasks.contracts.validation import QUARANTINE, Source, Validated, validate
from flywheel_tasks.pipeline.stage_io import STATE, StageIO
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.traffic.refused import EACH, SHOWN, refused_lines
from flywheel_tasks.traffic.schemas import TABLES

PAGE = "contracts.html"
_REFUSED = "data/ingested/quarantine.parquet"


def newest_date(logs: Mapping[str, Any]) -> date | None:
    """The date of the newest partition of ``inputs/logs.json``; None if none has a date."""
    days = [
        part[len("date=") : len("date=") + 10]
        for partition in logs.get("partitions", [])
        for part in str(partition.get("path", "")).split("/")
        if part.startswith("date=")
    ]
    return date.fromisoformat(max(days)) if days else None


def metrics_of(validated: Validated, share: float) -> dict[str, Any]:
    """The stage's metrics: counts by table, table rules by status, drift by rule.

    Args:
        validated: the outcome.
        share: of all lines that ingestion and validation set aside.
    """
    metrics: dict[str, Any] = {}
    statuses: Counter[str] = Counter()
    observed: dict[str, dict[str, float]] = {}
    for table, of in validated.report["tables"].items():
        rules = {rule["rule"]: rule["set_aside"] for rule in of["row_rules"] if rule["set_aside"]}
        metrics[table] = {
            "read": of["read"],
            "passed": of["kept"],
            "quarantined": {"total": sum(rules.values()), **dict(sorted(rules.items()))},
        }
        for rule in of["table_rules"]:
            statuses[rule["status"]] += 1
            if rule["observed"] is not None:
                observed.setdefault(table, {})[rule["rule"]] = rule["observed"]
    names = ("pass", "warn", "block", "not_applicable")
    return {
        **metrics,
        "quarantine_share": share,
        "table_rules": {name: statuses[name] for name in names},
        "observed": observed,
    }


def _quarantine_share(validated: Validated, broken_lines: int) -> float:
    ingested = sum(of["read"] for of in validated.report["tables"].values())
    return (broken_lines + validated.quarantined()) / max(broken_lines + ingested, 1)


def _too_much(validated: Validated, broken_lines: int, limit: float, refused: Path) -> list[str]:
    """In words, that more than the limit was set aside; empty if it was not."""
    share = _quarantine_share(validated, broken_lines)
    if share <= limit:
        return []
    refusals, lines = refused_lines(refused)
    counts = [f"ingest.{rule}: {count}" for rule, count in sorted(refusals.items())]
    counts += [
        f"{table}.{rule['rule']}: {rule['set_aside']}"
        for table, of in validated.report["tables"].items()
        for rule in of["row_rules"]
        if rule["set_aside"]
    ]
    examples = [*lines, *_examples(validated)]
    return [
        f"{share:.1%} of the log is quarantined, above validate.max_quarantine_share ({limit:.1%}): "
        f"{broken_lines} lines by ingest, {validated.quarantined()} rows by contracts:"
        + "".join(f"\n  {text}" for text in (*counts, "for example:", *examples))
    ]


def _examples(validated: Validated) -> list[str]:
    """The first rows of each rule that contracts set aside."""
    shown: Counter[tuple[str, str]] = Counter()
    found = []
    for row in validated.examples:
        shown[row["table"], row["rule"]] += 1
        if shown[row["table"], row["rule"]] <= EACH:
            found.append(f"{row['file']}:{row['line']}: {row['rule']}: {plain(row['detail'])}")
    return found[:SHOWN]


def _write_page(page: str, path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _keep(page: str, quarantine: Path, folder: Path) -> str:
    """Keep, of a generation that stops, the page and what contracts set aside; say where."""
    _write_page(page, folder / PAGE)
    with atomic_path(folder / quarantine.name) as temporary:
        shutil.copyfile(quarantine, temporary)
    return (
        f"Lines that ingest refused: {_REFUSED}\nRows that contracts set aside: {folder / quarantine.name}\n"
        f"All results: {folder / PAGE}"
    )


def run(io: StageIO) -> Mapping[str, Any]:
    """Entry of the stage: ``data/ingested`` and ``data_contracts`` to ``data/validated``.

    Raises:
        ContractError: a contract is missing or wrong, a table breaks one, or too much is quarantined.
    """
    folder = io.dep("data_contracts")
    contracts = load_contracts(folder)
    if missing := sorted(set(TABLES) - set(contracts)):
        raise ContractError(f"{folder}: no contract for {', '.join(missing)}")
    pinned = read_json(io.dep("inputs/profile.json"))
    logs, settings = read_json(io.dep("inputs/logs.json")), io.settings.validate_
    tables = {table: io.dep(f"data/ingested/{table}.parquet") for table in TABLES}
    cleared = {}
    if logs.get("earlier"):
        cleared["messages"] = beginnings(tables["messages"], io.scratch(), settings.memory_mb)
    source = Source(
        tables=tables,
        cleared=cleared,
        contracts=contracts,
        folder=folder,
        origins=io.dep("data/ingested/origins.parquet"),
        reference=pinned["profile"],
        as_of=newest_date(logs),
    )
    out = io.out("data/validated")
    out.mkdir(parents=True)
    validated = validate(source, out, io.scratch(), settings.memory_mb)
    refused = io.dep(_REFUSED)
    broken_lines = pq.read_metadata(refused).num_rows
    problems = _too_much(validated, broken_lines, settings.max_quarantine_share, refused)
    page = render_page(
        validated,
        reference=source.reference,
        compared_with=pinned["generation"] and f"{pinned['generation']}, the last accepted generation",
        broken_lines=broken_lines,
        problems=problems,
    )
    kept = io.root / STATE / "contracts"
    if problems or validated.report["result"] == "block":
        where = _keep(page, out / f"{QUARANTINE}.parquet", kept)
        broken = validated.problems()
        if broken:
            broken = [f"{folder}: contracts broken:", *broken]
        raise ContractError("\n".join([*problems, *broken, where]))
    shutil.rmtree(kept, ignore_errors=True)  # of an earlier attempt, which is over
    _write_page(page, out / PAGE)
    write_json(validated.report, out / "report.json")
    write_json(validated.profile, out / "profile.json")
    share = _quarantine_share(validated, broken_lines)
    resumed = sum(len(it.rows) for it in cleared.values())
    return {**metrics_of(validated, share), "resumed_conversations": resumed}
