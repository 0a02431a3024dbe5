"""What ``flywheel forget`` does not reach: said at its end, with the command or the way for each."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


def keys_of(root: Path, settings: Any, users: Collection[str]) -> dict[str, str]:
    """The API keys that hold a raw id, and which: of what a key's holder says, new lines would come."""
    from flywheel_tasks.serving.keys import KeysError, keys_path, read_keys

    try:
        keys = read_keys(keys_path(root / settings.serve.state))
    except KeysError as error:
        _log.warning("whether an API key names a user cannot be told: %s", error)
        return {}
    live = [key for key in keys if key.revoked is None]
    return {key.id: name for key in live for name in (key.name, key.user_id) if name in users and name}


def not_reached(
    root: Path,
    settings: Any,
    hashed: bool,
    keys: Sequence[str],
    remotes: Sequence[str],
    raw_logs: bool,
    studio: str | None,
    models: bool,
) -> list[tuple[str, str]]:
    """What is not reached from here, and the command or the way for each.

    Args:
        root: the workspace.
        settings: of it.
        hashed: whether only the hashes are known.
        keys: API keys that name one of the users.
        remotes: of DVC, that were not looked at.
        raw_logs: whether the raw logs were rewritten.
        studio: why Label Studio still holds their tasks, if it does.
        models: whether models were trained on their data.
    """
    from flywheel_tasks.serving.journal import unsealed
    from flywheel_tasks.storage.urls import shown

    rows = [(f"DVC remote {name}", "flywheel forget USER --remotes") for name in remotes]
    if not raw_logs:
        rows.append(("raw logs", "flywheel forget USER --raw-logs"))
    elif unsealed(root / settings.serve.logs).open:
        again = f"flywheel forget USER --raw-logs, again in {settings.serve.segment_seconds:g} seconds"
        rows.append(("what a running gateway has logged since its last segment", again))
    if hashed:
        rows.append(
            (
                "the gateway's digests of who said what",
                f"flywheel forget with the raw ids; they go after {settings.serve.turn_days} days anyway",
            )
        )
    if settings.logs.in_a_warehouse:
        rows.append(("the warehouse", "delete their rows there; the next generation extracts it anew"))
    if "://" in settings.ab.events:
        rows.append((f"events for A/B tests ({shown(settings.ab.events)})", "delete their rows there"))
    for key in keys:
        rows.append(
            (f"API key {key}, which names a user and lets them go on", f"flywheel serve keys revoke {key}")
        )
    if settings.label.annotator != "simulated":
        rows.append(("exports and previews of tasks", "delete the tasks named above there"))
    if studio is not None:
        again = "flywheel annotation delete with the tasks named above, then flywheel annotation pull"
        rows.append((f"Label Studio, which gives them out again with every pull ({studio})", again))
    rows.append(
        ("examples in questions that Airflow asked", "delete those runs in its UI, or airflow db clean")
    )
    rows.append(("other checkouts", "flywheel forget USER, in each"))
    if models:
        retire = "flywheel rollback --champion --to GENERATION --by NAME --reason WHY"
        decide = (
            f"people decide: leave them, or retire them ({retire}, to one not named; the next begins from it)"
        )
        rows.append(("models named above", decide))
    rows.append(("backups, earlier versions in a versioned bucket of the DVC remote", "by their own tools"))
    return rows
