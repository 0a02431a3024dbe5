"""Several continuations of one prompt in one sequence: the prompt is computed once.

Most of a reward model's time goes into prompts, and every prompt is scored with two or more replies. A packed
row is ``prompt, continuation 1, continuation 2, ...``; a block mask keeps each continuation from seeing the
others, and its positions go on from the prompt's end, so every score is the one that the continuation gets
alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

_PAD = -1  # segment of padding; 0 is the prompt, 1, 2, ... the continuations


@dataclass(frozen=True)
class Group:
    """A prompt and the continuations to score.

    Attributes:
        prompt: token ids.
        continuations: token ids of each, none empty.
    """

    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.continuations))


def pack(groups: Sequence[Group], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A batch with one row a group.

    Args:
        groups: B groups; T is the length of the longest.
        pad_token_id: fills shorter rows on the right.

    Returns:
        ``input_ids``, ``position_ids``, ``segments`` ([B, T] integers), and ``end_rows``, ``end_columns``
        ([N]): where each continuation ends, in the order of the groups.
    """
    width = max(map(len, groups))
    shape = (len(groups), width)
    ids = torch.full(shape, pad_token_id, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    segments = torch.full(shape, _PAD, dtype=torch.long)
    end_rows: list[int] = []
    end_columns: list[int] = []
    for row, group in enumerate(groups):
        column = 0
        for segment, tokens in enumerate([group.prompt, *group.continuations]):
            if not tokens:
                raise ValueError("a prompt or continuation without tokens cannot be scored")
            stop = column + len(tokens)
            ids[row, column:stop] = torch.tensor(tokens)
            start = len(group.prompt) if segment else 0
            positions[row, column:stop] = torch.arange(start, start + len(tokens))
            segments[row, column:stop] = segment
            column = stop
            if segment:
                end_rows.append(row)
                end_columns.append(stop - 1)
    return {
        "input_ids": ids,
        "position_ids": positions,
        "segments": segments,
        "end_rows": torch.tensor(end_rows),
        "end_columns": torch.tensor(end_columns),
    }


def attention_mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [B, 1, T, T]: 0 where a token may look, the least finite number elsewhere.

    A token sees itself, the prompt, and earlier tokens of its own continuation.
    """
    length = segments.shape[1]
    index = torch.arange(length, device=segments.device)
    earlier = index[None, :, None] >= index[None, None, :]
    same = segments[:, :, None] == segments[:, None, :]
    prompt = (segments == 0)[:, None, :]
    allowed = earlier & (same | (prompt & (segments != _PAD)[:, :, None]))
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def _heads(model: nn.Module) -> list[nn.Linear]:
    heads = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "score" in name.split(".")
    ]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no score head")
    return heads


def packed_scores(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Scores [N] of all continuations of a packed batch, in float32.

    The model's own pooling takes one token a row; the ends are picked here, from what enters its head. The
    whole model is called, so that wrappers (autocast, data parallel) do their part.

    Args:
        model: a sequence classifier with one label and a head named ``score``, wrapped or not.
        batch: from :func:`pack`.
    """
    found: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.Linear)
        ends = inputs[0][batch["end_rows"], batch["end_columns"]].float()
        # Here and not later: while the model is called, a sharded head is whole.
        with torch.autocast(ends.device.type, enabled=False):
            found.append(nn.functional.linear(ends, module.weight.float()).squeeze(-1))

    catch: Callable[..., None] = keep
    handles = [head.register_forward_pre_hook(catch) for head in _heads(model)]
    try:
        model(
            input_ids=batch["input_ids"],
            attention_mask=attention_mask(batch["segments"], next(model.parameters()).dtype),
            position_ids=batch["position_ids"],
            use_cache=False,
        )
    finally:
        for handle in handles:
            handle.remove()
    (scores,) = found
    return scores


class PackingError(RuntimeError):
    """A model scores a packed reply otherwise than the reply alone."""


@torch.no_grad()
def check_packing(model: nn.Module, group: Group, pad_token_id: int) -> None:
    """Score one group packed and its continuations one by one, through the model's own pooling.

    Architectures that ignore a block mask or positions (state-space models, some attention kernels) are found
    here and not in a bad reward.

    Args:
        model: see :func:`packed_scores`; it is put into evaluation mode.
        group: what to try.
        pad_token_id: the model's.

    Raises:
        PackingError: a score differs by more than 0.1% of the largest, or is not finite.
    """
    model.eval()
    place = next(model.parameters()).device
    packed = packed_scores(model, {k: v.to(place) for k, v in pack([group], pad_token_id).items()})
    alone = torch.stack(
        [
            model(input_ids=torch.tensor([[*group.prompt, *tokens]], device=place)).logits[0, 0].float()
            for tokens in group.continuations
        ]
    )
    difference = float((packed - alone).abs().max() / alone.abs().max().clamp_min(1.0))
    if not difference <= 1e-3:
        raise PackingError(f"{type(model).__name__} scores packed replies differently ({difference:.1e})")
