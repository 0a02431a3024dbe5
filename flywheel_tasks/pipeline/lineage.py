"""Which versions of data and code a generation was made from."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from flywheel_tasks.pipeline import dvc_locks
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.digests import file_digest
from flywheel_tasks.storage.fast_yaml import load_yaml

Part = Mapping[str, Any]  # what dvc.lock says of a stage: its command, and what it read and made, with hashes


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
    return hashes(_locked_stages(root)[stage], kind)


def stage_settings(root: Path, stage: str) -> dict[str, Any]:
    """The settings that a stage last ran with, by section; none where ``dvc.lock`` does not know the stage."""
    return dict(_as_dvc_reads(root).get(stage, {}).get("params", {}).get("params.yaml", {}))


def hashes(part: Part, kind: Literal["deps", "outs"]) -> dict[str, str]:
    """DVC's hashes of what a stage read or made, by path."""
    return {item["path"]: item["md5"] for item in part.get(kind, ()) if "md5" in item}


def outputs(made: Mapping[str, Part]) -> dict[str, str]:
    """DVC's hashes of what stages made, by path."""
    return {path: md5 for part in made.values() for path, md5 in hashes(part, "outs").items()}


def others(root: Path, made: Mapping[str, Part]) -> list[str]:
    """Outputs that ``dvc.lock`` does not have, or has with another hash, sorted.

    Args:
        root: the workspace.
        made: what ``dvc.lock`` said of stages where they ran, by name.
    """
    if not made:
        return []
    here = dvc_outputs(root) if (root / "dvc.lock").exists() else {}
    return sorted(path for path, md5 in outputs(made).items() if here.get(path, {}).get("md5") != md5)


def part_of(root: Path, stage: str) -> dict[str, Any]:
    """What ``dvc.lock`` says of a stage, for :func:`take` in another workspace.

    Raises:
        KeyError: it does not know the stage.
    """
    return dict(_as_dvc_reads(root)[stage])


def _as_dvc_reads(root: Path) -> dict[str, Any]:
    """The stages of ``dvc.lock`` with numbers as DVC reads them: its 8e-05 is text to YAML 1.1."""
    from dvc.utils import serialize

    with dvc_locks.settled(root):
        return dict(serialize.load_yaml(root / "dvc.lock")["stages"])


def take(root: Path, made: Mapping[str, Part]) -> None:
    """Have ``dvc.lock`` say of stages what it said where they ran, once what they made is here.

    ``dvc commit`` would say that it was made of what lies here, and so keep it in the run cache.

    Args:
        root: the workspace.
        made: what it said, by the stages' names.
    """
    from dvc.utils import serialize

    path = root / "dvc.lock"
    with dvc_locks.settled(root, write=True):
        document: dict[str, Any] = serialize.load_yaml(path) if path.exists() else {"schema": "2.0"}
        document["stages"] = {**document.get("stages", {}), **made}
        with atomic_path(path) as temporary:
            serialize.dump_yaml(temporary, document)


def dvc_output(root: Path, path: str) -> dict[str, Any]:
    """The entry of one output in ``dvc.lock``.

    Raises:
        KeyError: no stage there has that output.
    """
    outputs = dvc_outputs(root)
    if path not in outputs:
        raise KeyError(f"dvc.lock has no output {path}")
    return outputs[path]
