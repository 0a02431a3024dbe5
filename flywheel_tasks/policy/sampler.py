"""Draws replies from a causal language model in batches; a prompt is read once, however many replies."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.chat.fixed_date import dated_tokenizer
from flywheel_tasks.chat.prompt import prompt_ids
from flywheel_tasks.policy.decoding import Decoder, Follow
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.policy.sentences import whole_sentences
from flywheel_tasks.policy.shared_beginnings import Portion, batches, can_share, portions
from flywheel_tasks.settings import Compute, Sampling
from flywheel_tasks.training.cpu_steps import fused_attention
from flywheel_tasks.training.precision import device, resolve_dtype, set_threads
from flywheel_tasks.training.prepacked import prepack, prepacked
from flywheel_tasks.training.probe import load_model
from flywheel_tasks.training.progress import Meter


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Token ids that end a reply: the tokenizer's and those of the model's generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = [*configured] if isinstance(configured, list | tuple) else [configured]
    return frozenset(int(token) for token in [tokenizer.eos_token_id, *ids] if token is not None)


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
        tokenizer = dated_tokenizer(model_dir)
        prepack(model, sampling.batch_rows)
        self._bind(model.eval(), tokenizer, sampling, max_prompt_tokens, trained=False)

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
        sampler._bind(model, tokenizer, sampling, max_prompt_tokens, trained=True)
        return sampler

    def _bind(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        max_prompt_tokens: int,
        *,
        trained: bool,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.max_prompt_tokens = max_prompt_tokens
        self.end_ids = end_ids(model, tokenizer)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._decoder = Decoder(model, sampling, pad=int(pad), ends=self.end_ids)
        self._shares = can_share(model.config)
        self._trained = trained  # its weights change between draws

    def sample(
        self,
        prompts: Sequence[tuple[Card, Sequence[Turn]]],
        n: int,
        seed: int,
        progress: str | None = None,
        *,
        uncut: bool = False,
    ) -> list[list[str]]:
        """Draw ``n`` replies to each prompt.

        Args:
            prompts: cards and histories that end with a user's turn.
            n: replies a prompt.
            seed: of the draw, at least 0.
            progress: what a line every few seconds is about, or None for silence.
            uncut: as for :meth:`decode`.

        Returns:
            for each prompt, in the order given, its ``n`` replies: no special tokens, trimmed, maybe empty.
        """
        drawn = self.sample_replies(prompts, n, seed, progress, uncut=uncut)
        return [[reply.text for reply in replies] for replies in drawn]

    def sample_replies(
        self,
        prompts: Sequence[tuple[Card, Sequence[Turn]]],
        n: int,
        seed: int,
        progress: str | None = None,
        *,
        uncut: bool = False,
    ) -> list[list[Reply]]:
        """Draw ``n`` replies to each prompt, with their lengths. Args and order as :meth:`sample`."""
        rows = [prompt_ids(self.tokenizer, *prompt, self.max_prompt_tokens) for prompt in prompts]
        found: list[list[Reply]] = []
        for drawn in self.sample_ids(rows, n, seed, progress, alike=[card for card, _ in prompts]):
            ended = [ids[-1] in self.end_ids for ids in drawn]
            lengths = [len(ids) - end for ids, end in zip(drawn, ended, strict=True)]
            found.append(
                [Reply(*parts) for parts in zip(self.decode(drawn, uncut=uncut), lengths, ended, strict=True)]
            )
        return found

    def decode(self, replies: Sequence[Sequence[int]], *, uncut: bool = False) -> list[str]:
        """Texts of replies given as token ids, as a user sees them: special tokens removed, trimmed.

        A reply that the token limit cut off is shown up to its last whole sentence, if it has one. So no judge
        learns to tell replies by a cut that is ours, not the policy's.

        Args:
            replies: token ids, the end token last where the policy ended the reply.
            uncut: leave in what stands after the last whole sentence, for who must see an unfinished tool call.
        """
        texts = self.tokenizer.batch_decode([list(ids) for ids in replies], skip_special_tokens=True)
        ended = [bool(ids) and ids[-1] in self.end_ids for ids in replies]
        return [
            text.strip() if end or uncut else whole_sentences(text) or text.strip()
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
        begun = self._decoder.begin(portion.beginnings) if portion.beginnings else None
        rests = portion.rests(prompts)
        seed, start = first
        size = self.sampling.prompts_a_batch(n)
        for number, places in enumerate(batches([len(rest) for rest in rests], size), start):
            # A generator of its own for each batch, so that no other draw moves it.
            state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
            generator = torch.Generator(device=self.model.device).manual_seed(int(state[0]))
            started = None if begun is None else begun.of([portion.whose[i] for i in places])
            yield places, self._decoder.decode([rests[i] for i in places], n, generator, begun=started)

    def follow(
        self,
        prompts: Sequence[Sequence[int]],
        generator: torch.Generator,
        step: Follow,
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
            self._decoder.decode(prompts, 1, generator, step)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Evaluation mode, no gradients; no autocast, whose cache would leak inference tensors."""
        training = self.model.training
        self.model.eval()
        try:
            with ExitStack() as within:
                within.enter_context(torch.inference_mode())
                within.enter_context(torch.autocast(self.model.device.type, enabled=False))
                if self._trained:
                    within.enter_context(fused_attention(self.model))
                    within.enter_context(prepacked(self.model, self.sampling.batch_rows))
                yield
        finally:
            self.model.train(training)
