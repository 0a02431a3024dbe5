"""The weekly generation: the stages of dvc.yaml as tasks, between the gates that files cannot express."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.python import BranchPythonOperator, PythonOperator
from airflow.providers.standard.sensors.python import PythonSensor
from airflow.sdk import DAG, BaseOperator, Param, TriggerRule, chain

from flywheel_dag import answers, tasks
from flywheel_dag.approval import BoundApproval
from flywheel_dag.watch import WatchTest
from flywheel_tasks.pipeline.graph import Stage, load_graph
from flywheel_tasks.settings import Settings, load_settings

DAG_ID = "weekly_generation"
GPU_POOL = "gpu"
# Of tasks that wait for days, and of those that act on an A/B test, or on an answer about one: with pauses of an hour
# at most they outlast any outage, so that no number of lost connections ends a run and leaves a running test unwatched
# or a harmful arm served. What is refused for good fails at once (flywheel_dag.refusals).
WAIT_RETRIES = 1000
_DOC = """One generation, from raw logs to a promoted champion.

The stages and their edges are those of `dvc.yaml`; each runs through DVC, so a stage whose inputs have not
changed is not run again. A gate that does not pass asks nobody. Two decisions of people are recorded in the
registry, with the digests they were shown: the launch of the A/B test, and the promotion after it. No answer
in time is a no.
"""


def _params(graph: dict[str, Stage]) -> dict[str, Param]:
    names = list(graph)
    return {
        "generation": Param(
            None,
            type=["null", "string"],
            pattern="^(g[0-9]{4,})?$",
            title="Generation",
            description="Id, e.g. g0002. Empty: the next one. A generation that was opened before goes on.",
        ),
        "seed": Param(
            None,
            type=["null", "integer"],
            minimum=0,
            maximum=2**32 - 1,
            title="Seed",
            description="Written into params.yaml. Empty: the seed there.",
        ),
        "force": Param(
            [],
            type=["null", "array"],
            items={"type": "string", "enum": names},
            examples=names,
            title="Stages to run again",
            description="Run these even if nothing changed.",
        ),
    }


def _stage(stage: Stage) -> PythonOperator:
    pool: dict[str, Any] = {"pool": GPU_POOL} if stage.queue == "gpu" else {}
    return PythonOperator(
        task_id=stage.name,
        python_callable=tasks.run_stage,
        op_kwargs={"stage": stage.name},
        queue=stage.queue,
        doc_md=stage.desc,
        **pool,
    )


def _stages(graph: dict[str, Stage]) -> dict[str, PythonOperator]:
    """A task for each stage, with the edges of the graph."""
    made = {name: _stage(stage) for name, stage in graph.items()}
    for name, stage in graph.items():
        for parent in stage.upstream:
            made[parent] >> made[name]
    return made


def _step(
    task_id: str, doc: str, operator: type[PythonOperator] = PythonOperator, **kwargs: Any
) -> PythonOperator:
    function = kwargs.pop("calls", None) or getattr(tasks, task_id)
    return operator(task_id=task_id, python_callable=function, queue="cpu", doc_md=doc, **kwargs)


def _decision(kind: str, then: str) -> PythonOperator:
    return _step(
        f"record_{kind}_decision",
        "Who answered what, and when, with the digests shown, goes into the registry.",
        BranchPythonOperator,
        calls=answers.record_decision,
        retries=WAIT_RETRIES,
        op_kwargs={"approval": f"approve_{kind}", "then": then},
    )


def _approval(kind: str, asks: str, settings: Settings) -> BoundApproval:
    return BoundApproval(
        task_id=f"approve_{kind}",
        asks=asks,
        response_timeout=timedelta(hours=settings.airflow.approval_timeout_hours),
        queue="cpu",
        doc_md=f"A person decides about the {kind}. No answer in time is a no.",
    )


def _simulated(settings: Settings, task_id: str, doc: str) -> list[PythonOperator]:
    return [_step(task_id, doc)] if settings.logs.source == "simulated" else []


def _open(settings: Settings) -> PythonOperator:
    """The tasks before the first stage; returns the last of them."""
    opened = _step("open_generation", "Pins the champion and the newest logs.")
    chain(
        _step("choose_generation", "The trigger form's generation, or the next one."),
        *_simulated(settings, "simulate_traffic", "Simulated users talk to the champion."),
        opened,
    )
    return opened


def _launch(stages: dict[str, PythonOperator], settings: Settings) -> PythonOperator:
    """Gate to running test; returns the task that records the launch decision."""
    recorded, launch = _decision("launch", "launch"), stages["launch"]
    checked = _step(
        "check_gate",
        "Fails, without a retry, if the gate does not pass: then nobody is asked. Nor is anybody if the test runs.",
        BranchPythonOperator,
    )
    chain(stages["gate"], checked, _approval("launch", "check_gate", settings), recorded, launch)
    checked >> launch
    launch.trigger_rule = TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS  # the question may have been skipped
    return recorded


def _wait_for_people(stages: dict[str, PythonOperator], settings: Settings) -> None:
    """Between the batch and its labels, unless they are simulated: looks now and then, and takes no worker between."""
    if settings.label.annotator == "simulated":
        return
    chain(
        stages["annotation_batch"],
        PythonSensor(
            task_id="wait_for_labels",
            python_callable=tasks.wait_for_labels,
            mode="reschedule",
            poke_interval=timedelta(minutes=settings.label.label_studio.poll_minutes),
            timeout=timedelta(hours=settings.label.label_studio.wait_hours),
            retries=WAIT_RETRIES,
            queue="cpu",
            doc_md="Until people have labelled enough (label.min_done); see flywheel annotation.",
        ),
        stages["label"],
    )


def _test(launch: PythonOperator, settings: Settings) -> list[BaseOperator]:
    """Running test to champion; returns the tasks that may decide to roll back."""
    analysed = _step(
        "analyze_ab",
        "Lifts with intervals; a test that is invalid or rejects the candidate asks nobody.",
        BranchPythonOperator,
        retries=WAIT_RETRIES,
    )
    recorded = _decision("promotion", "promote")
    watched = WatchTest(
        task_id="watch_ab",
        then="analyze_ab",
        otherwise="rollback",
        retries=WAIT_RETRIES,
        queue="cpu",
        doc_md="Looks at the guardrails until the test ends, as the registry has it; a harmful arm ends it early.",
    )
    chain(
        launch,
        _step(
            "start_ab_test",
            "The registry checks the approval again and starts the test.",
            retries=WAIT_RETRIES,
        ),
        *_simulated(settings, "simulate_ab_traffic", "Simulated users talk to both arms."),
        watched,
        analysed,
        _approval("promotion", "analyze_ab", settings),
        recorded,
        _step(
            "promote",
            "The candidate becomes champion; one that the registry refuses is dropped.",
            retries=WAIT_RETRIES,
        ),
    )
    return [watched, analysed, recorded]


def weekly_generation(root: Path) -> DAG:
    """Build the DAG from a workspace's dvc.yaml and params.yaml.

    Args:
        root: the workspace. Its path is not part of the DAG: a worker has its own.
    """
    graph, settings = load_graph(root / "dvc.yaml"), load_settings(root / "params.yaml")
    with DAG(
        DAG_ID,
        description="From raw logs to a promoted champion, with two human gates",
        doc_md=_DOC,
        schedule=settings.airflow.schedule,
        start_date=datetime(2026, 1, 5, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        params=_params(graph),
        tags=["flywheel"],
        default_args={
            "owner": "flywheel",
            "retries": settings.airflow.retries,
            "retry_delay": timedelta(seconds=settings.airflow.retry_delay_seconds),
            "retry_exponential_backoff": True,
            "max_retry_delay": timedelta(hours=1),
        },
    ) as dag:
        stages = _stages(graph)
        _wait_for_people(stages, settings)
        opened = _open(settings)
        for name, stage in graph.items():
            if not stage.upstream:
                opened >> stages[name]
        deciders = [_launch(stages, settings), *_test(stages["launch"], settings)]
        # It runs as soon as one of them leads here; a branch taken elsewhere skips it.
        deciders >> _step(
            "rollback",
            "The candidate is dropped and the reason recorded; the champion stays.",
            retries=WAIT_RETRIES,
            trigger_rule="none_failed_min_one_success",
        )
    return dag
