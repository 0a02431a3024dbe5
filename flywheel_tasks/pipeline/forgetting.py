"""What must hold where a user is forgotten: the key is that of the workspace's tables, and nobody writes them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from flywheel_tasks.pipeline import dvc_locks
from flywheel_tasks.pipeline.generation import newest_key
from flywheel_tasks.pipeline.generation_ids import INPUTS, BusyError
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.leftovers import living_dvc
from flywheel_tasks.pipeline.stage_io import locks_of
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


@contextmanager
def nobody_else(root: Path) -> Iterator[None]:
    """Keep all who write tables out of the workspace: DVC, stages, and whoever brings another generation.

    A stage that has read a user's rows before they go would write them back.

    Args:
        root: the workspace.

    Raises:
        BusyError: one of them is here.
    """
    locks = locks_of(root)
    with ExitStack() as stack:
        for name in ("generation", *load_graph(root / "dvc.yaml")):
            try:
                stack.enter_context(FileLock(locks / f"{name}.lock", timeout=0))
            except Timeout as error:
                at_work = (
                    "another generation is brought" if name == "generation" else f"stage {name} is at work"
                )
                raise _busy(root, at_work) from error
        if not stack.enter_context(dvc_locks.alone(root)) or living_dvc(root):
            raise _busy(root, "DVC is at work")
        yield


def _busy(root: Path, why: str) -> BusyError:
    return BusyError(
        f"{root}: {why}, and would write the user back: nothing was changed; forget them when it is done"
    )
