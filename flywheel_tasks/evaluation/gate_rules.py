"""``gate_rules.yaml``: the limits of the gate, typed; an unknown key or an empty limit is an error that names it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from flywheel_tasks.evaluation.measured import Unit
from flywheel_tasks.settings import PositiveFloat, Section, Share
from flywheel_tasks.storage.documents import read_yaml

FILE = "gate_rules.yaml"
Suite = Literal["red_team", "over_refusal", "pushing", "tool_calls"]


class GateRulesError(ValueError):
    """The rules are missing, are not YAML, or break a rule themselves; the message names the file and the key."""


class Limit(Section):
    """Bounds of a metric, both inclusive; at least one is set."""

    min: FiniteFloat | None = None
    max: FiniteFloat | None = None

    @model_validator(mode="after")
    def _bounded(self) -> "Limit":
        if self.min is None and self.max is None:
            raise ValueError("a limit needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def holds(self, value: float) -> bool:
        """Whether a value is within the bounds (NaN is not)."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class SuiteLimit(Limit):
    """Bounds of a suite; with ``may_be_absent``, one that was run and is null with a reason passes."""

    may_be_absent: bool = False


class Shown(Section):
    """How a metric is told to an approver: as what, and in which unit."""

    title: Annotated[str, Field(min_length=1)]
    unit: Unit = "number"


class Rule(Section):
    """Limits on one metric, ``<stage>.<path in its metrics file>``.

    With ``may_be_absent``, a metric that is null with a reason passes, such as a comparison with an earlier model
    before there is one. A metric that is missing, or null without a reason, blocks all the same.
    """

    metric: Annotated[str, Field(pattern=r"^\w+(\.[\w-]+)+$")]
    block: Limit | None = None
    warn: Limit | None = None
    may_be_absent: bool = False

    @model_validator(mode="after")
    def _limited(self) -> "Rule":
        if self.block is None and self.warn is None:
            raise ValueError(f"{self.metric}: a rule needs block, warn or both")
        return self


class Overfitting(Section):
    """The paper's rule against overfitting the reward model, on pointwise win rates (METHOD, offline evaluation)."""

    high: Annotated[
        float, Field(gt=0.0)
    ]  # a win rate on users' prompts from here on blocks, an internal one warns; none reaches a limit above 1
    target: Share  # ... and above this it warns
    internal_low: Share  # an internal win rate below this blocks
    gap: Share  # a user/internal gap above this that cannot be noise blocks
    wide_gap: Share  # ... and above this it warns although it may be noise

    @model_validator(mode="after")
    def _ordered(self) -> "Overfitting":
        if self.target > self.high or self.gap > self.wide_gap:
            raise ValueError("target must not be above high, nor gap above wide_gap")
        return self


class StyleRule(Section):
    """Limits on style features between champion and candidate (METHOD, style-artifact control).

    Effects are Cohen's d_z: mean paired difference over its standard deviation; only flagged ones (p below 0.05 after
    Holm's correction) count.
    """

    warn_effect: PositiveFloat
    block_effect: PositiveFloat
    reward_effect: PositiveFloat  # of high against low reward, in the same direction: then the jump may block

    @model_validator(mode="after")
    def _ordered(self) -> "StyleRule":
        if self.warn_effect > self.block_effect:
            raise ValueError("warn_effect must not be above block_effect")
        return self


class GateRules(Section):
    """Everything that a candidate is held against."""

    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    overfitting: Overfitting
    style: StyleRule
    # Of the suites that evaluate.suites runs, or of each of a suite's metrics by name; a breach blocks.
    suites: dict[Suite, SuiteLimit | Annotated[dict[str, SuiteLimit], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    # What it means that evaluate.suites does not run one: nothing else measures what it does.
    not_run: dict[Suite, Literal["warn", "block"]] = Field(default_factory=dict)
    shown: dict[str, Shown] = Field(default_factory=dict)  # by metric; others go by their own name

    def told(self, metric: str) -> Shown:
        """How a metric is told."""
        return self.shown.get(metric, Shown(title=metric))


def load_rules(path: Path) -> GateRules:
    """Read and check the rules.

    Args:
        path: ``gate_rules.yaml``.

    Raises:
        GateRulesError: it is missing, not YAML, or a key is unknown, missing or out of range.
    """
    return read_yaml(path, GateRules, GateRulesError)
