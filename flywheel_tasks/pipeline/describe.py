"""The data graph for people: a Markdown table of every stage, made from dvc.yaml."""

from collections.abc import Iterable

from flywheel_tasks.pipeline.graph import Stage

_HEADER = """# Stages

Made from `dvc.yaml` by `flywheel stages > docs/stages.md`; a test compares the two. Code files among the inputs are
left out here. `gpu` stages go to the `gpu` queue and pool when Airflow runs them; on one machine they run on what
there is.

| stage | what it does | inputs | outputs | settings (`params.yaml`) | queue |
|---|---|---|---|---|---|
"""


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def stages_table(graph: dict[str, Stage]) -> str:
    """A Markdown page with one row a stage, in topological order."""
    rows = (
        f"| `{stage.name}` | {stage.desc} | {_code(d for d in stage.deps if not d.startswith('flywheel_tasks/'))} "
        f"| {_code(stage.outs)} | {_code(stage.params)} | {stage.queue} |\n"
        for stage in graph.values()
    )
    return _HEADER + "".join(rows)
