"""Stage annotation_batch: candidate replies of a pool of policies to prompts, as tasks for annotators.

Candidates are always drawn anew (near-policy, several a prompt); the logged reply is not among them. Only rewrite tasks
are made of logged replies: those that users disliked, or that break the card.
"""

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

from flywheel_tasks.annotation.gold import gold_tasks, load_gold, mixed
from flywheel_tasks.annotation.tasks import (
    SPLIT_OF,
    AnnotationError,
    Question,
    id_of_task,
    questions,
    short_id,
)
from flywheel_tasks.chat.card import Card
from flywheel_tasks.curation.sampling import draw_order, stratified
from flywheel_tasks.evaluation.instructions import share_kept
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.policy.drawing import draw, unanswered
from flywheel_tasks.policy.pool import open_pool, share_out
from flywheel_tasks.privacy.said import identifiers_said
from flywheel_tasks.settings import AnnotationBatch
from flywheel_tasks.storage.documents import read_json, write_jsonl
from flywheel_tasks.storage.tables import read_rows

Row = dict[str, Any]
DISLIKED = frozenset({"thumb_down", "regenerate"})


def choose_prompts(rows: Sequence[Row], most: int, seed: int, purpose: str) -> list[Row]:
    """At most ``most`` prompts in the split's own mix of sources, in the order given.

    Args:
        rows: prompts of a split.
        most: prompts wanted.
        seed: of the draw.
        purpose: of the tasks.
    """
    sources = Counter(row["source"] for row in rows)
    chosen = stratified(rows, lambda row: row["source"], sources, most, seed, f"annotation {purpose}")
    return [row for row in rows if row["prompt_id"] in chosen]


def distinct(replies: Sequence[tuple[str, str]], unfit: Collection[str] = ()) -> list[tuple[str, str]]:
    """Pairs of policy and reply without empty replies, repeats (spacing aside), and unfit ones, in order.

    Args:
        replies: pairs.
        unfit: replies that may not be offered, for they hold an identifier.
    """
    found: dict[str, tuple[str, str]] = {}
    for policy, reply in replies:
        if reply.strip() and reply not in unfit:
            found.setdefault(" ".join(reply.split()), (policy, reply))
    return list(found.values())


def reviews_of(settings: AnnotationBatch, purpose: str, prompt_id: str, seed: int) -> int:
    """Reviews that a task asks for; of those with one, a share that the seed draws gets several."""
    reviews = settings.reviews[purpose]
    drawn = int(draw_order(seed, "annotation overlap", prompt_id)[:8], 16) / 16**8
    if reviews == 1 and drawn < settings.overlap.share:
        return settings.overlap.reviews
    return reviews


class TaskMaker:
    """Makes the rows of ``batch.jsonl``.

    Args:
        settings: of the batch.
        seed: of the order in which replies are shown, and of the overlap.
        cards: rows by card id.
    """

    def __init__(self, settings: AnnotationBatch, seed: int, cards: Mapping[str, Row]) -> None:
        self._settings, self._seed, self._cards = settings, seed, cards
        self._questions: list[Question] = questions([row.model_dump() for row in settings.questions])

    def make(
        self, kind: str, purpose: str, prompt: Mapping[str, Any], replies: Sequence[tuple[str, str]]
    ) -> Row:
        """One task. The order of the replies is drawn; ``drawn`` records each reply's place before.

        Args:
            kind: comparison, steerability or rewrite.
            purpose: reward_train, reward_heldout or policy.
            prompt: a row of the split.
            replies: policy and text of each candidate.
        """
        # A rewrite task may be about a prompt that has a task of its own.
        apart = (kind,) if kind == "rewrite" else ()
        # The order is drawn by the prompt, not by the id: that comes of what is shown, and in which order.
        key = f"t-{short_id(purpose, prompt['prompt_id'], *apart)}"
        shown = list(range(len(replies)))
        random.Random(f"order|{self._seed}|{key}").shuffle(shown)
        card, history = self._cards[prompt["card_id"]], prompt["history"]
        task_id = id_of_task(key, card, history, [replies[k][1] for k in shown])
        return {
            "task_id": task_id,
            "kind": kind,
            "purpose": purpose,
            "prompt_id": prompt["prompt_id"],
            "user_id": prompt["user_id"],
            "source": prompt["source"],
            "reviews": reviews_of(self._settings, purpose, prompt["prompt_id"], self._seed),
            "card": card,
            "history": history,
            "candidates": [
                {
                    "candidate_id": f"{task_id}-c{place}",
                    "policy": replies[k][0],
                    "text": replies[k][1],
                    "drawn": k,
                }
                for place, k in enumerate(shown)
            ],
            "questions": self._questions,
            "guidelines": self._settings.guidelines,
        }


def to_rewrite(rows: Sequence[Row], cards: Mapping[str, Row], most: int, seed: int) -> list[Row]:
    """At most ``most`` prompts whose logged reply is bad.

    First those that users disliked (thumb down, regenerate), then those that break something of the card that code can
    check; the seed draws within both.

    Args:
        rows: prompts of a split.
        cards: rows by card id.
        most: prompts wanted.
        seed: of the draw.
    """

    def breaks_card(row: Row) -> bool:
        kept = share_kept(Card.from_row(cards[row["card_id"]]), row["reply"])
        return kept is not None and kept < 1

    replied = [row for row in rows if (row["reply"] or "").strip()]
    disliked = [row for row in replied if DISLIKED & set(row["signals"] or ())]
    broken = [row for row in replied if row not in disliked and breaks_card(row)]
    drawn = (
        sorted(part, key=lambda row: draw_order(seed, "annotation rewrite", row["prompt_id"]))
        for part in (disliked, broken)
    )
    return list(chain.from_iterable(drawn))[:most]


def _counts(tasks: Sequence[Row], asked: Mapping[str, int], dropped: Counter[str]) -> dict[str, Any]:
    drawn = [task for task in tasks if task["kind"] != "rewrite"]
    return {
        purpose: {
            "prompts": asked[purpose],
            "tasks": sum(task["purpose"] == purpose for task in drawn),
            "dropped_too_few_candidates": dropped[purpose],
            "by_source": dict(
                sorted(Counter(task["source"] for task in drawn if task["purpose"] == purpose).items())
            ),
        }
        for purpose in SPLIT_OF
    }


def _wanted(io: StageIO, cards: Mapping[str, Row]) -> tuple[list[tuple[str, Row]], list[Row]]:
    """Prompts with their purpose, and prompts whose logged reply is to be rewritten."""
    settings, seed = io.settings.annotation_batch, io.settings.seed
    most = {
        "reward_train": settings.max_reward_train,
        "reward_heldout": settings.max_reward_heldout,
        "policy": settings.max_policy,
    }
    splits = {
        purpose: read_rows(io.dep(f"data/split/{split}.parquet")) for purpose, split in SPLIT_OF.items()
    }
    if unknown := [
        row["prompt_id"] for rows in splits.values() for row in rows if row["card_id"] not in cards
    ]:
        raise AnnotationError(f"data/curated/cards.parquet: no card for prompt {unknown[0]}")
    wanted = [
        (purpose, row)
        for purpose, rows in splits.items()
        for row in choose_prompts(rows, most[purpose], seed, purpose)
    ]
    return wanted, to_rewrite(splits["policy"], cards, settings.max_rewrite, seed)


def _candidates(
    io: StageIO, prompts: Sequence[tuple[Card, Any]]
) -> tuple[list[list[tuple[str, str]]], dict[str, int]]:
    """Policy and reply of every candidate of each prompt; and to how many prompts each policy gave no answer."""
    pool = open_pool(
        io.settings.annotation_batch.pool,
        read_json(io.dep("inputs/pool.json")),
        io.root,
        sampling=io.settings.sampling,
        compute=io.settings.compute,
        max_prompt_tokens=io.settings.prompt.max_tokens,
    )
    found: list[list[tuple[str, str]]] = [[] for _ in prompts]
    silent: dict[str, int] = {}
    for policy, n in share_out(pool, io.settings.annotation_batch.candidates):
        drawn = draw(policy, prompts, n, io.settings.seed, io.resume_dir())
        silent[policy.name] = unanswered(drawn)
        for candidates, replies in zip(found, drawn, strict=True):
            candidates += [(policy.policy_id, reply.text) for reply in replies]
    return found, silent


def run(io: StageIO) -> Mapping[str, Any]:
    """Draw candidates for prompts of each purpose and write ``data/annotation/batch.jsonl``.

    Returns:
        prompts, tasks and dropped prompts by purpose; candidates drawn and kept, kept ones by policy; prompts that a
        policy gave no answer to; tasks by kind.

    Raises:
        AnnotationError: no prompt has two distinct candidates, or a prompt's card is missing.
        PoolError: a policy is not what was pinned, or a remote one does not answer.
    """
    settings = io.settings.annotation_batch
    cards = {row["card_id"]: row for row in read_rows(io.dep("data/curated/cards.parquet"))}
    wanted, bad = _wanted(io, cards)
    prompts = [(Card.from_row(cards[row["card_id"]]), row["history"]) for _, row in wanted]
    found, silent = _candidates(io, prompts)
    texts = [reply for replies in found for _, reply in replies]
    unfit = identifiers_said(texts, io.settings.privacy, (card["name"] for card in cards.values()))
    maker, tasks, dropped = TaskMaker(settings, io.settings.seed, cards), list[Row](), Counter[str]()
    for (purpose, row), replies in zip(wanted, found, strict=True):
        kept = distinct(replies, unfit)
        if len(kept) < 2:
            dropped[purpose] += 1
        else:
            tasks.append(maker.make(settings.kinds[purpose], purpose, row, kept))
    if not tasks:
        raise AnnotationError(f"inputs/pool.json: none of {len(wanted)} prompts got two distinct candidates")
    tasks += [
        maker.make("rewrite", "policy", row, [(f"logged@{row['reply_model']}", row["reply"])]) for row in bad
    ]
    kept_by = Counter(
        candidate["policy"] for task in tasks if task["kind"] != "rewrite" for candidate in task["candidates"]
    )
    gold = gold_tasks(load_gold(io.dep("gold_items")), tasks, settings.gold_share, io.settings.seed)
    tasks = mixed(tasks, gold, io.settings.seed)
    write_jsonl(tasks, io.out("data/annotation/batch.jsonl"))
    return {
        **_counts(tasks, Counter(purpose for purpose, _ in wanted), dropped),
        "candidates_drawn": sum(map(len, found)),
        "candidates_with_identifiers": sum(text in unfit for text in texts),
        "candidates_kept": sum(kept_by.values()),
        "candidates_by_policy": dict(sorted(kept_by.items())),
        "unanswered": silent,
        "gold": {"tasks": len(gold), "share": len(gold) / len(tasks)},
        "kinds": dict(sorted(Counter(task["kind"] for task in tasks).items())),
        "reviews_asked": sum(task["reviews"] for task in tasks),
    }
