"""Draws replies from a causal language model in batches; a prompt is read once, however many replies."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.chat.prompt import prompt_ids
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.policy.roomy_cache import make_room
from flywheel_tasks.policy.sentences import whole_sentences
from flywheel_tasks.policy.shared_beginnings import Begun, Portion, batches, can_share, portions
from flywheel_tasks.settings import Compute, Sampling
from flywheel_tasks.training.precision import device, resolve_dtype, set_threads
from flywheel_tasks.training.probe import load_model
from flywheel_tasks.training.progress import Meter

# Finished rows leave the batch when they are at least this share of it: moving the cache has its price too.
_COMPACT_SHARE = 0.125


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Token ids that end a reply: the tokenizer's and those of the model's generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = [*configured] if isinstance(configured, list | tuple) else [configured]
    return frozenset(int(token) for token in [tokenizer.eos_token_id, *ids] if token is not None)


def _told(
    follow: Callable[[list[int], list[int]], list[bool]],
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


class Sampler:
    """Temperature and top-k sampling with shared prefill.

    Replies depend only on the model, the prompts, ``n``, the settings and the seed, not on torch's global
    generator. They do depend on the batch that a prompt falls into, so ``batch_rows`` and the other prompts of a call
    matter too.

    Args:
        model_dir: a folder of ``save_pretrained`` with the tokenizer.
        sampling: how to draw.
        compute: precision and threads.
        max_prompt_tokens: prompts are cut to this many tokens, the oldest turns first.

    Raises:
        ProbeError: the model does not answer as it did when it was saved.
    """

    def __init__(
        self, model_dir: Path, *, sampling: Sampling, compute: Compute, max_prompt_tokens: int
    ) -> None:
        set_threads(compute)
        model = load_model(AutoModelForCausalLM, model_dir, resolve_dtype(compute), local_files_only=True)
        model.to(device())  # type: ignore[arg-type]
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        self._bind(model.eval(), tokenizer, sampling, max_prompt_tokens)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        sampling: Sampling,
        max_prompt_tokens: int,
    ) -> "Sampler":
        """A sampler of a model in memory, for example one in training (its mode is put back after each call).

        Args:
            model: a causal language model, with adapters or without, on its device.
            tokenizer: the model's, with a chat template.
            sampling: how to draw.
            max_prompt_tokens: as for the class.
        """
        sampler = cls.__new__(cls)
        sampler._bind(model, tokenizer, sampling, max_prompt_tokens)
        return sampler

    def _bind(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        max_prompt_tokens: int,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.max_prompt_tokens = max_prompt_tokens
        self.end_ids = end_ids(model, tokenizer)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad = int(pad)
        self._ends = torch.tensor(sorted(self.end_ids), device=model.device)
        self._shares = can_share(model.config)

    def sample(
        self, prompts: Sequence[tuple[Card, Sequence[Turn]]], n: int, seed: int, progress: str | None = None
    ) -> list[list[str]]:
        """Draw ``n`` replies to each prompt.

        Args:
            prompts: cards and histories that end with a user's turn.
            n: replies a prompt.
            seed: of the draw, at least 0.
            progress: what a line every few seconds is about, or None for silence.

        Returns:
            for each prompt, in the order given, its ``n`` replies: no special tokens, trimmed, maybe empty.
        """
        drawn = self.sample_replies(prompts, n, seed, progress)
        return [[reply.text for reply in replies] for replies in drawn]

    def sample_replies(
        self, prompts: Sequence[tuple[Card, Sequence[Turn]]], n: int, seed: int, progress: str | None = None
    ) -> list[list[Reply]]:
        """Draw ``n`` replies to each prompt, with their lengths. Args and order as :meth:`sample`."""
        rows = [prompt_ids(self.tokenizer, *prompt, self.max_prompt_tokens) for prompt in prompts]
        found: list[list[Reply]] = []
        for drawn in self.sample_ids(rows, n, seed, progress, alike=[card for card, _ in prompts]):
            ended = [ids[-1] in self.end_ids for ids in drawn]
            lengths = [len(ids) - end for ids, end in zip(drawn, ended, strict=True)]
            found.append([Reply(*parts) for parts in zip(self.decode(drawn), lengths, ended, strict=True)])
        return found

    def decode(self, replies: Sequence[Sequence[int]]) -> list[str]:
        """Texts of replies given as token ids, as a user sees them: special tokens removed, trimmed.

        A reply that the token limit cut off is shown up to its last whole sentence, if it has one. So no judge
        learns to tell replies by a cut that is ours, not the policy's.
        """
        texts = self.tokenizer.batch_decode([list(ids) for ids in replies], skip_special_tokens=True)
        ended = [bool(ids) and ids[-1] in self.end_ids for ids in replies]
        return [
            text.strip() if end else whole_sentences(text) or text.strip()
            for text, end in zip(texts, ended, strict=True)
        ]

    def sample_ids(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        seed: int,
        progress: str | None = None,
        alike: Sequence[Hashable] | None = None,
    ) -> list[list[list[int]]]:
        """Draw ``n`` replies to each prompt, as token ids.

        Args:
            prompts: token ids, none empty.
            n: replies a prompt, at least 1.
            seed: of the draw, at least 0.
            progress: what a line every few seconds is about, or None for silence.
            alike: of each prompt, its character or what else makes prompts begin alike; what those of one value have in
                common is read once. None: every prompt is read whole.

        Returns:
            for each prompt, in the order given, ``n`` lists of token ids. A reply that ended has its end
            token last; one that was cut off at ``max_new_tokens`` has none.

        Raises:
            ValueError: a prompt is empty, ``n`` is below 1, or the model gives logits that are not numbers.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        if empty := [i for i, prompt in enumerate(prompts) if not prompt]:
            raise ValueError(f"prompt {empty[0]} has no tokens")
        size = self.sampling.prompts_a_batch(n)
        if alike is None or not self._shares or len(prompts) <= size:  # of one batch, sharing would make two
            alike = range(len(prompts))
        results: list[list[list[int]]] = [[] for _ in prompts]
        meter, number = Meter(progress, len(prompts), "prompts"), 0
        with self._inference():
            for portion in portions(prompts, alike, size):
                for places, rows in self._drawn(portion, prompts, n, (seed, number)):
                    for k, place in enumerate(places):
                        results[portion.positions[place]] = rows[k * n : (k + 1) * n]
                    number += 1
                    meter.advance(len(places))
        return results

    def _drawn(
        self, portion: Portion, prompts: Sequence[Sequence[int]], n: int, first: tuple[int, int]
    ) -> Iterator[tuple[list[int], list[list[int]]]]:
        """The batches of a portion: the places of their prompts in it, and their rows.

        Args:
            portion: of the prompts.
            prompts: all of the draw.
            n: replies a prompt.
            first: the draw's seed and the number of the first batch.
        """
        begun = self._begin(portion.beginnings) if portion.beginnings else None
        rests = portion.rests(prompts)
        seed, start = first
        size = self.sampling.prompts_a_batch(n)
        for number, places in enumerate(batches([len(rest) for rest in rests], size), start):
            # A generator of its own for each batch, so that no other draw moves it.
            state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
            generator = torch.Generator(device=self.model.device).manual_seed(int(state[0]))
            started = None if begun is None else begun.of([portion.whose[i] for i in places])
            yield places, self._decode_batch([rests[i] for i in places], n, generator, begun=started)

    def follow(
        self,
        prompts: Sequence[Sequence[int]],
        generator: torch.Generator,
        step: Callable[[list[int], list[int]], list[bool]],
    ) -> None:
        """Draw one reply to each prompt as one batch, and tell each token as it is drawn.

        Args:
            prompts: token ids, none empty.
            generator: of the draw.
            step: takes the places of prompts and their next tokens (the end token too), and says which replies
                are over; it is not called again for these.

        Raises:
            ValueError: the model gives logits that are not numbers.
        """
        with self._inference():
            self._decode_batch(prompts, 1, generator, step)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Evaluation mode, no gradients; no autocast, whose cache would leak inference tensors."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), torch.autocast(self.model.device.type, enabled=False):
                yield
        finally:
            self.model.train(training)

    def _begin(self, beginnings: Sequence[Sequence[int]]) -> Begun:
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
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        cache: Cache = DynamicCache(config=self.model.config) if begun is None else begun.cache
        if begun is not None:
            mask = torch.cat([begun.mask, mask], 1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1], cache, mask

    def _decode_batch(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        generator: torch.Generator,
        follow: Callable[[list[int], list[int]], list[bool]] | None = None,
        begun: Begun | None = None,
    ) -> list[list[int]]:
        """Sample ``len(prompts) * n`` rows token by token; a row that ended leaves the batch soon."""
        logits, cache, mask = self._prefill(prompts, begun)
        logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
        width, limit = mask.shape[1], self.sampling.max_new_tokens
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
            out = self.model(
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
        top, ids = logits.float().topk(min(self.sampling.top_k, logits.shape[-1]), dim=-1)
        if not torch.isfinite(top).all():
            raise ValueError("the model's logits are not finite numbers; is the checkpoint damaged?")
        # The largest is subtracted before the division, so that a tiny temperature cannot overflow.
        chances = torch.softmax((top - top[:, :1]) / self.sampling.temperature, -1)
        return ids.gather(1, torch.multinomial(chances, 1, generator=generator)).squeeze(1)
