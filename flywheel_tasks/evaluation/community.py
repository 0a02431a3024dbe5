"""Community benchmarks by lm-eval (``pip install '.[lm-eval]'``): to see that a model stays robust, not to top a table.

Not a stage of the generation: it takes long, and its data come from the Hugging Face hub. Candidate and champion answer
the same questions, so their difference is taken question by question.
"""

import gc
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flywheel_tasks.evaluation.intervals import Estimate, mean
from flywheel_tasks.settings import Compute

INSTALL = "lm-eval is not installed, so no benchmark can be run: pip install 'characterflywheel[lm-eval]'"
Answers = dict[str, dict[str, dict[int, float]]]  # of each question by task and metric


class BenchmarkError(RuntimeError):
    """The benchmarks cannot be run; the message says why."""


def answers(
    folder: Path,
    tasks: Sequence[str],
    *,
    compute: Compute,
    limit: int | None,
    include: Path | None,
    chat: bool,
) -> Answers:
    """What a model gets on every question of some tasks.

    Args:
        folder: of a causal language model, safetensors only.
        tasks: names that lm-eval knows.
        compute: precision and threads.
        limit: questions of each task; all without it.
        include: folder of further task files (YAML).
        chat: put the questions into the model's chat template.

    Returns:
        numbers by task, metric and question; what is no number of one question (a corpus score) is left out.

    Raises:
        BenchmarkError: lm-eval is not installed, or does not know a task.
    """
    if find_spec("lm_eval") is None:
        raise BenchmarkError(INSTALL)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from flywheel_tasks.training.precision import device, resolve_dtype, set_threads
    from flywheel_tasks.training.probe import load_model

    set_threads(compute)
    manager = TaskManager(include_path=None if include is None else str(include))
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        raise BenchmarkError(f"lm-eval knows no task {', '.join(unknown)}")
    model = load_model(AutoModelForCausalLM, folder, resolve_dtype(compute), local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found = simple_evaluate(
        model=HFLM(pretrained=model.to(device()), tokenizer=tokenizer, batch_size=8),  # type: ignore[arg-type]
        tasks=list(tasks),
        limit=limit,
        task_manager=manager,
        apply_chat_template=chat,
        bootstrap_iters=0,  # intervals are made here, of the differences too
    )
    if found is None:  # another rank of a distributed run reports
        raise BenchmarkError("lm-eval gave no results")
    return by_question(found["samples"])


def by_question(samples: dict[str, list[dict[str, Any]]]) -> Answers:
    """The logged samples of lm-eval as numbers by task, metric (with its filter) and question."""
    found: Answers = {}
    for task, rows in samples.items():
        for row in rows:
            for metric in row["metrics"]:
                value = row.get(metric)
                if isinstance(value, bool | int | float) and math.isfinite(value):
                    name = metric if row["filter"] in ("none", "") else f"{metric} ({row['filter']})"
                    found.setdefault(task, {}).setdefault(name, {})[int(row["doc_id"])] = float(value)
    return found


def compared(candidate: Answers, champion: Answers | None) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Means with 95% intervals over questions, and the paired difference where both models were asked.

    Args:
        candidate: of :func:`answers`.
        champion: of the model to compare with, on the same questions; None for none.

    Returns:
        by task and metric: ``candidate``, and with a champion ``champion`` and ``difference`` (candidate minus it).

    Raises:
        BenchmarkError: the two were asked different questions.
    """
    table: dict[str, dict[str, dict[str, Estimate]]] = {}
    for task, metrics in sorted(candidate.items()):
        for metric, by_id in sorted(metrics.items()):
            row = {"candidate": mean(list(by_id.values()), list(by_id))}
            if champion is not None:
                other = champion.get(task, {}).get(metric, {})
                if other.keys() != by_id.keys():
                    raise BenchmarkError(f"{task}: the two models were asked different questions")
                row["champion"] = mean(list(other.values()), list(other))
                row["difference"] = mean([by_id[key] - other[key] for key in by_id], list(by_id))
            table.setdefault(task, {})[metric] = row
    return table


def run_benchmarks(
    model: Path,
    against: Path | None,
    tasks: Sequence[str],
    *,
    compute: Compute,
    limit: int | None = None,
    include: Path | None = None,
    chat: bool = True,
) -> dict[str, Any]:
    """Both models on the tasks, one after the other. Args and errors as :func:`answers` and :func:`compared`."""
    options: dict[str, Any] = {"compute": compute, "limit": limit, "include": include, "chat": chat}
    candidate = answers(model, tasks, **options)
    gc.collect()  # two models at once would double the memory
    champion = None if against is None else answers(against, tasks, **options)
    return {"limit": limit, "chat_template": chat, "tasks": compared(candidate, champion)}
