"""Which versions of data and code a generation was made from."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from flywheel_tasks.pipeline import dvc_locks
from flywheel_tasks.storage.digests import file_digest
from flywheel_tasks.storage.fast_yaml import load_yaml


def code_version(root: Path) -> str:
    """``git describe`` of the workspace, marked ``-dirty`` when tracked files differ; ``unknown`` outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def data_version(root: Path) -> str:
    """Digest of ``dvc.lock``, which holds the hash of every input and output."""
    return file_digest(root / "dvc.lock")


def _locked_stages(root: Path) -> dict[str, Any]:
    with dvc_locks.settled(root):
        text = (root / "dvc.lock").read_text(encoding="utf-8")
    return dict(load_yaml(text)["stages"])


def dvc_outputs(root: Path) -> dict[str, dict[str, Any]]:
    """The entries of all outputs in ``dvc.lock``, by path: path, md5, size, nfiles."""
    return {
        out["path"]: dict(out) for stage in _locked_stages(root).values() for out in stage.get("outs", [])
    }


def stage_hashes(root: Path, stage: str, kind: Literal["deps", "outs"]) -> dict[str, str]:
    """DVC's hashes of what a stage read or made when it last ran, by path.

    Raises:
        KeyError: ``dvc.lock`` does not know the stage.
    """
    items = _locked_stages(root)[stage].get(kind, ())
    return {item["path"]: item["md5"] for item in items if "md5" in item}


def stage_settings(root: Path, stage: str) -> dict[str, Any]:
    """The settings that a stage last ran with, by section; none where ``dvc.lock`` does not know the stage."""
    return dict(_locked_stages(root).get(stage, {}).get("params", {}).get("params.yaml", {}))


def others(root: Path, made: Mapping[str, str]) -> list[str]:
    """Paths that ``dvc.lock`` does not have, or has with another hash, sorted.

    Args:
        root: the workspace.
        made: DVC's hashes, by path.
    """
    if not made:
        return []
    here = dvc_outputs(root) if (root / "dvc.lock").exists() else {}
    return sorted(path for path, md5 in made.items() if here.get(path, {}).get("md5") != md5)


def dvc_output(root: Path, path: str) -> dict[str, Any]:
    """The entry of one output in ``dvc.lock``.

    Raises:
        KeyError: no stage there has that output.
    """
    outputs = dvc_outputs(root)
    if path not in outputs:
        raise KeyError(f"dvc.lock has no output {path}")
    return outputs[path]
