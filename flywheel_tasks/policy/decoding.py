"""Decodes one batch of prompts token by token: prefill, temperature and top-k sampling, rows that end leave."""

from collections.abc import Callable, Collection, Sequence

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from flywheel_tasks.policy.roomy_cache import make_room
from flywheel_tasks.policy.shared_beginnings import Begun
from flywheel_tasks.settings import Sampling

# Finished rows leave the batch when they are at least this share of it: moving the cache has its price too.
_COMPACT_SHARE = 0.125
# Takes the places of rows and their next tokens; says which rows are over.
Follow = Callable[[list[int], list[int]], list[bool]]


def _told(
    follow: Follow,
    alive: torch.Tensor,
    drawn: torch.Tensor,
    ended: torch.Tensor,
) -> torch.Tensor:
    """Tell the tokens of the rows that go on; which of all rows are over now."""
    going = (~ended).nonzero().squeeze(1)
    over = follow(alive[going].tolist(), drawn[going].tolist())
    told = ended.clone()
    told[going] = torch.tensor(over, device=ended.device)
    return told


class Decoder:
    """Draws the tokens of one batch; mode, gradients and autocast are the caller's.

    Args:
        model: a causal language model, on its device.
        sampling: how to draw.
        pad: token id that fills up short prompts.
        ends: token ids that end a reply.
    """

    def __init__(
        self, model: PreTrainedModel, sampling: Sampling, *, pad: int, ends: Collection[int]
    ) -> None:
        self._model = model
        self._sampling = sampling
        self._pad = pad
        self._ends = torch.tensor(sorted(ends), device=model.device)

    def begin(self, beginnings: Sequence[Sequence[int]]) -> Begun:
        """Read what prompts begin with."""
        _, cache, mask = self._prefill(beginnings)
        return Begun(cache, mask)

    def _prefill(
        self, prompts: Sequence[Sequence[int]], begun: Begun | None = None
    ) -> tuple[torch.Tensor, Cache, torch.Tensor]:
        """Read the prompts, left-padded.

        Args:
            prompts: token ids; where something was read before, what follows it.
            begun: what was read of each prompt; its cache is filled further.

        Returns:
            logits of the next token (prompts, vocabulary), the cache, the attention mask (prompts, width).
        """
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), self._pad)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        cache: Cache = DynamicCache(config=self._model.config) if begun is None else begun.cache
        if begun is not None:
            mask = torch.cat([begun.mask, mask], 1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        out = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1], cache, mask

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        generator: torch.Generator,
        follow: Follow | None = None,
        begun: Begun | None = None,
    ) -> list[list[int]]:
        """Sample ``len(prompts) * n`` rows token by token; a row that ended leaves the batch soon.

        Args:
            prompts: token ids; where something was read before, what follows it.
            n: rows a prompt.
            generator: of the draw.
            follow: is told the tokens as they are drawn, and says which rows are over; None: an end token ends a row.
            begun: what was read of each prompt; its cache is filled further.

        Returns:
            the tokens of each row, the end token too; those of one prompt stand together.

        Raises:
            ValueError: the model gives logits that are not numbers.
        """
        logits, cache, mask = self._prefill(prompts, begun)
        logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
        width, limit = mask.shape[1], self._sampling.max_new_tokens
        cache.batch_repeat_interleave(n)
        make_room(cache, limit)
        rows = mask.shape[0]
        positions = mask.sum(-1, keepdim=True)
        mask = torch.cat([mask, mask.new_ones((rows, limit))], 1)
        tokens = torch.full((rows, limit), -1, device=mask.device)
        alive = torch.arange(rows, device=mask.device)  # the row of each batch entry
        ended = torch.zeros(rows, dtype=torch.bool, device=mask.device)  # by batch entry
        for step in range(limit):
            drawn = self._draw(logits, generator)
            tokens[alive, step] = torch.where(ended, -1, drawn)
            ended |= torch.isin(drawn, self._ends) if follow is None else _told(follow, alive, drawn, ended)
            finished = int(ended.sum())
            if finished == len(alive) or step == limit - 1:
                break
            if finished >= _COMPACT_SHARE * len(alive):
                keep = (~ended).nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                alive, drawn, mask, positions = alive[keep], drawn[keep], mask[keep], positions[keep]
                ended = ended[keep]
            out = self._model(
                input_ids=drawn[:, None],
                attention_mask=mask[:, : width + step + 1],
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            logits = out.logits[:, -1]
            positions = positions + 1
        return [[token for token in row if token >= 0] for row in tokens.tolist()]

    def _draw(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One token for each row, (rows, vocabulary) -> (rows,): top-k first, then the softmax."""
        top, ids = logits.float().topk(min(self._sampling.top_k, logits.shape[-1]), dim=-1)
        if not torch.isfinite(top).all():
            raise ValueError("the model's logits are not finite numbers; is the checkpoint damaged?")
        # The largest is subtracted before the division, so that a tiny temperature cannot overflow.
        chances = torch.softmax((top - top[:, :1]) / self._sampling.temperature, -1)
        return ids.gather(1, torch.multinomial(chances, 1, generator=generator)).squeeze(1)
