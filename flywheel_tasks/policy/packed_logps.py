"""Log-probabilities of several completions of one prompt, with the prompt computed once.

GRPO scores a whole group of completions of each prompt. Packed rows (:mod:`flywheel_tasks.rewards.packing`)
hold a prompt and all its completions, and the vocabulary projection is computed at completion tokens only.
"""

from collections.abc import Sequence

import torch
from torch import nn

from flywheel_tasks.rewards.packing import Group, attention_mask, pack


def _places(groups: Sequence[Group]) -> tuple[list[int], list[int]]:
    """Row and column of the token before each completion token: there the model predicts it."""
    rows: list[int] = []
    columns: list[int] = []
    for row, group in enumerate(groups):
        start = len(group.prompt)
        for completion in group.continuations:
            # The first token follows the prompt, the others their predecessors.
            columns += [len(group.prompt) - 1, *range(start, start + len(completion) - 1)]
            rows += [row] * len(completion)
            start += len(completion)
    return rows, columns


def packed_log_probs(
    model: nn.Module, head: nn.Module, groups: Sequence[Group], pad_token_id: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every completion token, and the entropy there.

    The whole model is called, so that wrappers (autocast, data parallel) do their part; only what enters its
    head is picked.

    Args:
        model: a causal language model, wrapped or not.
        head: its output projection.
        groups: prompts with their completions.
        pad_token_id: fills shorter rows.
        temperature: logits are divided by it.

    Returns:
        two tensors (tokens,), in the order of the groups, their completions and their tokens; the entropies
        carry no gradient.
    """
    device = next(model.parameters()).device
    batch = {key: value.to(device) for key, value in pack(groups, pad_token_id).items()}
    rows, columns = (torch.tensor(places, device=device) for places in _places(groups))
    targets = torch.tensor(
        [t for g in groups for completion in g.continuations for t in completion], device=device
    )

    def pick(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][rows, columns][None],)

    handle = head.register_forward_pre_hook(pick)
    try:
        out = model(
            input_ids=batch["input_ids"],
            attention_mask=attention_mask(batch["segments"], next(model.parameters()).dtype),
            position_ids=batch["position_ids"],
            use_cache=False,
        )
    finally:
        handle.remove()
    logits = out.logits[0].float() / temperature
    total = logits.logsumexp(-1)
    found = logits.gather(-1, targets[:, None]).squeeze(-1) - total
    with torch.no_grad():
        # H = log Z - E[logit]: no second tensor of log-probabilities is kept.
        mean = torch.cat([(chunk.softmax(-1) * chunk).sum(-1) for chunk in logits.detach().split(128)])
        entropy = total.detach() - mean
    return found, entropy


def unpad(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_width: int
) -> tuple[list[Group], list[tuple[int, int]]]:
    """Padded rows as groups of equal prompts.

    Args:
        input_ids: (rows, prompt width + completion width), prompts padded left, completions right.
        attention_mask: the same shape; 0 at padding.
        completion_width: columns of the completions.

    Returns:
        the groups, and for each row its group and its place in the group.
    """
    split = input_ids.shape[1] - completion_width
    found: dict[tuple[int, ...], list[list[int]]] = {}
    places: list[tuple[tuple[int, ...], int]] = []
    for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
        prompt = tuple(token for token, real in zip(ids[:split], mask[:split], strict=True) if real)
        completion = [token for token, real in zip(ids[split:], mask[split:], strict=True) if real]
        completions = found.setdefault(prompt, [])
        completions.append(completion)
        places.append((prompt, len(completions) - 1))
    order = {prompt: number for number, prompt in enumerate(found)}
    groups = [Group(prompt, completions) for prompt, completions in found.items()]
    return groups, [(order[prompt], place) for prompt, place in places]


def repad(
    flat: torch.Tensor, groups: Sequence[Group], places: Sequence[tuple[int, int]], width: int
) -> torch.Tensor:
    """Values of completion tokens as (rows, width), 0 after a completion's end.

    Args:
        flat: from :func:`packed_log_probs`.
        groups: what it was computed on.
        places: from :func:`unpad`.
        width: columns of the completions.
    """
    parts = iter(flat.split([len(completion) for group in groups for completion in group.continuations]))
    by_group = [[next(parts) for _ in group.continuations] for group in groups]
    rows = [by_group[group][place] for group, place in places]
    return torch.stack([nn.functional.pad(row, (0, width - len(row))) for row in rows])
