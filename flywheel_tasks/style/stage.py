"""Stage ``style``: every comparison of the method's style-artifact control that the generation's data allows.

A feature that correlates with the reward, or jumps from one policy to the next, may be what the reward model likes: it
is flagged here, before it is optimised further, and the gate holds it against ``gate_rules.yaml``. Replies of a card
that asks for a feature say nothing of it: more of it is obedience there.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.evaluation.chat_templates import in_chat
from flywheel_tasks.evaluation.prompts import card_of, load_cards
from flywheel_tasks.evaluation.templates import Reply
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.storage.tables import read_rows
from flywheel_tasks.style.asked import asked_for
from flywheel_tasks.style.compare import can_flag, compare
from flywheel_tasks.style.features import FEATURES, Feature
from flywheel_tasks.style.found import found_features

NOT_KEPT = {"sft_to_dpo": "no replies of the SFT model to prompts that another policy answers are kept"}
# Reasons of candidates whose text nobody said: there is none, or the note on what was removed stands there.
NO_TEXT = frozenset({"empty", "identifier"})
Row = Mapping[str, Any]
CardOf = Callable[[Row], Card]  # the card of a prompt


@dataclass
class Pairs:
    """Two replies to each of some histories, with the user and the card of each.

    Attributes:
        rows: history, first reply, second reply.
        users: one a row.
        cards: one a row.
    """

    rows: list[tuple[Sequence[Turn], str, str]] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)

    def add(self, prompt: Row, card: Card, first: str, second: str) -> None:
        """Add two replies to a prompt; equal ones say nothing."""
        self.rows.append((prompt["history"], first, second))
        self.users.append(prompt["user_id"])
        self.cards.append(card)


def _own_card(row: Row) -> Card:
    """The card that a row has with it."""
    return Card.from_row({**row, "name": row["card_name"]})


def preference_pairs(rows: Sequence[Row]) -> Pairs:
    """Rejected, then chosen."""
    pairs = Pairs()
    for row in rows:
        pairs.add(row, _own_card(row), row["rejected"], row["chosen"])
    return pairs


def rewarded_pairs(candidates: Sequence[Row], prompts: Mapping[str, Row], card: CardOf) -> Pairs:
    """Of each prompt with two rewarded candidates: the one of least reward, then the one of most."""
    pairs = Pairs()
    rewarded = sorted(
        (row for row in candidates if row["reward"] is not None), key=lambda row: row["prompt_id"]
    )
    for prompt_id, group in groupby(rewarded, key=lambda row: row["prompt_id"]):
        ordered = sorted(group, key=lambda row: (row["reward"], row["candidate_id"]))
        if ordered[0]["reward"] < ordered[-1]["reward"]:
            prompt = prompts[prompt_id]
            pairs.add(prompt, card(prompt), ordered[0]["text"], ordered[-1]["text"])
    return pairs


def accepted_pairs(candidates: Sequence[Row], prompts: Mapping[str, Row], card: CardOf) -> Pairs:
    """Of each prompt with a kept candidate: every other candidate that has a text, then the kept one."""
    pairs = Pairs()
    for prompt_id, group in groupby(
        sorted(candidates, key=lambda row: (row["prompt_id"], row["candidate_id"])),
        key=lambda row: row["prompt_id"],
    ):
        rows = list(group)
        for kept in (row for row in rows if row["kept"]):
            for other in (row for row in rows if not row["kept"] and row["reason"] not in NO_TEXT):
                prompt = prompts[prompt_id]
                pairs.add(prompt, card(prompt), other["text"], kept["text"])
    return pairs


def policy_pairs(
    rows: Sequence[Row], prompts: Mapping[str, Row], card: CardOf, first: str, second: str
) -> Pairs:
    """Replies of two policies to the same held-out prompts, by column."""
    pairs = Pairs()
    for row in rows:
        prompt = prompts[row["prompt_id"]]
        pairs.add(prompt, card(prompt), row[first], row[second])
    return pairs


def generation_pairs(rows: Sequence[Row]) -> Pairs:
    """Champion, then candidate, on the evaluation prompts."""
    pairs = Pairs()
    for row in rows:
        pairs.add(row, _own_card(row), row["champion_reply"], row["candidate_reply"])
    return pairs


def compared(pairs: Pairs, features: Mapping[str, Feature], seed: int) -> dict[str, Any]:
    """One comparison as metrics.

    Args:
        pairs: first and second replies.
        features: what is compared.
        seed: of the permutations.

    Returns:
        counts of rows and users, whether so few users could show any change, each feature's figures, and
        ``asked_for``: of each feature that a card asks for, how many rows were left out for that, ``untold``: those
        of them of which too few users are left for any change to show.
    """
    by_card = {card: asked_for(card, features) for card in set(pairs.cards)}
    asked = [by_card[card] for card in pairs.cards]
    found = compare(pairs.rows, pairs.users, seed=seed, features=features, asked=asked)
    users = len(set(pairs.users))
    told = {item.feature for item in found if can_flag(item.users, len(found))}
    left_out = Counter(name for names in asked for name in names)
    return {
        "rows": len(pairs.rows),
        "users": users,
        "testable": can_flag(users, len(found)),
        "flagged": sum(item.flagged for item in found),
        "features": {item.feature: item.as_metrics() for item in found},
        "asked_for": dict(sorted(left_out.items())),
        "untold": sorted(left_out.keys() - told),
    }


def trend(points: Sequence[tuple[str, Sequence[tuple[Sequence[Turn], str]]]]) -> dict[str, Any]:
    """Mean of every registered feature at each point (policy), over the same prompts.

    Args:
        points: name of the policy, and its replies with their histories.
    """
    return {
        "points": [name for name, _ in points],
        "features": {
            name: [float(np.mean([feature.measure(*reply) for reply in replies])) for _, replies in points]
            for name, feature in FEATURES.items()
        },
    }


def run(io: StageIO) -> Mapping[str, Any]:
    """Return the comparisons, what could not be compared and why, and the trend over the stages.

    Raises:
        ValueError: a prompt has no card.
    """
    cards_path = io.dep("data/curated/cards.parquet")
    cards = load_cards(cards_path)

    def card(prompt: Row) -> Card:
        return card_of(prompt, cards, cards_path)

    trained, heldout = (
        {row["prompt_id"]: row for row in read_rows(io.dep(f"data/split/{name}.parquet"))}
        for name in ("policy_train", "policy_heldout")
    )
    candidates = read_rows(io.dep("data/rejection/candidates.parquet"))
    checks = read_rows(io.dep("data/rl/checks.parquet"))
    evaluated = read_rows(io.dep("data/evaluation/replies.parquet"))
    start = [row for row in checks if row["step"] == 0]
    rl = read_rows(io.dep("data/rl/heldout.parquet"))
    sets = {
        "chosen_vs_rejected": preference_pairs(read_rows(io.dep("data/preferences/pairs.parquet"))),
        "high_vs_low_reward": rewarded_pairs(candidates, trained, card),
        "accepted_vs_rejected": accepted_pairs(candidates, trained, card),
        "champion_to_start": policy_pairs(start, heldout, card, "champion_reply", "reply"),
        "start_to_rl": policy_pairs(rl, heldout, card, "before_reply", "after_reply"),
        "generation": generation_pairs(evaluated),
    }
    features = {**FEATURES, **found_features(*_searched(sets))}
    present = {name: pairs for name, pairs in sets.items() if pairs.rows}
    empty = {name: "there are no such replies in this generation" for name in sets if name not in present}
    return {
        "comparisons": {name: compared(pairs, features, io.settings.seed) for name, pairs in present.items()},
        "absent": {**NOT_KEPT, **empty},
        "found": [name for name in features if name not in FEATURES],
        "trend": trend(_points(start, rl, heldout)),
    }


def _searched(sets: Mapping[str, Pairs]) -> tuple[list[Reply], list[str]]:
    """Where templates and openings are looked for: the second replies, what the policies came to say.

    What a card says is its replies' to repeat, as what was said before.

    Returns:
        the replies, and the users' turns, the background.
    """
    replies: list[Reply] = []
    people: list[str] = []
    for name, pairs in sets.items():
        for (history, _, second), card in zip(pairs.rows, pairs.cards, strict=True):
            conversation = "\0".join(turn["content"] for turn in history) or f"{name}{len(replies)}"
            replies.append(in_chat(conversation, card, history, second))
            people += [turn["content"] for turn in history if turn["role"] == "user"]
    return replies, people


def _points(
    start: Sequence[Row], rl: Sequence[Row], prompts: Mapping[str, Row]
) -> list[tuple[str, list[tuple[Sequence[Turn], str]]]]:
    """Champion, and the policy before and after RL, on RL's held-out prompts; none where RL kept no replies.

    What RL starts from is the DPO model only if it was not drawn back to the champion, so it is not called that.
    """
    columns = (
        ("champion", start, "champion_reply"),
        ("before RL", rl, "before_reply"),
        ("after RL", rl, "after_reply"),
    )
    return [
        (name, [(prompts[row["prompt_id"]]["history"], row[column]) for row in rows])
        for name, rows, column in columns
        if rows
    ]
