"""A model, a plan, and the steps of a generation in a registry."""

from datetime import datetime, timedelta

from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.registry import Registry
from flywheel_tasks.storage.registry_state import (
    Analysis,
    Arm,
    DvcRef,
    ModelRef,
    Plan,
)

BASE, NEW, OTHER, VERDICT, FOUND = (bytes_digest(text) for text in (b"base", b"new", b"other", b"v", b"a"))
WEEK = timedelta(days=7)


def model(generation: str, digest: str) -> ModelRef:
    return ModelRef(
        generation=generation,
        digest=digest,
        dvc=DvcRef(path="models/policy", md5="0" * 32 + ".dir"),
        code_version="abc",
        data_version=OTHER,
    )


def plan(generation: str = "g0001", digest: str = NEW, control: str = BASE) -> Plan:
    arms = (
        Arm(name="control", share=0.1, model="base", digest=control),
        Arm(name="candidate", share=0.1, model=generation, digest=digest),
    )
    return Plan(
        experiment=generation,
        generation=generation,
        salt="s",
        layer="policy",
        arms=arms,
        verdict_digest=VERDICT,
        model_digest=digest,
    )


def approve_launch(
    registry: Registry, decision: str = "approve", at: datetime | None = None, **changes: str
) -> None:
    shown = {"generation": "g0001", "model_digest": NEW, "verdict_digest": VERDICT, "by": "ada"} | changes
    registry.record_approval("launch", decision=decision, at=at, **shown)


def approve_promotion(registry: Registry, decision: str = "approve", **changes: str) -> None:
    shown = {"generation": "g0001", "model_digest": NEW, "analysis_digest": FOUND} | changes
    registry.record_approval("promotion", decision=decision, by="ada", **shown)


def launched(registry: Registry) -> None:
    registry.bootstrap(model("base", BASE), by="setup")
    approve_launch(registry)
    registry.start_experiment(plan(), model("g0001", NEW), by="ada", duration=WEEK)


def analysed(registry: Registry, result: str = "valid") -> None:
    reasons = () if result == "valid" else ("too few users",)
    registry.record_analysis("g0001", Analysis(result=result, digest=FOUND, reasons=reasons), by="scheduler")
