"""Stage ``evaluate``: replies of candidate and champion to the same fresh prompts, judged and measured.

Paper, offline evaluation: win rates by the pointwise and the pairwise reward model, on user and on internal
prompts; production metrics. The pairwise model trains no policy, so it can judge what the pointwise
model optimised.
"""

import gc
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.chat.prompt import cut_short
from flywheel_tasks.evaluation import production, suites, win_rate
from flywheel_tasks.evaluation.intervals import mean, share
from flywheel_tasks.evaluation.judge import Kept, describe, judged, open_judge
from flywheel_tasks.evaluation.judging import Judging
from flywheel_tasks.evaluation.prompts import card_of, check_disjoint, load_cards, select, trained_cards
from flywheel_tasks.evaluation.refusal_detector import Detector, open_detector
from flywheel_tasks.evaluation.replies import REPLIES
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.privacy.outgoing import kept_types
from flywheel_tasks.rewards.scoring import PairwiseScorer, PointwiseScorer
from flywheel_tasks.safety.classifier import classifier_of, unsafe
from flywheel_tasks.safety.requests import own_words
from flywheel_tasks.safety.words import WordLists
from flywheel_tasks.storage.tables import read_rows, write_rows

SIDES = ("champion", "candidate")
_JUDGED = ("inputs/champion", "models/policy", "models/pointwise_rm", "models/pairwise_rm")
Answers = Mapping[str, Sequence[Mapping[str, float | None]] | None]


def run(io: StageIO) -> Mapping[str, Any]:
    """Write ``data/evaluation/replies.parquet`` and return the metrics.

    Raises:
        LeakError: an evaluated user is in a training split.
        ValueError: a prompt has no card, or a judge gives a number that is none.
    """
    check_disjoint(io.dep("data/split"))
    prompts = select(
        read_rows(io.dep("data/split/evaluation.parquet")), io.settings.evaluate.prompts, io.settings.seed
    )
    cards_path = io.dep("data/curated/cards.parquet")
    cards = load_cards(cards_path)
    asked = [(card_of(prompt, cards, cards_path), prompt["history"]) for prompt in prompts]
    rows = [
        _row(prompt, card, sample)
        for prompt, (card, _) in zip(prompts, asked, strict=True)
        for sample in range(io.settings.evaluate.samples)
    ]
    # A judge that cannot be used is an error before anything is drawn.
    judge = open_judge(io.settings.evaluate.judge, io.settings.compute, [io.dep(path) for path in _JUDGED])
    if judge is not None:
        judge = Kept(judge, io.resume_dir() / f"judge-{judge.identity}.jsonl")
    classifier = classifier_of(io.settings, io.dep("safety_words"))
    drawn, short = _reply(io, rows, asked)
    _judge(io, rows)
    out = io.out("data/evaluation")
    out.mkdir(parents=True)
    write_rows(rows, REPLIES, out / "replies.parquet")
    answers = {
        side: judged(judge, [(_card(row), row["history"], row[f"{side}_reply"]) for row in rows])
        if judge
        else None
        for side in SIDES
    }
    texts = [row[f"{side}_reply"] for row in rows for side in SIDES]
    withheld = unsafe(classifier, texts, io.settings.safety.threshold)
    asked_cards = {card.card_id: card for card, _ in asked}
    detector = open_detector(io.dep("models/embedder"), io.settings.compute)
    trained = [cards[card] for card in trained_cards(io.dep("data/split")) if card in cards]
    kept = kept_types(io.settings.privacy.policy)
    listed = own_words(io.dep("safety_words"), io.settings.curate.blocked_words)
    return {
        **measure(rows, drawn, answers, detector, trained, withheld, kept, listed),
        **describe(judge),
        "cut_short": short,
        "refusal_detector": {"by": detector.name} | ({"why": detector.why} if detector.why else {}),
        "suites": _suites(io, asked_cards, judge, detector),
    }


def _suites(
    io: StageIO, cards: Mapping[str, Card], judge: Judging | None, detector: Detector
) -> dict[str, Any]:
    """The candidate's results on the suites that the settings name; none are run by default."""
    names = list(dict.fromkeys(io.settings.evaluate.suites))
    if not names:
        return {}
    sampler = Sampler(
        io.dep("models/policy"),
        sampling=io.settings.sampling,
        compute=io.settings.compute,
        max_prompt_tokens=io.settings.prompt.max_tokens,
    )
    found: dict[str, Any] = {}
    for name in names:
        chats = suites.asked(name, cards)
        # Cut back to whole sentences, an unfinished call would be no call at all.
        uncut = name == suites.TOOL_CALLS
        drawn = sampler.sample(chats, 1, io.settings.seed, f"{name} replies", uncut=uncut)
        replies = [reply for (reply,) in drawn]
        judging = judge if name == suites.RED_TEAM else None
        answers = judged(judging, [(*chat, reply) for chat, reply in zip(chats, replies, strict=True)])
        unsafe = [answer.get("safety_violation") for answer in answers]
        found[name] = suites.measured(name, cards, chats, replies, unsafe, detector)
        if judging and (silent := unsafe.count(None)) and found[name]["value"] is not None:
            found[name]["reason"] = (
                f"no answer to {silent} of {len(replies)}, of which only a refusal counts as safe"
            )
    return found


def _row(prompt: Mapping[str, Any], card: Card, sample: int) -> dict[str, Any]:
    return {
        "prompt_id": prompt["prompt_id"],
        "sample": sample,
        "source": prompt["source"],
        "user_id": prompt["user_id"],
        "card_id": card.card_id,
        "card_name": card.name,
        "traits": list(card.traits),
        "instructions": list(card.instructions),
        "history": list(prompt["history"]),
    }


def _card(row: Mapping[str, Any]) -> Card:
    return Card.from_row({**row, "name": row["card_name"]})


def _reply(
    io: StageIO, rows: list[dict[str, Any]], asked: Sequence[tuple[Card, Sequence[Turn]]]
) -> tuple[dict[str, list[Reply]], dict[str, int]]:
    """Fill in both policies' replies, drawn with one seed.

    Returns:
        the replies as drawn, and how many prompts the candidate was not shown whole.
    """
    drawn: dict[str, list[Reply]] = {}
    short: dict[str, int] = {}
    folders: dict[str, Path] = {"champion": io.dep("inputs/champion"), "candidate": io.dep("models/policy")}
    for side in SIDES:
        sampler = Sampler(
            folders[side],
            sampling=io.settings.sampling,
            compute=io.settings.compute,
            max_prompt_tokens=io.settings.prompt.max_tokens,
        )
        found = sampler.sample_replies(
            asked, io.settings.evaluate.samples, io.settings.seed, f"{side} replies"
        )
        drawn[side] = [reply for replies in found for reply in replies]
        if side == "candidate":
            short = cut_short(sampler.tokenizer, asked, sampler.max_prompt_tokens)
        del sampler  # two models at once would double the memory
        gc.collect()
        for row, reply in zip(rows, drawn[side], strict=True):
            row[f"{side}_reply"] = reply.text
    return drawn, short


def _judge(io: StageIO, rows: list[dict[str, Any]]) -> None:
    """Fill in rewards and preferences."""
    compute = io.settings.compute
    pointwise = PointwiseScorer(io.dep("models/pointwise_rm"), compute=compute)
    # Both replies to a prompt in one call: the scorer then reads the prompt once.
    scores = pointwise.score(
        [(_card(row), row["history"], row[f"{side}_reply"]) for row in rows for side in SIDES],
        progress="pointwise rewards",
    )
    for place, score in enumerate(scores):
        row, side = rows[place // len(SIDES)], SIDES[place % len(SIDES)]
        row[f"{side}_reward"] = _number(score, row, f"{side} reward")
    del pointwise
    gc.collect()
    pairwise = PairwiseScorer(io.dep("models/pairwise_rm"), compute=compute)
    preferences = pairwise.prefer(
        [(_card(row), row["history"], row["candidate_reply"], row["champion_reply"]) for row in rows],
        progress="pairwise preferences",
    )
    for row, preference in zip(rows, preferences, strict=True):
        row["pairwise_p"] = _number(preference, row, "pairwise preference")


def _number(value: float, row: Mapping[str, Any], what: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"prompt {row['prompt_id']}, sample {row['sample']}: the {what} is {value}")
    return float(value)


def measure(
    rows: Sequence[dict[str, Any]],
    drawn: Mapping[str, Sequence[Reply]],
    answers: Answers | None = None,
    detector: Detector | None = None,
    trained: Sequence[Card] = (),
    withheld: Collection[str] | None = None,
    kept: Collection[str] = (),
    listed: WordLists | None = None,
) -> dict[str, Any]:
    """The metrics of evaluated rows.

    Args:
        rows: as in ``replies.parquet``.
        drawn: replies of ``champion`` and ``candidate``, in the order of the rows.
        answers: of the judge, by side; None where there is no judge.
        detector: of refusals; the rules by default.
        trained: cards that the policy or its judges were trained on.
        withheld: replies that the safety classifier refuses; None where none was asked.
        kept: types of identifiers that the privacy policy lets stay.
        listed: the workspace's unsafe words: refusing a request that has one is not false.
    """
    answered = {side: _answered(rows, side, drawn[side], withheld) for side in SIDES}
    seen = {card.card_id for card in trained}, {rule for card in trained for rule in card.instructions}
    new = {side: production.unseen(answered[side], *seen) for side in SIDES}
    sources, users = [row["source"] for row in rows], [row["user_id"] for row in rows]
    same = [row["champion_reply"] == row["candidate_reply"] for row in rows]
    scores = {
        "pointwise": [
            win_rate.pointwise_score(row["candidate_reward"], row["champion_reward"], identical=equal)
            for row, equal in zip(rows, same, strict=True)
        ],
        "pairwise": [
            win_rate.pairwise_score(row["pairwise_p"], identical=equal)
            for row, equal in zip(rows, same, strict=True)
        ],
    }
    rates = {judge: win_rate.win_rates(values, sources, users) for judge, values in scores.items()}
    return {
        "prompts": {
            name: len({row["prompt_id"] for row in rows if name in (row["source"], "all")})
            for name in ("user", "internal", "all")
        },
        "win_rate": rates,
        "divergence": {judge: win_rate.divergence(values) for judge, values in rates.items()},
        "judges_agree": win_rate.agreement(scores["pointwise"], scores["pairwise"], users),
        "identical": share([float(equal) for equal in same], users),
        "reward": {  # only the difference of two replies to one prompt has a meaning
            "gain": mean([row["candidate_reward"] - row["champion_reward"] for row in rows], users)
        },
        **_production(answered, answers or {}, detector, kept, listed),
        "unseen": {name: {side: new[side][name] for side in SIDES} for name in new["candidate"]},
        "instructions": production.instruction_coverage({row["card_id"]: _card(row) for row in rows}),
    }


def _answered(
    rows: Sequence[dict[str, Any]], side: str, drawn: Sequence[Reply], withheld: Collection[str] | None
) -> list[production.Answered]:
    return [
        production.Answered(
            row["prompt_id"],
            row["user_id"],
            _card(row),
            row["history"],
            row[f"{side}_reply"],
            reply.tokens or 0,
            at_limit=not reply.ended,
            withheld=None if withheld is None else row[f"{side}_reply"] in withheld,
        )
        for row, reply in zip(rows, drawn, strict=True)
    ]


def _production(
    answered: Mapping[str, Sequence[production.Answered]],
    answers: Answers,
    detector: Detector | None,
    kept: Collection[str],
    listed: WordLists | None,
) -> dict[str, dict[str, Any]]:
    measured = {
        side: production.measure(answered[side], answers.get(side), detector, kept, listed) for side in SIDES
    }
    summaries = {
        side: production.summarise(answered[side], measured[side], answers.get(side)) for side in SIDES
    }
    return {
        "production": {
            name: {side: summaries[side][name] for side in SIDES} for name in summaries["champion"]
        },
        "change": production.changes(
            answered["candidate"],
            measured["champion"],
            measured["candidate"],
            answers.get("champion"),
            answers.get("candidate"),
        ),
    }
