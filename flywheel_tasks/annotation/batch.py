"""Stage annotation_batch: the champion's candidate replies to prompts, as tasks for annotators.

Candidates are always drawn anew (near-policy, several a prompt); the logged reply is not among them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_tasks.annotation.tasks import QUESTIONS, SPLIT_OF, AnnotationError, short_id
from flywheel_tasks.chat.card import Card
from flywheel_tasks.curation.sampling import stratified
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import write_jsonl
from flywheel_tasks.storage.tables import read_rows

Row = dict[str, Any]


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


def distinct(replies: Sequence[str]) -> list[str]:
    """Replies without empty ones and without repeats (spacing aside), in order."""
    found: dict[str, str] = {}
    for reply in replies:
        if reply.strip():
            found.setdefault(" ".join(reply.split()), reply)
    return list(found.values())


def make_task(purpose: str, prompt: Mapping[str, Any], card: Row, replies: Sequence[str], policy: str) -> Row:
    """One row of ``batch.jsonl``.

    Args:
        purpose: reward_train, reward_heldout or policy.
        prompt: a row of the split.
        card: its card's row.
        replies: distinct candidates.
        policy: id of the model that wrote them.
    """
    task_id = f"t-{short_id(purpose, prompt['prompt_id'])}"
    return {
        "task_id": task_id,
        "purpose": purpose,
        "prompt_id": prompt["prompt_id"],
        "user_id": prompt["user_id"],
        "source": prompt["source"],
        "card": card,
        "history": prompt["history"],
        "candidates": [
            {"candidate_id": f"{task_id}-c{number}", "policy": policy, "text": text}
            for number, text in enumerate(replies)
        ],
        "questions": list(QUESTIONS),
    }


def _counts(tasks: Sequence[Row], asked: Mapping[str, int], dropped: Counter[str]) -> dict[str, Any]:
    return {
        purpose: {
            "prompts": asked[purpose],
            "tasks": sum(task["purpose"] == purpose for task in tasks),
            "dropped_too_few_candidates": dropped[purpose],
            "by_source": dict(
                sorted(Counter(task["source"] for task in tasks if task["purpose"] == purpose).items())
            ),
        }
        for purpose in SPLIT_OF
    }


def run(io: StageIO) -> Mapping[str, Any]:
    """Draw candidates for prompts of each purpose and write ``data/annotation/batch.jsonl``.

    Returns:
        prompts, tasks and dropped prompts by purpose; candidates drawn and kept.

    Raises:
        AnnotationError: no prompt has two distinct candidates, or a prompt's card is missing.
    """
    settings, seed = io.settings.annotation_batch, io.settings.seed
    most = {
        "reward_train": settings.max_reward_train,
        "reward_heldout": settings.max_reward_heldout,
        "policy": settings.max_policy,
    }
    cards = {row["card_id"]: row for row in read_rows(io.dep("data/curated/cards.parquet"))}
    wanted: list[tuple[str, Row]] = []
    for purpose, split in SPLIT_OF.items():
        rows = read_rows(io.dep(f"data/split/{split}.parquet"))
        wanted += [(purpose, row) for row in choose_prompts(rows, most[purpose], seed, purpose)]
    if unknown := [row["prompt_id"] for _, row in wanted if row["card_id"] not in cards]:
        raise AnnotationError(f"data/curated/cards.parquet: no card for prompt {unknown[0]}")
    champion = io.dep("inputs/champion")
    sampler = Sampler(
        champion,
        sampling=io.settings.sampling,
        compute=io.settings.compute,
        max_prompt_tokens=io.settings.prompt.max_tokens,
    )
    prompts = [(Card.from_row(cards[row["card_id"]]), row["history"]) for _, row in wanted]
    drawn = sampler.sample(prompts, settings.candidates, seed, progress="Candidates of the champion")
    policy = f"champion@{tree_digest(champion).removeprefix('sha256:')[:12]}"
    tasks: list[Row] = []
    dropped: Counter[str] = Counter()
    for (purpose, row), replies in zip(wanted, drawn, strict=True):
        kept = distinct(replies)
        if len(kept) < 2:
            dropped[purpose] += 1
        else:
            tasks.append(make_task(purpose, row, cards[row["card_id"]], kept, policy))
    if not tasks:
        raise AnnotationError(f"inputs/champion: none of {len(wanted)} prompts got two distinct candidates")
    write_jsonl(tasks, io.out("data/annotation/batch.jsonl"))
    return {
        **_counts(tasks, Counter(purpose for purpose, _ in wanted), dropped),
        "candidates_drawn": sum(map(len, drawn)),
        "candidates_kept": sum(len(task["candidates"]) for task in tasks),
    }
