"""What a stage function gets: its settings, its inputs, and places to write, all as dvc.yaml declares them."""

import hashlib
import json
import shutil
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from flywheel_tasks.pipeline.graph import Stage
from flywheel_tasks.pipeline.launcher import configuration
from flywheel_tasks.settings import ScopedSettings, Settings, without_patience
from flywheel_tasks.storage.atomic import replace
from flywheel_tasks.storage.digests import file_digest, tree_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.fast_yaml import load_yaml

STATE = ".flywheel"
# Releases that change what a training checkpoint means.
_PINNED = ("torch", "transformers", "trl", "peft", "accelerate")


def locks_of(root: Path) -> Path:
    """The folder of a workspace's lock files, made if it is not there.

    Args:
        root: the workspace.
    """
    folder = root / STATE / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class UndeclaredPathError(ValueError):
    """A stage used a path that dvc.yaml does not list for it."""


class StageIO:
    """Settings, inputs and outputs of one run of one stage.

    Outputs are written under ``.flywheel/tmp`` and renamed together by :meth:`commit`, so a killed run leaves none.

    Args:
        stage: the stage, from the graph.
        root: the workspace (the folder of dvc.yaml).
        settings: all settings; the stage sees those it declared.
        process: number of the process, where several work on the stage; the outputs of those but 0 are dropped.
    """

    def __init__(self, stage: Stage, root: Path, settings: Settings, process: int = 0) -> None:
        self.stage = stage
        self.root = root
        self.tracker = settings.training.tracker  # where a run is shown changes nothing that it makes
        self.settings: Settings = ScopedSettings(settings, stage.name, frozenset(stage.params))  # type: ignore[assignment]
        self._temporary = root / STATE / "tmp" / (f"{stage.name}.process{process}" if process else stage.name)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def dep(self, path: str) -> Path:
        """An input: a declared path, or one below a declared folder.

        Raises:
            UndeclaredPathError: dvc.yaml does not list it.
            FileNotFoundError: it is not there.
        """
        if not any(path == dep or path.startswith(dep.rstrip("/") + "/") for dep in self.stage.deps):
            raise UndeclaredPathError(
                f"stage {self.stage.name} reads {path}, which is not among its deps in dvc.yaml"
            )
        if not (self.root / path).exists():
            raise FileNotFoundError(f"stage {self.stage.name}: input {path} is missing")
        return self.root / path

    def out(self, path: str) -> Path:
        """Where to write a declared output (a temporary path, renamed when the stage ends).

        Raises:
            UndeclaredPathError: dvc.yaml does not list it.
        """
        if path not in self.stage.outs:
            raise UndeclaredPathError(
                f"stage {self.stage.name} writes {path}, which is not among its outs in dvc.yaml"
            )
        temporary = self._temporary / path
        temporary.parent.mkdir(parents=True, exist_ok=True)
        return temporary

    def scratch(self) -> Path:
        """A folder for what does not fit into memory; gone when the stage ends or starts again."""
        folder = self._temporary / ".scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self) -> None:
        """Rename all outputs into place.

        Raises:
            FileNotFoundError: a declared output was not written; then none is renamed.
        """
        missing = [path for path in self.stage.outs if not (self._temporary / path).exists()]
        if missing:
            raise FileNotFoundError(f"stage {self.stage.name} did not write {', '.join(missing)}")
        for path in self.stage.outs:
            replace(self._temporary / path, self.root / path)
        shutil.rmtree(self._temporary, ignore_errors=True)
        for other in self._temporary.parent.glob(f"{self.stage.name}.process*"):
            shutil.rmtree(other)
        shutil.rmtree(self._resume_home, ignore_errors=True)

    @property
    def run_name(self) -> str:
        """The generation and the stage, for people; the stage alone where no generation is open."""
        path = self.root / "inputs" / "generation.json"
        return f"{read_json(path)['generation']}-{self.stage.name}" if path.exists() else self.stage.name

    @property
    def _resume_home(self) -> Path:
        return self.root / STATE / "resume" / self.stage.name

    def fingerprint(self) -> str:
        """SHA-256 over the contents of all inputs (code included), declared settings, launcher and training releases.

        How patiently a remote policy is asked is no part of it.

        Raises:
            LaunchError: ``compute.launcher`` names a file that is missing.
        """
        return self._fingerprint

    @cached_property  # models are large, and a stage's inputs do not change while it runs
    def _fingerprint(self) -> str:
        params = load_yaml((self.root / "params.yaml").read_text(encoding="utf-8"))
        facts = {
            "deps": {dep: tree_digest(self.root / dep) for dep in sorted(self.stage.deps)},
            "params": {name: without_patience(params.get(name)) for name in sorted(self.stage.params)},
            "releases": {name: version(name) for name in _PINNED},
            "launcher": self._launcher(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _launcher(self) -> list[str]:
        """Digests of the files that say in which processes a training works, and how; none where it does alone.

        A setting names them, so they are no inputs that DVC knows.
        """
        if not self.stage.distributed:
            return []
        config = configuration(self.settings.compute, self.stage.name, self.root)
        if config is None:
            return []
        named = load_yaml(config.read_text(encoding="utf-8")) or {}
        further = (named.get("deepspeed_config") or {}).get("deepspeed_config_file")
        return [file_digest(file) for file in (config, *([self.root / further] if further else []))]

    def resume_dir(self) -> Path:
        """A folder for checkpoints that outlives a kill, but only for these very inputs, settings and code.

        State of any other inputs is removed; :meth:`commit` removes this one.
        """
        folder = self._resume_home / self.fingerprint()
        for other in self._resume_home.glob("*"):
            if other != folder:
                shutil.rmtree(other)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
