"""Reads ``dvc.yaml``: stages, their inputs, outputs and settings, and the edges between them.

Only YAML is read and nothing heavy is imported, because Airflow parses its DAGs with this module.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel_tasks.storage.fast_yaml import load_yaml


class GraphError(ValueError):
    """``dvc.yaml`` cannot be used; the message names the file, the stage and what is wrong."""


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml.

    Attributes:
        name: its name.
        deps: paths it reads.
        outs: paths it writes, metrics and plots included.
        metrics: the metrics file among ``outs``, if any.
        plots: curve files among ``outs``.
        params: sections of params.yaml it reads.
        entry: ``module:function`` that does the work (``meta.run``).
        queue: ``cpu`` or ``gpu`` (``meta.queue``).
        distributed: whether several processes may work on it (``meta.distributed``).
        desc: one line for people.
        private: why its data never leave and are not scanned (``meta.private``); None if they may leave.
        unchecked: why its tables are not held to their contracts when it ends (``meta.unchecked``); None if they are.
        upstream: stages whose outputs it reads, sorted.
    """

    name: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    metrics: str | None
    plots: tuple[str, ...]
    params: tuple[str, ...]
    entry: str
    queue: str
    desc: str
    private: str | None = None
    unchecked: str | None = None
    distributed: bool = False
    upstream: tuple[str, ...] = ()

    @property
    def outgoing(self) -> tuple[str, ...]:
        """Outputs that may leave for annotation or training: the outgoing scan looks at them."""
        if self.private is not None:
            return ()
        return tuple(out for out in self.outs if out.startswith("data/"))

    @property
    def checked(self) -> tuple[str, ...]:
        """Outputs that may hold tables with a contract, which are checked before they appear."""
        if self.unchecked is not None:
            return ()
        return tuple(out for out in self.outs if out.startswith("data/"))


def _paths(entries: Iterable[Any] | None) -> tuple[str, ...]:
    """Paths of a ``deps``/``outs``/``metrics``/``plots`` list, whose items are strings or one-key maps."""
    return tuple(item if isinstance(item, str) else next(iter(item)) for item in entries or ())


def _stage(name: str, body: dict[str, Any], path: Path) -> Stage:
    meta = body.get("meta") or {}
    if "run" not in meta:
        raise GraphError(f"{path}: stage {name}: meta.run (module:function) is missing")
    metrics = _paths(body.get("metrics"))
    if len(metrics) > 1:
        raise GraphError(f"{path}: stage {name}: more than one metrics file")
    plots = _paths(body.get("plots"))
    return Stage(
        name=name,
        deps=_paths(body.get("deps")),
        outs=_paths(body.get("outs")) + metrics + plots,
        metrics=metrics[0] if metrics else None,
        plots=plots,
        params=_paths(body.get("params")),
        entry=str(meta["run"]),
        queue=str(meta.get("queue", "cpu")),
        desc=str(body.get("desc", "")),
        private=meta.get("private"),
        unchecked=meta.get("unchecked"),
        distributed=bool(meta.get("distributed", False)),
    )


def _covers(out: str, dep: str) -> bool:
    return dep == out or dep.startswith(out.rstrip("/") + "/")


def load_graph(path: Path) -> dict[str, Stage]:
    """Read dvc.yaml.

    Args:
        path: the file.

    Returns:
        stages by name, in topological order; ties in the file's order.

    Raises:
        GraphError: a stage lacks ``meta.run``, two stages write one path, a value is templated, or there is a cycle.
    """
    text = path.read_text(encoding="utf-8")
    if "${" in text:
        raise GraphError(f"{path}: templated values are not supported")
    bodies = (load_yaml(text) or {}).get("stages") or {}
    stages = {name: _stage(name, body, path) for name, body in bodies.items()}
    writers: dict[str, str] = {}
    for stage in stages.values():
        for out in stage.outs:
            if out in writers:
                raise GraphError(f"{path}: {out} is written by both {writers[out]} and {stage.name}")
            writers[out] = stage.name
    upstream = {
        stage.name: tuple(
            sorted({writer for dep in stage.deps for out, writer in writers.items() if _covers(out, dep)})
        )
        for stage in stages.values()
    }
    ordered: dict[str, Stage] = {}
    while len(ordered) < len(stages):
        ready = [n for n in stages if n not in ordered and all(u in ordered for u in upstream[n])]
        if not ready:
            raise GraphError(f"{path}: a cycle among {', '.join(n for n in stages if n not in ordered)}")
        name = ready[0]
        ordered[name] = Stage(**{**stages[name].__dict__, "upstream": upstream[name]})
    return ordered


def ancestors(graph: dict[str, Stage], name: str) -> list[str]:
    """All stages that ``name`` needs, in topological order, without itself."""
    needed: set[str] = set()
    stack = [name]
    while stack:
        for parent in graph[stack.pop()].upstream:
            if parent not in needed:
                needed.add(parent)
                stack.append(parent)
    return [n for n in graph if n in needed]


def project_sources(graph: Mapping[str, Stage]) -> list[str]:
    """The project's own files and folders that stages read: what a workspace of its own must be given.

    Args:
        graph: stages by name.

    Returns:
        first parts of the paths that stages depend on, without those that stages make and without ``inputs``,
        which the opening of a generation writes.
    """
    read = {dep.split("/", 1)[0] for stage in graph.values() for dep in stage.deps}
    made = {out.split("/", 1)[0] for stage in graph.values() for out in stage.outs}
    return sorted(read - made - {"inputs"})
