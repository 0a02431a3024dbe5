"""Scores of replies by the trained reward models: what the other stages call."""

import logging
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.chat.fixed_date import dated_tokenizer
from flywheel_tasks.rewards.backbone import classifier_kind
from flywheel_tasks.rewards.encoding import Kind, Limits, at_limit, encode_comparisons, encode_replies
from flywheel_tasks.rewards.packing import Group, pack, packed_scores
from flywheel_tasks.settings import Compute
from flywheel_tasks.training.precision import device, resolve_dtype, set_threads
from flywheel_tasks.training.prepacked import prepack
from flywheel_tasks.training.probe import load_model
from flywheel_tasks.training.progress import Meter

_log = logging.getLogger(__name__)
_BATCH_TOKENS = 2048  # padding included; on a CPU larger batches are no faster
_ROW_CONTINUATIONS = 8
Item = TypeVar("Item")
Encoded = tuple[list[int], list[list[int]]]  # token ids of a prompt, and of its continuations


class ScoreError(RuntimeError):
    """A reward model gave a score that is not a finite number."""


class _Scorer:
    """What both scorers share: a model, its tokenizer and how much it reads."""

    kind: Kind

    def __init__(self, model_dir: Path, *, compute: Compute) -> None:
        """Load a trained reward model.

        Args:
            model_dir: a folder that a training stage wrote.
            compute: precision and threads.

        Raises:
            BackboneError: its type has no classifier, in this release of transformers.
            ProbeError: the model does not score as it did when it was saved.
            RewardModelError: the folder holds no reward model of this kind.
        """
        set_threads(compute)
        limits = Limits.load(model_dir, self.kind)
        model = load_model(classifier_kind(model_dir), model_dir, resolve_dtype(compute))
        self._model = model.to(device()).eval()  # type: ignore[arg-type]
        prepack(self._model, _BATCH_TOKENS)
        self._tokenizer = dated_tokenizer(model_dir)
        self._limits = limits

    def _scores(self, groups: Sequence[Group], progress: str | None) -> list[list[float]]:
        """Scores of all continuations, in the groups' order; batches are of like length."""
        scores: list[list[float]] = [[] for _ in groups]
        meter = Meter(progress, sum(len(group.continuations) for group in groups), "replies")
        for batch in _batches(groups):
            packed = pack([groups[index] for index in batch], self._tokenizer.pad_token_id)
            with torch.inference_mode():
                on_device = {key: value.to(self._model.device) for key, value in packed.items()}
                values = iter(packed_scores(self._model, on_device).tolist())
            for index in batch:
                scores[index] = [next(values) for _ in groups[index].continuations]
            meter.advance(sum(len(groups[index].continuations) for index in batch))
        if not all(math.isfinite(score) for row in scores for score in row):
            raise ScoreError(f"the {self.kind} reward model gave a score that is not a finite number")
        return scores

    def _grouped(
        self,
        prompts: Sequence[tuple[Card, Sequence[Turn]]],
        items: Sequence[Item],
        encode: Callable[[Card, Sequence[Turn], Sequence[Item]], Encoded],
        progress: str | None,
    ) -> list[list[float]]:
        """Scores of each item's continuations; what shares a prompt is packed into one row, repeats once."""
        encoded = _encoded(prompts, items, encode)
        contents: list[Encoded] = []
        open_: dict[tuple[int, ...], int] = {}
        known: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[int, int]] = {}
        places: list[list[tuple[int, int]]] = []
        for prompt, continuations in encoded:
            key = tuple(prompt)
            places.append([])
            for tokens in continuations:
                if (key, tuple(tokens)) not in known:
                    index = open_.get(key)
                    if index is None or len(contents[index][1]) == _ROW_CONTINUATIONS:
                        index = open_[key] = len(contents)
                        contents.append((prompt, []))
                    known[key, tuple(tokens)] = (index, len(contents[index][1]))
                    contents[index][1].append(tokens)
                places[-1].append(known[key, tuple(tokens)])
        scores = self._scores([Group(*content) for content in contents], progress)
        return [[scores[group][place] for group, place in row] for row in places]


def _encoded(
    prompts: Sequence[tuple[Card, Sequence[Turn]]],
    items: Sequence[Item],
    encode: Callable[[Card, Sequence[Turn], Sequence[Item]], Encoded],
) -> list[Encoded]:
    """The prompt and the continuations of each item, in the items' order; each prompt is encoded once."""
    rows_of: dict[Hashable, list[int]] = {}
    for row, (card, history) in enumerate(prompts):
        turns = tuple((turn["role"], turn["content"]) for turn in history)
        rows_of.setdefault((card, turns), []).append(row)
    found: dict[int, Encoded] = {}
    for rows in rows_of.values():
        prompt, continuations = encode(*prompts[rows[0]], [items[row] for row in rows])
        each = len(continuations) // len(rows)
        for place, row in enumerate(rows):
            found[row] = prompt, continuations[place * each : (place + 1) * each]
    return [found[row] for row in range(len(items))]


def _batches(groups: Sequence[Group]) -> Iterator[list[int]]:
    """Indices of groups, longest first, in batches of at most ``_BATCH_TOKENS`` padded tokens."""
    batch: list[int] = []
    width = 0
    for index in sorted(range(len(groups)), key=lambda index: (-len(groups[index]), index)):
        width = width or len(groups[index])
        if batch and (len(batch) + 1) * width > _BATCH_TOKENS:
            yield batch
            batch, width = [], len(groups[index])
        batch.append(index)
    if batch:
        yield batch


class PointwiseScorer(_Scorer):
    """r(x, y) of the Bradley-Terry model: only differences between replies to one prompt have a meaning."""

    kind = "pointwise"

    def score(
        self, rows: Sequence[tuple[Card, Sequence[Turn], str]], progress: str | None = None
    ) -> list[float]:
        """Rewards of replies, in the rows' order.

        Args:
            rows: (card, history ending with a user's turn, reply); replies to one prompt share its
                computation.
            progress: name for progress lines, or None for none.

        Raises:
            ScoreError: a score is not finite.
        """
        filled = 0

        def encode(card: Card, history: Sequence[Turn], replies: Sequence[str]) -> Encoded:
            nonlocal filled
            prompt, found = encode_replies(self._tokenizer, card, history, replies, self._limits)
            filled += sum(at_limit(prompt, ids, self._limits) for ids in found)
            return prompt, found

        prompts = [(card, history) for card, history, _ in rows]
        scored = self._grouped(prompts, [reply for *_, reply in rows], encode, progress)
        if filled:
            most = self._limits.max_tokens
            _log.warning("%d of %d replies end at %d tokens, cut or just within", filled, len(rows), most)
        return [scores[0] for scores in scored]


class PairwiseScorer(_Scorer):
    """P(first reply is better), each reply judged with the other in view."""

    kind = "pairwise"

    def prefer(
        self, rows: Sequence[tuple[Card, Sequence[Turn], str, str]], progress: str | None = None
    ) -> list[float]:
        """P(first preferred) = sigmoid(s(first | second shown) - s(second | first shown)).

        Both orders take part in every probability: swapping the replies gives exactly 1 - P, and equal
        replies 1/2.

        Args:
            rows: (card, history ending with a user's turn, first reply, second reply).
            progress: name for progress lines, or None for none.

        Raises:
            ScoreError: a score is not finite.
        """
        return [_sigmoid(margin) for margin in self.margins(rows, progress)]

    def margins(
        self, rows: Sequence[tuple[Card, Sequence[Turn], str, str]], progress: str | None = None
    ) -> list[float]:
        """Logits of :meth:`prefer`, which do not saturate. Args and errors as there."""
        found = self._grouped(
            [(card, history) for card, history, *_ in rows],
            [(first, second) for *_, first, second in rows],
            lambda card, history, pairs: encode_comparisons(
                self._tokenizer,
                card,
                history,
                [order for first, second in pairs for order in ((second, first), (first, second))],
                self._limits,
            ),
            progress,
        )
        return [first - second for first, second in found]


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
