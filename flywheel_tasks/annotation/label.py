"""Stage label: labels of the batch, from people's files or from the demo's simulated annotators.

The simulated annotators run as a process of their own, because nothing but the command line may know them.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel_tasks.annotation.delivery import PIN, read_pinned
from flywheel_tasks.annotation.progress import progress, require_enough
from flywheel_tasks.annotation.reading import Reading, message_of, read_files, strict
from flywheel_tasks.annotation.tasks import AnnotationError
from flywheel_tasks.pipeline.process import die_with_parent
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.storage.documents import read_json, read_jsonl, write_jsonl

# What people do in the normal course of work, or the detector sees where there is none; all other rules count towards
# label.max_quarantine_share.
ORDINARY = frozenset({"draft", "cancelled", "duplicate", "identifier"})


def _simulate(batch: Path, out: Path, seed: int) -> None:
    command = [sys.executable, "-m", "flywheel_tasks.cli", "simulate", "label"]
    command += ["--batch", str(batch), "--out", str(out), "--seed", str(seed)]
    done = subprocess.run(command, check=False, preexec_fn=die_with_parent)
    if done.returncode:
        raise AnnotationError(f"{batch}: flywheel simulate label ended with exit code {done.returncode}")


def _of_people(io: StageIO, tasks: Sequence[Mapping[str, Any]]) -> Reading:
    """Labels of the pinned files, if they are enough and not too many of them are broken."""
    settings, pin = io.settings.label, io.dep(PIN)
    document = read_json(pin)
    if document["annotator"] != settings.annotator:
        raise AnnotationError(
            f"{PIN}: pinned for label.annotator {document['annotator']}, the setting is {settings.annotator}; "
            "pin the labels again: flywheel annotation pin"
        )
    reading = read_pinned(pin, io.root, tasks, io.settings.privacy)
    broken = [row for row in reading.quarantined if row["rule"] not in ORDINARY]
    if broken and len(broken) > settings.max_quarantine_share * reading.read:
        raise AnnotationError(
            f"{len(broken)} of {reading.read} labels break a rule, label.max_quarantine_share is "
            f"{settings.max_quarantine_share}; the first: " + "; ".join(map(message_of, broken[:5]))
        )
    require_enough(tasks, reading.labels, settings.min_done, document["location"])
    return reading


def run(io: StageIO) -> Mapping[str, Any]:
    """Get labels, check them, write ``labels.jsonl`` and ``quarantine.jsonl`` in ``data/annotation``.

    Returns:
        labels read, used and quarantined (by rule), annotators, simulated labels, progress by purpose.

    Raises:
        LabelsNotReadyError: people have not labelled enough yet.
        AnnotationError: too many labels break a rule, or the simulated annotators failed.
    """
    batch, out = io.dep("data/annotation/batch.jsonl"), io.out("data/annotation/labels.jsonl")
    tasks = list(read_jsonl(batch))
    if io.settings.label.annotator == "simulated":
        _simulate(batch, out, io.settings.seed)
        reading = read_files([(str(out), out)], tasks, io.settings.privacy)
        strict(reading)
    else:
        reading = _of_people(io, tasks)
        if any(label["simulated"] for label in reading.labels):
            raise AnnotationError(
                f"{PIN}: labels that say simulated, but label.annotator is {io.settings.label.annotator}"
            )
    labels = reading.labels
    write_jsonl(labels, out)
    write_jsonl(reading.quarantined, io.out("data/annotation/quarantine.jsonl"))
    return {
        "labels": len(labels),
        "read": reading.read,
        "quarantined": dict(sorted(Counter(row["rule"] for row in reading.quarantined).items())),
        "quarantined_total": len(reading.quarantined),
        "simulated": sum(label["simulated"] for label in labels),
        "annotators": len({label["annotator"] for label in labels}),
        "rewrites": sum(label["rewrite"] is not None for label in labels),
        "tasks": progress(tasks, labels),
    }
