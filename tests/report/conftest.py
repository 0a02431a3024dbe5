"""Contents of a report, hand-made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.evaluation.gate_rules import load_rules
from flywheel_tasks.evaluation.rules import judge, ordered, verdict_of
from flywheel_tasks.evaluation.style_rules import style_reasons
from flywheel_tasks.report.contents import Contents, Curve
from tests.evaluation.handmade import metrics, replies


@pytest.fixture
def contents() -> Callable[..., Contents]:
    """``contents(user=0.6, internal=0.57, planted="")``."""
    rules = load_rules(Path(__file__).resolve().parents[2] / "gate_rules.yaml")

    def make(planted: str = "", simulated: dict[str, bool | None] | None = None, **rates: Any) -> Contents:
        found = metrics(**rates)
        reasons = ordered([*judge(rules, found), *style_reasons(rules.style, found)])
        return Contents(
            generation={
                "generation": "g0001",
                "champion": {"model": "base", "digest": "sha256:" + "ab" * 32},
                "logs_digest": "sha256:" + "cd" * 32,
            },
            verdict={
                "generation": "g0001",
                "verdict": verdict_of(reasons),
                "model_digest": "sha256:" + "12" * 32,
                "reasons": [reason.as_dict() for reason in reasons],
            },
            verdict_digest="sha256:" + "ef" * 32,
            metrics=found,
            replies=replies(planted=planted),
            curves=[Curve("sft", [1.0, 2.0, 3.0], {"loss": [2.0, 1.5, 1.0]})],
            simulated={"users": True, "annotators": True} if simulated is None else simulated,
        )

    return make
