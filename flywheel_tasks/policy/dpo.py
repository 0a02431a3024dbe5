"""Stage ``dpo``: direct preference optimisation on small sets of pairs, a patch for what a team saw go wrong.

Rafailov et al. 2023, "Direct Preference Optimization" (arXiv 2305.18290), equation 7: the loss of a pair is
-log sigmoid(beta * ((log p(c) - log p0(c)) - (log p(r) - log p0(r)))), p0 the model before this stage.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from flywheel_tasks.chat.fixed_date import dated_tokenizer
from flywheel_tasks.chat.prompt import prompt_ids, reply_ids
from flywheel_tasks.curation.sampling import draw_order, in_turns
from flywheel_tasks.pipeline.launcher import processes
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.policy.compact_head import vocabulary_at_labels
from flywheel_tasks.policy.named_sets import load_sets, pairs_of
from flywheel_tasks.policy.sft_data import cut_short_by_replies, prompt_limit
from flywheel_tasks.rewards.pairs import Pair, PairError, load_pairs
from flywheel_tasks.settings.policy import PREFERENCES
from flywheel_tasks.training.endings import check_trainer
from flywheel_tasks.training.lora import lora_config, merge_to_full
from flywheel_tasks.training.order import training_order, whole_steps
from flywheel_tasks.training.precision import set_threads
from flywheel_tasks.training.probe import load_model
from flywheel_tasks.training.run import train, trainer_arguments

_LOGGED = {"rewards/margins": "margin", "rewards/accuracies": "accuracy"}
CURVE = ("loss", *_LOGGED, "grad_norm", "learning_rate")
Row = dict[str, list[int]]


class Chosen(NamedTuple):
    """What is taken of a set.

    Attributes:
        available: pairs of it that can be learned.
        left_out_as_equal: pairs of it whose replies are equal once they are cut.
        used: to train on.
        unseen: as many at most, of prompts that are not trained on: to see whether what is learned carries over.
    """

    available: int
    left_out_as_equal: int
    used: list[Pair]
    unseen: list[Pair]


class EncodedDPOTrainer(DPOTrainer):
    """TRL's trainer for rows that are token ids already, as the sampler will see them."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


def choose_pairs(pairs: Sequence[Pair], most: int, seed: int) -> list[Pair]:
    """At most ``most`` pairs: one of every prompt before a second of any; which ones, the seed decides."""
    drawn = sorted(pairs, key=lambda pair: draw_order(seed, "dpo", pair.pair_id))
    return in_turns(drawn, lambda pair: pair.prompt_id)[:most]


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, pair: Pair, prompt_tokens: int, max_tokens: int
) -> Row | None:
    """Token ids of a pair: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``; replies end in the end token.

    The prompt gives way to the longer reply (but keeps half of ``max_tokens``), then replies are cut.

    Returns:
        the row, or None if both replies are equal once they are cut.
    """
    chosen, rejected = reply_ids(tokenizer, pair.chosen), reply_ids(tokenizer, pair.rejected)
    limit = prompt_limit([chosen, rejected], prompt_tokens, max_tokens)
    prompt = prompt_ids(tokenizer, pair.card, pair.history, limit)
    left = max_tokens - len(prompt)
    if chosen[:left] == rejected[:left]:
        return None
    return {"prompt_ids": prompt, "chosen_ids": chosen[:left], "rejected_ids": rejected[:left]}


def choose(pairs: Sequence[Pair], most: int, seed: int, left_out_as_equal: int) -> Chosen:
    """What to take of a set.

    Args:
        pairs: all of it that can be learned.
        most: pairs to train on.
        seed: of the draw.
        left_out_as_equal: its other pairs.
    """
    used = choose_pairs(pairs, most, seed)
    prompts = {pair.prompt_id for pair in used}
    others = [pair for pair in pairs if pair.prompt_id not in prompts]
    unseen = choose_pairs(others, min(len(used), len({pair.prompt_id for pair in others})), seed)
    # Of several processes each measures as many; the sampler would repeat some to make it so.
    unseen = unseen[: len(unseen) - len(unseen) % processes()]
    return Chosen(len(pairs), left_out_as_equal, used, unseen)


def chosen_pairs(io: StageIO, tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Chosen], dict[str, Row]]:
    """What is taken of each set of the settings, and the token ids of all pairs.

    Raises:
        PairError: the pairs table breaks a rule, or a set has no pair.
        PromptError: a named set is missing or has a bad row.
        OutgoingError: a named set holds an identifier that may not be learned.
    """
    section, settings = io.settings.dpo, io.settings
    named = section.sets
    sets = {name: pairs_of(rows) for name, rows in load_sets(io.dep("sets"), named, settings.privacy).items()}
    where = {name: f"sets/{name}.jsonl: no row with a rejected reply" for name in named}
    if PREFERENCES in section.pairs:
        table = io.dep("data/preferences/pairs.parquet")
        sets[PREFERENCES], where[PREFERENCES] = (
            load_pairs(table)["policy"],
            f"{table}: no pair with purpose policy",
        )
    encoded = {
        pair.pair_id: encode_pair(tokenizer, pair, settings.prompt.max_tokens, section.max_tokens)
        for pairs in sets.values()
        for pair in pairs
    }
    rows = {pair_id: row for pair_id, row in encoded.items() if row is not None}
    chosen = {}
    for name, pairs in sorted(sets.items()):
        differ = [pair for pair in pairs if pair.pair_id in rows]
        equal, most = len(pairs) - len(differ), section.pairs[name]
        chosen[name] = choose(differ, most, settings.seed, equal)
        if not differ:
            left_out = f" ({equal} are equal once cut to dpo.max_tokens)" if equal else ""
            raise PairError(f"{where[name]} to train on{left_out}; dpo.pairs wants up to {most}")
    return chosen, rows


def run(io: StageIO) -> Mapping[str, Any]:
    """Train the policy of the SFT stage on pairs and save the merged model.

    Raises:
        PairError, PromptError, OutgoingError: see :func:`chosen_pairs`.
        TrainingError: a reply that was not cut does not end in the end token (see
            :mod:`flywheel_tasks.training.endings`), or see :func:`flywheel_tasks.training.run.train`.
    """
    section, settings = io.settings.dpo, io.settings
    set_threads(settings.compute)
    start = io.dep("models/policy_sft")
    tokenizer = dated_tokenizer(start)
    sets, encoded = chosen_pairs(io, tokenizer)
    pairs = [pair for chosen in sets.values() for pair in chosen.used]
    rows = [encoded[pair.pair_id] for pair in pairs]
    short = cut_short_by_replies(
        tokenizer,
        ((pair.prompt_id, (pair.card, pair.history), [pair.chosen, pair.rejected]) for pair in pairs),
        settings.prompt.max_tokens,
        section.max_tokens,
        "dpo",
    )
    unseen = {
        name: Dataset.from_list([encoded[pair.pair_id] for pair in chosen.unseen])
        for name, chosen in sets.items()
        if chosen.unseen
    }
    lengths = [sum(map(len, row.values())) for row in rows]
    order = training_order(lengths, section.batch_size, section.epochs, settings.seed)
    order = whole_steps(order, section.batch_size, lambda row: row)
    steps = len(order) // section.batch_size
    arguments = DPOConfig(
        **trainer_arguments(
            io,
            section.learning_rate,
            section.batch_size,
            steps,
            warmup_steps=0,
            per_device_eval_batch_size=1,  # means of batches, so these must be equal
            eval_strategy="steps" if unseen else "no",
            eval_steps=steps,  # once, after the last one
        ),
        beta=section.beta,
        max_length=None,  # encoding has cut the rows
    )
    model = load_model(AutoModelForCausalLM, start, torch.float32, local_files_only=True)
    trainer = EncodedDPOTrainer(
        model=model,  # with adapters, the reference is the same model with them switched off
        args=arguments,
        train_dataset=Dataset.from_list([rows[index] for index in order]),
        eval_dataset=unseen or None,
        processing_class=tokenizer,
        peft_config=lora_config(section.lora, model.config, "CAUSAL_LM"),
    )
    names = [f"dpo: pair {pairs[index].pair_id}" for index in order]
    endings = check_trainer(trainer, names, tokenizer.eos_token_id, section.max_tokens)
    with vocabulary_at_labels():
        trained = train(
            trainer,
            io,
            curve=io.out("plots/dpo.csv"),
            columns=CURVE,
            longest_row=max(lengths),
            must_move=("lora_B",),
        )
    assert isinstance(trainer.model, PeftModel)
    probe = rows[0]["prompt_ids"] + rows[0]["chosen_ids"]
    merge_to_full(trainer.model, tokenizer, io.out("models/policy_dpo"), probe=probe)
    history = trainer.state.log_history
    return {
        "cut_short": short,
        "pairs": {"all": len(pairs), **dict(sorted(Counter(pair.kind for pair in pairs).items()))},
        "sets": {
            name: {
                "available": chosen.available,
                "left_out_as_equal": chosen.left_out_as_equal,
                "used": len(chosen.used),
                "unseen": _unseen(history, name, len(chosen.unseen)),
            }
            for name, chosen in sets.items()
        },
        "train": trained | endings | _last_means(history),
    }


def _unseen(history: Sequence[Mapping[str, float]], name: str, count: int) -> dict[str, float | None]:
    """Reward margin and accuracy on a set's pairs that were not trained on; None without such pairs."""
    logged = next((entry for entry in history if f"eval_{name}_loss" in entry), {})
    return {"n": count} | {shown: logged.get(f"eval_{key}") for key, shown in _LOGGED.items()}


def _last_means(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Reward margin and accuracy over the last fifth of the steps, as for the loss."""
    steps = [entry for entry in history if "loss" in entry]
    last = steps[-max(1, len(steps) // 5) :]
    return {f"{name}_last": sum(entry[key] for entry in last) / len(last) for key, name in _LOGGED.items()}
