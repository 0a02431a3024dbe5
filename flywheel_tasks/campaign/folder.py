"""A campaign's folder: a workspace of its own, so that no state of a user's is touched, and its results.

```
workspace/   code, dvc.yaml, params.yaml, registry, logs, DVC: what `flywheel generation run` works in
params.yaml, gate_rules.yaml   the user's, as they were when it began; plan.json: its section campaign
cache.json   where DVC's cache is
results/     generations/<id>.json, panels/<digest>.jsonl, counterfactuals/<id>/, campaign.{json,md,html}
```
The code is copied, so that a campaign that runs for hours is of one version, whatever is edited meanwhile. Nothing in
``results`` is read by a stage.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flywheel_tasks.evaluation.gate_rules import FILE as GATE_RULES
from flywheel_tasks.evaluation.gate_rules import load_rules
from flywheel_tasks.pipeline import runner
from flywheel_tasks.pipeline.graph import load_graph, project_sources
from flywheel_tasks.settings import Settings, load_settings
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.digests import bytes_digest, file_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.fast_yaml import load_yaml

# Beside what dvc.yaml's stages read: the graph, what DVC leaves out, and what compute.launcher may name.
_BESIDE = ("dvc.yaml", ".dvcignore", "launchers")
OPEN_CEILING = 1.01  # no win rate is as high
SHARERS = "campaigns"  # folder in DVC's cache that names the campaigns that share it
_OURS = {"workspace", "results", "ablations", "params.yaml", GATE_RULES, ".lock", "cache.json"}
# What makes a campaign one: simulated people, answers by policy, state of its own.
_ALWAYS = {
    "logs.source": "simulated",
    "logs.location": "data/logs",
    "label.annotator": "simulated",
    "registry.location": "registry",
    "approval.local": "policy",
    "ab.events": "logs",
}


class CampaignError(ValueError):
    """A campaign cannot begin or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Folder:
    """Where everything of one campaign is.

    Attributes:
        home: its folder.
    """

    home: Path

    @property
    def workspace(self) -> Path:
        """Where generations are made."""
        return self.home / "workspace"

    @property
    def plan(self) -> Path:
        """What it was begun with; there once the workspace is whole."""
        return self.home / "plan.json"

    @property
    def results(self) -> Path:
        """What came of it."""
        return self.home / "results"

    def generation(self, name: str) -> Path:
        """The record of a generation that is over."""
        return self.results / "generations" / f"{name}.json"

    def panel(self, digest: str) -> Path:
        """What the panel said of a model."""
        return self.results / "panels" / f"{digest.removeprefix('sha256:')}.jsonl"

    def counterfactual(self, name: str) -> Path:
        """The test of a model that was not launched."""
        return self.results / "counterfactuals" / name

    @property
    def cache(self) -> Path | None:
        """DVC's cache, once :func:`share` noted it."""
        note = self.home / "cache.json"
        cache = Path(read_json(note)["cache"]) if note.exists() else None
        return cache if cache is not None and (cache / SHARERS).is_dir() else None

    @property
    def seconds(self) -> Path:
        """How long each step took, by generation."""
        return self.results / "seconds.json"

    @property
    def now(self) -> Path:
        """What it is doing."""
        return self.results / "now.json"


def override(document: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Set values by dotted name.

    Raises:
        CampaignError: there is no such setting.
    """
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        section = document
        for key in path:
            section = section.get(key) if isinstance(section, dict) else None  # type: ignore[assignment]
        if not isinstance(section, dict) or last not in section:
            raise CampaignError(f"params.yaml has no {dotted}, which the campaign wants to change")
        section[last] = value


def _write_yaml(document: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(document, sort_keys=False, width=130), encoding="utf-8")


def write_settings(folder: Folder, *changes: Mapping[str, Any]) -> Settings:
    """Write the workspace's params.yaml: the user's settings, then each set of changes; the same again is no change.

    Raises:
        CampaignError: a change names no setting.
        SettingsError: a value is not possible.
    """
    document = load_yaml((folder.home / "params.yaml").read_text(encoding="utf-8"))
    for change in (*changes, _ALWAYS):
        override(document, change)
    path = folder.workspace / "params.yaml"
    _write_yaml(document, path.with_name("params.next.yaml"))
    settings = load_settings(path.with_name("params.next.yaml"))
    written = path.with_name("params.next.yaml").read_bytes()
    if path.exists() and path.read_bytes() == written:
        path.with_name("params.next.yaml").unlink()
    else:
        path.with_name("params.next.yaml").replace(path)
    return settings


def _code(root: Path) -> list[str]:
    """Files and folders of a project that a campaign copies."""
    return [*_BESIDE, *project_sources(load_graph(root / "dvc.yaml"))]


def _digests(root: Path) -> dict[str, str]:
    """Digest of each file of the code, by name; the gate's rules and params.yaml, which campaigns change, are none."""
    names = [name for name in _code(root) if name not in ("params.yaml", GATE_RULES)]
    paths = [
        path
        for name in names
        for path in ((root / name).rglob("*") if (root / name).is_dir() else [root / name])
    ]
    return {
        path.relative_to(root).as_posix(): file_digest(path)
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }


def differences(folder: Folder, other: Folder) -> list[str]:
    """What two campaigns were begun with that is not the same, their sections ``campaign`` aside.

    Returns:
        of ``params.yaml``, ``gate_rules.yaml`` and ``code``.
    """
    found = []
    for name in ("params.yaml", GATE_RULES):
        one, two = (
            load_yaml((home / name).read_text(encoding="utf-8")) for home in (folder.home, other.home)
        )
        if {**one, "campaign": None} != {**two, "campaign": None}:
            found.append(name)
    return found + (["code"] if _digests(folder.workspace) != _digests(other.workspace) else [])


def _copy(source: Path, folder: Folder) -> None:
    root = folder.workspace
    root.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in _code(source):
        if (source / name).is_dir():
            shutil.copytree(source / name, root / name, ignore=ignore)
        else:
            shutil.copy(source / name, root / name)
    if (source / ".flywheel/wheels").is_dir():  # what was downloaded once need not come again
        shutil.copytree(source / ".flywheel/wheels", root / ".flywheel/wheels", copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _open_ceiling(path: Path) -> None:
    """Take the limit on a high win rate out of a workspace's gate rules."""
    document = load_yaml(path.read_text(encoding="utf-8"))
    document["overfitting"]["high"] = OPEN_CEILING
    _write_yaml(document, path)
    load_rules(path)


def create(
    folder: Folder, source: Path, plan: Mapping[str, Any], cache: Path, settings: Path | None = None
) -> None:
    """Make a campaign's workspace, or return to one that was begun with the same plan.

    Args:
        folder: of the campaign.
        source: the project, whose code and settings are copied.
        settings: where params.yaml and the gate's rules are copied from; by default the project.
        plan: section ``campaign`` of the settings, as JSON.
        cache: DVC's folder, which campaigns may share: equal stages are then restored, not run again.

    Raises:
        CampaignError: the folder holds something else, or a campaign with another plan.
    """
    if folder.plan.exists():
        if read_json(folder.plan) != dict(plan):
            raise CampaignError(
                f"{folder.home} was begun with other settings of the section campaign; they stay as they were. "
                "Go on with --as-begun, or choose another --folder"
            )
        return
    if folder.home.exists() and {item.name for item in folder.home.iterdir()} - _OURS:
        raise CampaignError(f"{folder.home} holds something that is no campaign; choose another --folder")
    shutil.rmtree(folder.workspace, ignore_errors=True)  # a kill left it half made
    folder.home.mkdir(parents=True, exist_ok=True)
    for name in ("params.yaml", GATE_RULES):
        shutil.copy((settings or source) / name, folder.home / name)
    _copy(source, folder)
    if not plan["ceiling"]:
        _open_ceiling(folder.workspace / GATE_RULES)
    for change in (
        plan["overoptimise"],
        plan["without_ceiling"],
        *plan["ablations"].values(),
        {},
    ):  # a wrong one is an error now
        write_settings(folder, plan["overlay"], change)
    runner.dvc(folder.workspace, "init", "--no-scm", "--quiet", quiet=True)
    core = "[core]\n    no_scm = true\n    analytics = false\n"
    config = f'{core}[cache]\n    dir = "{cache.resolve()}"\n    type = "reflink,hardlink,copy"\n'
    (folder.workspace / ".dvc/config").write_text(config, encoding="utf-8")
    share(folder, cache.resolve())
    write_json(plan, folder.plan)


def share(folder: Folder, cache: Path) -> None:
    """Note in DVC's cache that a campaign uses it, so that no other takes its models away."""
    home = str(folder.home.resolve())
    write_json({"cache": str(cache)}, folder.home / "cache.json")
    name = bytes_digest(home.encode()).removeprefix("sha256:")[:16]
    write_json({"home": home}, cache / SHARERS / f"{name}.json")
