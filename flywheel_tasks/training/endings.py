"""Whether a completion that is learned ends where it should: in the end token.

A policy that never sees the end token learns to go on for ever, and a reward model reads its score there. It gets
lost in known ways: a trainer cuts a row once more, a collator takes it for padding where both are one token, an
encoding forgets it. So the check looks at what the trainer is given, after its collator, not at what was meant for it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from flywheel_tasks.training.order import batched
from flywheel_tasks.training.run import TrainingError

_IGNORED = -100


@dataclass(frozen=True)
class Completion:
    """What is learned of one row.

    Attributes:
        name: of the row, for a message.
        ids: its learned tokens.
        row_tokens: of the whole row, the prompt's too; padding is none.
    """

    name: str
    ids: Sequence[int]
    row_tokens: int


def check_endings(
    completions: Iterable[Completion], end_ids: frozenset[int], max_tokens: int | None
) -> dict[str, int]:
    """Check that each completion ends in an end token and has no other one.

    Args:
        completions: in any order, at least one.
        end_ids: tokens that end a reply.
        max_tokens: of a row. Only a row that has all of them may have lost its end to the limit: then it is counted,
            and nothing is learned of its end. None: no row may.

    Returns:
        ``completions`` and ``cut``, those without an end.

    Raises:
        TrainingError: a completion is empty, does not end in an end token though it was not cut, or goes on after one,
            or its row is longer than the limit. The message names the row.
    """
    count = cut = 0
    for one in completions:
        count += 1
        if not one.ids:
            raise TrainingError(f"{one.name}: the completion has no token to learn")
        if max_tokens is not None and one.row_tokens > max_tokens:
            raise TrainingError(f"{one.name}: the row has {one.row_tokens} tokens, more than {max_tokens}")
        if inner := [place for place, token in enumerate(one.ids[:-1]) if token in end_ids]:
            raise TrainingError(
                f"{one.name}: the completion has an end token at {inner[0] + 1} of {len(one.ids)} tokens and goes on"
            )
        if one.ids[-1] in end_ids:
            continue
        if one.row_tokens != max_tokens:
            limit = "none may be cut" if max_tokens is None else f"only at {max_tokens} may it be cut"
            raise TrainingError(
                f"{one.name}: the completion ends in token {one.ids[-1]} and not in an end token "
                f"({one.row_tokens} tokens in all, {limit})"
            )
        cut += 1
    return {"completions": count, "cut": cut}


def learned(batch: dict[str, torch.Tensor]) -> Iterator[tuple[list[int], int]]:
    """Learned tokens and the length of each row of a collated batch, as TRL's SFT and DPO trainers get it.

    Args:
        batch: ``input_ids`` and ``attention_mask`` (rows, width), and ``labels``, which are ignored ones where nothing
            is learned, or ``completion_mask``, which is 0 there.
    """
    kept = batch["labels"] != _IGNORED if "labels" in batch else batch["completion_mask"].bool()
    for ids, mask, real in zip(batch["input_ids"], kept, batch["attention_mask"], strict=True):
        yield ids[mask].tolist(), int(real.sum())


def check_trainer(trainer: Trainer, names: Sequence[str], end_id: int, max_tokens: int) -> dict[str, int]:
    """:func:`check_endings` of all that a trainer of SFT or DPO will learn, as its own collator gives it.

    Args:
        trainer: ready to train.
        names: of its rows, in order; those of a pair get ``, chosen`` or ``, rejected`` added.
        end_id: the token that ends a reply.
        max_tokens: of a row.

    Raises:
        TrainingError: see there; or the trainer has not kept the rows that it was given, or none ends in the end token.
    """
    rows: Any = trainer.train_dataset
    if len(rows) != len(names):
        raise TrainingError(f"the trainer has {len(rows)} rows of {len(names)} that it was given")
    collate: Any = trainer.data_collator

    def found() -> Iterator[Completion]:
        for piece in batched(range(len(names)), trainer.args.per_device_train_batch_size):
            completions = list(learned(collate([rows[place] for place in piece])))
            sides = [""] if len(completions) == len(piece) else [", chosen", ", rejected"]
            called = [f"{names[place]}{side}" for side in sides for place in piece]
            for name, (ids, tokens) in zip(called, completions, strict=True):
                yield Completion(name, ids, tokens)

    counts = check_endings(found(), frozenset([end_id]), max_tokens)
    if counts["cut"] == counts["completions"]:
        raise TrainingError(
            f"all {counts['cut']} completions are cut at {max_tokens} tokens: the model would never learn to end"
        )
    return counts
