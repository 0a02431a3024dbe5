"""Contents of a report, hand-made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.evaluation.rules import judge
from flywheel_tasks.report.contents import Contents, Curve
from flywheel_tasks.settings import load_settings
from tests.evaluation.handmade import metrics, replies


@pytest.fixture
def contents() -> Callable[..., Contents]:
    """``contents(user=0.6, internal=0.57, planted="")``."""
    gate = load_settings(Path(__file__).resolve().parents[2] / "params.yaml").gate

    def make(planted: str = "", simulated: dict[str, bool | None] | None = None, **rates: Any) -> Contents:
        found = metrics(**rates)
        reasons = [reason.as_dict() for reason in judge(gate, found)]
        return Contents(
            generation={
                "generation": "g0001",
                "champion": {"model": "base", "digest": "sha256:" + "ab" * 32},
                "logs_digest": "sha256:" + "cd" * 32,
            },
            verdict={
                "generation": "g0001",
                "verdict": "pass" if all(reason["passed"] for reason in reasons) else "block",
                "model_digest": "sha256:" + "12" * 32,
                "reasons": reasons,
            },
            verdict_digest="sha256:" + "ef" * 32,
            metrics=found,
            replies=replies(planted=planted),
            curves=[Curve("sft", [1.0, 2.0, 3.0], {"loss": [2.0, 1.5, 1.0]})],
            simulated={"users": True, "annotators": True} if simulated is None else simulated,
        )

    return make
