"""What a killed DVC leaves behind, told apart from what a living one holds.

DVC clears a lock whose process is gone, but not one whose process id was given to another program since (nearly
always so in a container), nor a lock file or ``dvc.lock`` cut short by a kill. Nothing of a living DVC is touched: one
that the runner started, here or in another container, holds a lock of the kernel
(:mod:`flywheel_tasks.pipeline.dvc_locks`); one that a person started is known by its process, where that can be seen.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

import psutil
import yaml

from flywheel_tasks.pipeline import dvc_locks
from flywheel_tasks.storage.fast_yaml import load_yaml

logger = logging.getLogger(__name__)


def _workspace_of(folder: Path) -> Path | None:
    """The workspace that DVC works on in a folder: the nearest above it with a ``.dvc``, as DVC itself looks for it."""
    return next((place for place in (folder, *folder.parents) if (place / ".dvc").is_dir()), None)


def _is_dvc_of(root: Path, pid: int) -> bool:
    """Whether a process is a living DVC that works on ``root``, not on a campaign's workspace below it."""
    try:
        process = psutil.Process(pid)
        words = process.cmdline()
        return (
            process.status() != psutil.STATUS_ZOMBIE
            and any(Path(word).name == "dvc" or word == "dvc" for word in words[:4])
            and _workspace_of(Path(process.cwd())) == root.resolve()
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def living_dvc(root: Path) -> list[int]:
    """Process ids of every DVC that works on the workspace."""
    return sorted(pid for pid in psutil.pids() if pid != os.getpid() and _is_dvc_of(root, pid))


def _without_dead(lock: dict[str, Any], root: Path) -> tuple[dict[str, Any], set[int]]:
    dead: set[int] = set()

    def alive(info: dict[str, Any]) -> bool:
        pid = int(info["pid"])
        if _is_dvc_of(root, pid):
            return True
        dead.add(pid)
        return False

    write = {path: info for path, info in lock.get("write", {}).items() if info and alive(info)}
    read = {path: [i for i in infos if alive(i)] for path, infos in lock.get("read", {}).items()}
    return {"write": write, "read": {path: infos for path, infos in read.items() if infos}}, dead


def clear_rwlock(root: Path) -> None:
    """Remove entries of dead owners from DVC's read-write lock, or the whole file if a kill cut it short."""
    path = root / ".dvc" / "tmp" / "rwlock"
    if not path.exists():
        return
    if living_dvc(root):
        return  # DVC rewrites the file under its own lock; a race with it is worse than a wait
    text = path.read_text(encoding="utf-8")
    try:
        lock = json.loads(text)
        cleaned, dead = _without_dead(lock, root)
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
        logger.warning("%s was cut short by a kill; no DVC is running here, so it is removed", path)
        path.unlink()
        return
    if dead:
        logger.warning("%s named processes that are not DVC any more (%s); released", path, sorted(dead))
        path.write_text(json.dumps(cleaned), encoding="utf-8")


def clear_broken_lock_file(root: Path) -> None:
    """Put aside a ``dvc.lock`` that is not whole; DVC's run cache restores the finished stages."""
    path = root / "dvc.lock"
    if not path.exists():
        return
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
        whole = isinstance(content, dict) and isinstance(content.get("stages"), dict)
    except (yaml.YAMLError, UnicodeDecodeError):
        whole = False
    if not whole and not living_dvc(root):
        aside = path.with_name("dvc.lock.broken")
        logger.warning(
            "%s is not whole; put aside as %s, finished stages come from the run cache", path, aside.name
        )
        path.replace(aside)


def clear_leftovers(root: Path) -> None:
    """Both of the above, unless a DVC is at work; called before every DVC command, and before ``dvc.lock`` is read."""
    with dvc_locks.alone(root) as alone:
        if alone:
            clear_rwlock(root)
            clear_broken_lock_file(root)
