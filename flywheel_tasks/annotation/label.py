"""Stage label: labels of the batch, from people's files or from the demo's simulated annotators.

The simulated annotators run as a process of their own, because nothing but the command line may know them.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flywheel_tasks.annotation.checking import read_labels
from flywheel_tasks.annotation.tasks import SPLIT_OF, AnnotationError
from flywheel_tasks.pipeline.stage import die_with_parent
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.storage.documents import read_jsonl, write_jsonl


def _simulate(batch: Path, out: Path, seed: int) -> None:
    command = [sys.executable, "-m", "flywheel_tasks.cli", "simulate", "label"]
    command += ["--batch", str(batch), "--out", str(out), "--seed", str(seed)]
    done = subprocess.run(command, check=False, preexec_fn=die_with_parent)
    if done.returncode:
        raise AnnotationError(f"{batch}: flywheel simulate label ended with exit code {done.returncode}")


def run(io: StageIO) -> Mapping[str, Any]:
    """Get labels, check them, write ``data/annotation/labels.jsonl``.

    Returns:
        labels, annotators, simulated labels, and tasks with and without labels by purpose.

    Raises:
        AnnotationError: a label breaks a rule (``file:line: rule``), or the simulated annotators failed.
    """
    batch, out = io.dep("data/annotation/batch.jsonl"), io.out("data/annotation/labels.jsonl")
    tasks = list(read_jsonl(batch))
    if io.settings.label.annotator == "simulated":
        _simulate(batch, out, io.settings.seed)
        labels = read_labels(out, tasks)
    else:
        labels = read_labels(io.root / io.settings.label.labels_path, tasks)
        write_jsonl(labels, out)
    reviews = Counter(label["task_id"] for label in labels)
    by_purpose = {
        purpose: {
            "labelled": sum(task["purpose"] == purpose and reviews[task["task_id"]] > 0 for task in tasks),
            "unlabelled": sum(task["purpose"] == purpose and not reviews[task["task_id"]] for task in tasks),
            "multi_review": sum(
                task["purpose"] == purpose and reviews[task["task_id"]] > 1 for task in tasks
            ),
        }
        for purpose in SPLIT_OF
    }
    return {
        "labels": len(labels),
        "simulated": sum(label["simulated"] for label in labels),
        "annotators": len({label["annotator"] for label in labels}),
        "rewrites": sum(label["rewrite"] is not None for label in labels),
        "tasks": by_purpose,
    }
