"""Counters in Prometheus' text format, added up over all workers of a gateway. They hold no user's text or id."""

import bisect
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.serving.workers import lives, process_name
from flywheel_tasks.storage.atomic import atomic_path

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_KINDS = {
    "flywheel_requests_total": ("counter", "Requests by path and status."),
    "flywheel_request_seconds": ("histogram", "Time from a request to its last byte, by path."),
    "flywheel_model_seconds": ("histogram", "Time a model took for a whole reply, by model."),
    "flywheel_replies_total": ("counter", "Replies by the model that wrote them and how they ended."),
    "flywheel_model_failures_total": ("counter", "Times that a model did not answer, by model and reason."),
    "flywheel_fallbacks_total": (
        "counter",
        "Requests that the champion answered in place of an arm's model, by that model and reason.",
    ),
    "flywheel_safety_blocks_total": ("counter", "Texts refused by the safety check, by side and category."),
    "flywheel_signals_total": ("counter", "Signals by name."),
    "flywheel_rate_limited_total": ("counter", "Requests refused because their user made too many."),
    "flywheel_events_written_total": ("counter", "Log events made durable."),
    "flywheel_commits_total": ("counter", "Syncs of a log file."),
    "flywheel_in_flight": ("gauge", "Requests being served."),
    "flywheel_champion_overdue": (
        "gauge",
        "1 while another champion than the registry's is served, in this worker.",
    ),
    "flywheel_experiments_unserved": ("gauge", "Running A/B tests that are not served, in this worker."),
    "flywheel_model_ready": ("gauge", "1 for a model that can be asked, in this worker."),
}
_Series = dict[str, Any]  # label text -> number, or [counts by bound, sum, count]


def _labels(labels: Mapping[str, str | None]) -> str:
    pairs = []
    for name, value in sorted(labels.items()):
        safe = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        pairs.append(f'{name}="{safe}"')
    return ",".join(pairs)


class Metrics:
    """One worker's counters.

    Args:
        folder: in which the workers of a gateway leave theirs for each other.
        worker: this one's name, of :func:`flywheel_tasks.serving.workers.process_name`.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self._file, self._worker = folder / f"{worker}.json", worker
        self._counts: dict[str, _Series] = defaultdict(dict)

    def add(self, name: str, amount: float = 1, **labels: str | None) -> None:
        """Add to a counter."""
        series, key = self._counts[name], _labels(labels)
        series[key] = series.get(key, 0) + amount

    def set(self, name: str, value: float, **labels: str | None) -> None:
        """Set a gauge, or a counter that is kept elsewhere."""
        if _KINDS[name][0] == "gauge":
            labels["worker"] = self._worker
        self._counts[name][_labels(labels)] = value

    def set_each(self, name: str, label: str, values: Mapping[str, float]) -> None:
        """Set a gauge for each value of a label; for all others it ends."""
        self._counts[name] = {
            _labels({label: one, "worker": self._worker}): value for one, value in values.items()
        }

    def observe(self, name: str, seconds: float, **labels: str | None) -> None:
        """Add a duration to a histogram."""
        series, key = self._counts[name], _labels(labels)
        found = series.setdefault(key, [[0] * (len(_SECONDS) + 1), 0.0, 0])
        found[0][bisect.bisect_left(_SECONDS, seconds)] += 1
        found[1] += seconds
        found[2] += 1

    def publish(self) -> None:
        """Leave the counters for the other workers."""
        with atomic_path(self._file) as temporary:
            temporary.write_bytes(orjson.dumps(self._counts))

    def _all(self) -> list[Mapping[str, _Series]]:
        """What all workers counted, and what is so now of those that live."""
        found: list[Mapping[str, _Series]] = [self._counts]
        for path in sorted(self._file.parent.glob("*.json")):
            if path == self._file or path.name.startswith("."):
                continue
            counts, alive = orjson.loads(path.read_bytes()), lives(path.stem)
            found.append({name: of for name, of in counts.items() if alive or _KINDS[name][0] != "gauge"})
        return found

    def render(self) -> str:
        """The counters of all workers."""
        lines = []
        everyone = self._all()
        for name, (kind, text) in _KINDS.items():
            total: dict[str, Any] = {}
            for counts in everyone:
                for key, value in counts.get(name, {}).items():
                    total[key] = value if key not in total else _sum(total[key], value)
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            for key, value in sorted(total.items()):
                lines += _histogram(name, key, value) if kind == "histogram" else [_line(name, key, value)]
        return "\n".join(lines) + "\n"


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, list):
        counts = [a + b for a, b in zip(one[0], other[0], strict=True)]
        return [counts, one[1] + other[1], one[2] + other[2]]
    return one + other


def _line(name: str, labels: str, value: float) -> str:
    return f"{name}{{{labels}}} {value}" if labels else f"{name} {value}"


def _histogram(name: str, labels: str, value: Any) -> list[str]:
    counts, total, number = value
    comma = "," if labels else ""
    lines, below = [], 0
    for bound, count in zip((*map(str, _SECONDS), "+Inf"), counts, strict=True):
        below += count
        lines.append(_line(f"{name}_bucket", f'{labels}{comma}le="{bound}"', below))
    return [*lines, _line(f"{name}_sum", labels, total), _line(f"{name}_count", labels, number)]


def metrics_folder(state: Path, gateway: int) -> Path:
    """Where the workers of one gateway leave their counters; those of gateways that ended are removed.

    Args:
        state: the gateway's own folder; several workers may ask at once.
        gateway: process id of the gateway's parent process.
    """
    home = state / "metrics"
    for old in home.glob("*"):
        if not lives(old.name):
            shutil.rmtree(old, ignore_errors=True)  # another worker may be at it, too
    folder = home / process_name(gateway)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
