"""The reward of reinforcement learning, in parts that are logged apart.

The pointwise reward model leads. Auxiliary terms are bounded and off by default: optimising user signals directly
failed in known ways (paper, section on reward models), so each can add at most ``weight`` times ``bound``. Penalties
are explicit: for length, for a reply that does not end, for artifacts of style and for templates.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.evaluation.chat_templates import is_templated
from flywheel_tasks.evaluation.instructions import share_seen_kept
from flywheel_tasks.evaluation.templates import Pattern, Template
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.policy.prompts import Prompt
from flywheel_tasks.rewards.scoring import PointwiseScorer
from flywheel_tasks.rewards.signals import SignalScorer
from flywheel_tasks.settings import Rl
from flywheel_tasks.style.asked import asked_for
from flywheel_tasks.style.features import FEATURES

_log = logging.getLogger(__name__)
Replied = tuple[Card, Sequence[Turn], str]
Term = Callable[[Sequence[Replied]], list[float]]


class RewardError(ValueError):
    """A part of the reward cannot be computed; the message names it."""


def instructions_kept(rows: Sequence[Replied]) -> list[float]:
    """Share of a card's instructions that code can check and sees kept; 1 where code can check none.

    A constant within a prompt teaches nothing, so such prompts are as if the term were off.
    """
    return [1.0 if (kept := share_seen_kept(card, reply)) is None else kept for card, _, reply in rows]


def _signal(models: SignalScorer, signal: str) -> Term:
    def chances(rows: Sequence[Replied]) -> list[float]:
        found: list[float] = []
        for value in models.probabilities(rows)[signal]:
            assert value is not None  # signals without a model are left out
            found.append(value)
        return found

    return chances


def auxiliary_terms(io: StageIO) -> dict[str, Term]:
    """The auxiliary terms that the setting names; each gives a value from 0 to 1 for every reply.

    A signal whose model could not be trained, because one class only was in the logs, is left out with a warning.
    """
    names = list(io.settings.rl.auxiliary)
    terms: dict[str, Term] = {"instructions": instructions_kept} if "instructions" in names else {}
    signals = [name.removeprefix("p_") for name in names if name.startswith("p_")]
    if signals:
        models = SignalScorer(io.dep("models/signal_models"), io.dep("models/embedder"))
        for signal in signals:
            if signal in models.untrained:
                _log.warning("rl: no model of the signal %s, its auxiliary term is left out", signal)
            else:
                terms[f"p_{signal}"] = _signal(models, signal)
    return {name: terms[name] for name in names if name in terms}


class Rewards:
    """The reward functions. TRL logs the mean of each; what each is made of is logged beside it.

    Args:
        scorer: the pointwise reward model.
        prompts: the dataset's column ``index`` points into them.
        section: settings.
        unit: what a weight or a penalty of 1 is worth, in reward: the scale of a reward model is its own.
        end_ids: tokens that end a reply.
        decode: token ids to texts.
        terms: the auxiliary ones, of :func:`auxiliary_terms`.
        templates: those that the policy has before RL; needed where ``template_penalty`` is above zero.

    Raises:
        RewardError: an artifact with a penalty is not a style feature, or is not an artifact.
    """

    def __init__(
        self,
        scorer: PointwiseScorer,
        prompts: Sequence[Prompt],
        section: Rl,
        unit: float,
        end_ids: frozenset[int],
        decode: Callable[[Sequence[Sequence[int]]], list[str]],
        terms: Mapping[str, Term] | None = None,
        templates: Mapping[Pattern, Template] | None = None,
    ) -> None:
        known = sorted(name for name, feature in FEATURES.items() if feature.artifact)
        if unknown := sorted(set(section.artifact_penalties) - set(known)):
            raise RewardError(
                f"rl.artifact_penalties: {', '.join(unknown)} is no artifact; there are {', '.join(known)}"
            )
        self._scorer = scorer
        self._prompts = prompts
        self._section = section
        self._unit = unit
        self._end_ids = end_ids
        self._decode = decode
        self._terms = dict(terms or {})
        self._templates = dict(templates or {})
        self._asked_for: dict[Card, frozenset[str]] = {}

    @property
    def functions(self) -> list[Callable[..., list[float | None]]]:
        """What the trainer sums."""
        return [self.pointwise, *([self.auxiliary] if self._terms else []), self.penalties]

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys of the trainer's log that show the parts."""
        names = [function.__name__ for function in self.functions]
        return (
            *(f"rewards/{name}/mean" for name in names),
            *(f"auxiliary_{name}" for name in self._terms),
            "penalty_length",
            "penalty_cut_off",
            *(f"penalty_{name}" for name in self._section.artifact_penalties),
            *(["penalty_templates"] if self._section.template_penalty else []),
        )

    def _rows(self, completion_ids: list[list[int]], index: list[int]) -> list[Replied]:
        texts = self._decode(completion_ids)
        return [(*self._prompts[i].chat, text) for i, text in zip(index, texts, strict=True)]

    def pointwise(
        self, completion_ids: list[list[int]], index: list[int], **kwargs: Any
    ) -> list[float | None]:
        """Score of each completion by the reward model."""
        return [*self._scorer.score(self._rows(completion_ids, index))]

    def auxiliary(
        self,
        completion_ids: list[list[int]],
        index: list[int],
        log_metric: Callable[[str, float], None],
        **kwargs: Any,
    ) -> list[float | None]:
        """Sum of the auxiliary terms: a value counts up to its bound, times its weight, in units."""
        rows = self._rows(completion_ids, index)
        total = np.zeros(len(rows))
        for name, term in self._terms.items():
            setting = self._section.auxiliary[name]  # type: ignore[index]
            part = (
                self._unit * setting.weight * np.clip(np.asarray(term(rows), dtype=float), 0.0, setting.bound)
            )
            log_metric(f"auxiliary_{name}", float(part.mean()))
            total += part
        return [*total.tolist()]

    def penalties(
        self, completion_ids: list[list[int]], log_metric: Callable[[str, float], None], **kwargs: Any
    ) -> list[float | None]:
        """What each completion loses by its length, by not ending, by artifacts and templates; each is logged."""
        ended = [ids[-1] in self._end_ids for ids in completion_ids]
        tokens = [len(ids) - end for ids, end in zip(completion_ids, ended, strict=True)]
        limit = self._section.length_limit
        per_token, whole = (
            -self._unit * each for each in (self._section.length_penalty, self._section.cut_off_penalty)
        )
        parts = {
            "length": [per_token * max(0, count - limit) for count in tokens],
            "cut_off": [0.0 if end else whole for end in ended],
        }
        if self._section.artifact_penalties or self._section.template_penalty:
            parts |= self._style_penalties(self._rows(completion_ids, kwargs["index"]))
        for name, values in parts.items():
            log_metric(f"penalty_{name}", float(np.mean(values)))
        return [float(sum(each)) for each in zip(*parts.values(), strict=True)]

    def _style_penalties(self, rows: Sequence[Replied]) -> dict[str, list[float]]:
        parts = {}
        for name, weight in self._section.artifact_penalties.items():
            measure = FEATURES[name].measure
            lost = -self._unit * weight
            parts[name] = [
                0.0 if self._asked(card, name) else lost * float(measure(history, reply))
                for card, history, reply in rows
            ]
        if whole := self._section.template_penalty:
            lost = -self._unit * whole
            parts["templates"] = [lost if is_templated(*row, self._templates) else 0.0 for row in rows]
        return parts

    def _asked(self, card: Card, artifact: str) -> bool:
        """Whether a card asks for an artifact: to obey it is none."""
        names = self._section.artifact_penalties
        if card not in self._asked_for:
            self._asked_for[card] = asked_for(card, {name: FEATURES[name] for name in names})
        return artifact in self._asked_for[card]
