"""What the report and the approval text are made of."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAFETY_SUITE = "red_team"


@dataclass(frozen=True)
class Curve:
    """A training curve.

    Attributes:
        name: of its file, without the ending.
        steps: of the points.
        series: values by column; None where a step has none.
    """

    name: str
    steps: list[float]
    series: dict[str, list[float | None]]


@dataclass(frozen=True)
class Contents:
    """Everything the gate knows of one generation.

    Attributes:
        generation: ``inputs/generation.json``.
        verdict: ``gate/verdict.json``.
        verdict_digest: of that file.
        metrics: of all stages before, by stage.
        replies: rows of ``data/evaluation/replies.parquet``.
        curves: training curves.
        simulated: whether ``users`` and ``annotators`` are simulated; None where unknown.
    """

    generation: Mapping[str, Any]
    verdict: Mapping[str, Any]
    verdict_digest: str
    metrics: Mapping[str, Any]
    replies: Sequence[Mapping[str, Any]]
    curves: Sequence[Curve]
    simulated: Mapping[str, bool | None]

    @property
    def outcome(self) -> str:
        """The verdict: pass, warn or block."""
        return str(self.verdict["verdict"])

    def reasons(self, outcome: str) -> list[Mapping[str, Any]]:
        """The rules with this outcome."""
        return [reason for reason in self.verdict["reasons"] if reason["outcome"] == outcome]

    def lead(self) -> str:
        """One or two sentences on what the verdict means."""
        count = len(self.verdict["reasons"])
        if self.outcome == "block":
            blocking = len(self.reasons("block"))
            fail = "fails" if blocking == 1 else "fail"
            return f"{blocking} of {count} gate rules {fail}. This model is not launched."
        if warned := len(self.reasons("warn")):
            warn = "warns" if warned == 1 else "warn"
            return (
                f"No gate rule fails, {warned} of {count} {warn}. Weigh them: approving starts the A/B test "
                "of this model."
            )
        return f"All {count} gate rules hold. Approving starts the A/B test of this model."

    def simulation_note(self) -> str:
        """One sentence on what of this generation is simulated; empty where all is real."""
        simulated = [name for name, value in sorted(self.simulated.items()) if value]
        unknown = [name for name, value in sorted(self.simulated.items()) if value is None]
        parts = []
        if simulated:
            parts.append(
                f"The {' and the '.join(simulated)} of this generation are simulated: "
                "the figures say nothing of real people."
            )
        if unknown:
            parts.append(f"Whether the {' and the '.join(unknown)} are simulated is not recorded.")
        return " ".join(parts)

    def not_measured(self) -> list[str]:
        """Sentences on what no figure here says anything of: no rule can fail on what was never run."""
        evaluate = self.metrics.get("evaluate") or {}
        sentences = []
        if SAFETY_SUITE not in (evaluate.get("suites") or {}):
            sentences.append(
                "Safety was not tested: the red-team suite was not run (setting evaluate.suites)."
            )
        unsafe = ((evaluate.get("production") or {}).get("safety_violation") or {}).get("candidate") or {}
        if unsafe.get("value") is not None and unsafe.get("reason"):
            sentences.append(f"Unsafe replies of the new model, as the judge sees them: {unsafe['reason']}.")
        if (evaluate.get("refusal_detector") or {}).get("by") == "rules":
            sentences.append(
                "Refusals were told by rules alone, which miss most of those in other words: the true rate is higher."
            )
        return sentences


def read_curve(path: Path) -> Curve:
    """Read a curve file: CSV with the column ``step`` and columns of numbers.

    Raises:
        ValueError: there is no ``step``, or a value is no number; the message names file and line.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = [name for name in reader.fieldnames or () if name != "step"]
        if "step" not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: no column step")
        steps: list[float] = []
        series: dict[str, list[float | None]] = {name: [] for name in columns}
        for row in reader:
            try:
                steps.append(float(row["step"]))
                for name in columns:
                    series[name].append(_number(row[name]))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: line {reader.line_num}: not a number: {error}") from error
    return Curve(path.stem, steps, series)


def _number(text: str) -> float | None:
    if text == "":
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def most_different(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Rows whose two replies the pointwise model rates most differently, half of them gains and half losses.

    Where one kind is short the other fills up. Identical replies are left out.

    Args:
        rows: of ``replies.parquet``.
        count: how many at most.

    Returns:
        largest gain of the candidate first, largest loss last.
    """
    differing = sorted(
        (row for row in rows if row["candidate_reply"] != row["champion_reply"]),
        key=lambda row: (
            row["champion_reward"] - row["candidate_reward"],
            row["prompt_id"],
            row.get("sample", 0),
        ),
    )
    gains = [row for row in differing if row["candidate_reward"] > row["champion_reward"]]
    losses = differing[len(gains) :]
    from_gains = min(len(gains), max(count - count // 2, count - len(losses)))
    from_losses = min(len(losses), count - from_gains)
    return gains[:from_gains] + (losses[-from_losses:] if from_losses else [])
