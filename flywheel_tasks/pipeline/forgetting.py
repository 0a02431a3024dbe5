"""What must hold before a user is forgotten in a workspace: the key is the one that its tables were made with."""

from pathlib import Path

from flywheel_tasks.pipeline.generation import newest_key
from flywheel_tasks.pipeline.generation_ids import INPUTS
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry import open_registry
from flywheel_tasks.traffic.identity import DEMO_FINGERPRINT, KEY, KEY_FILE, IdentityError, UserKey


def _recorded(root: Path) -> tuple[str, str] | None:
    """Where it is written which key the tables here were made with, and its fingerprint."""
    path = root / INPUTS / "users.json"
    if path.exists():
        return str(path), str(read_json(path)["key"])
    return newest_key(open_registry(load_settings(root / "params.yaml").registry.location, root))


def check_key(root: Path, key: UserKey) -> None:
    """See that a key is the one by which users are known here: by another one nobody would be found.

    Where nothing was made yet, any key will do.

    Args:
        root: the workspace.
        key: of the environment.

    Raises:
        IdentityError: it is another one.
    """
    recorded = _recorded(root)
    if recorded is None or recorded[1] == key.fingerprint:
        return
    where, fingerprint = recorded
    what = f"set {KEY} or {KEY_FILE} to that key"
    if fingerprint == DEMO_FINGERPRINT:
        what = (
            f"that is the demo's published key. For its simulated users unset {KEY} and {KEY_FILE}; for users of your "
            "own logs open a generation of them first (flywheel generation open)"
        )
    raise IdentityError(
        f"{where} hashes user ids with {fingerprint}, but the key here is {key.fingerprint}: nobody would be "
        f"forgotten, and nothing was changed; {what}"
    )
