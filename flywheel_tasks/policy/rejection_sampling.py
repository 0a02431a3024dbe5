"""Stage ``rejection_sample``: the best of n replies of a pool of policies, if it clears the thresholds.

Every candidate is kept in a table with its scores and why it was kept or dropped.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flywheel_tasks.chat.fixed_date import dated_tokenizer
from flywheel_tasks.chat.prompt import cut_short
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.policy.candidates import (
    KEPT,
    Candidate,
    candidates_of,
    decide,
    mark_disobedient,
    mark_templated,
    mark_unsafe,
    mark_unusable,
    thresholds,
)
from flywheel_tasks.policy.drawing import draw, unanswered
from flywheel_tasks.policy.pool import Policy, open_pool
from flywheel_tasks.policy.prompts import CONTEXT, Prompt, choose, load_split
from flywheel_tasks.privacy.said import identifiers_said
from flywheel_tasks.rewards.scoring import PointwiseScorer
from flywheel_tasks.rewards.signals import SignalScorer
from flywheel_tasks.safety.classifier import classifier_of, unsafe
from flywheel_tasks.settings import TRAINABLE_SIGNALS
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.tables import write_rows

CANDIDATES = pa.schema(
    [(name, pa.string()) for name in ("prompt_id", "source", "candidate_id", "policy", "text")]
    + [(name, pa.float64()) for name in ("reward", *(f"p_{signal}" for signal in TRAINABLE_SIGNALS))]
    + [("kept", pa.bool_()), ("reason", pa.string())]
)
ACCEPTED = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("candidate_id", pa.string()),
        ("source", pa.string()),
        *CONTEXT,
        ("reply", pa.string()),
        ("reward", pa.float64()),
    ]
)


class NothingAcceptedError(RuntimeError):
    """No candidate cleared the thresholds, so there is nothing to train on."""


def _draw(
    io: StageIO, pool: Sequence[Policy], prompts: Sequence[Prompt]
) -> tuple[list[list[Candidate]], dict[str, int]]:
    """Candidates of the whole pool, a list for each prompt; and to how many prompts each policy gave no answer."""
    found: list[list[Candidate]] = [[] for _ in prompts]
    silent: dict[str, int] = {}
    seed = int(np.random.SeedSequence([io.settings.seed, 1]).generate_state(1)[0])
    chats = [prompt.chat for prompt in prompts]
    for policy in pool:
        replies = draw(policy, chats, io.settings.rejection_sample.candidates, seed, io.resume_dir())
        silent[policy.name] = unanswered(replies)
        for candidates, prompt, drawn in zip(found, prompts, replies, strict=True):
            candidates += candidates_of(prompt, policy.policy_id, drawn)
    return found, silent


def _score(io: StageIO, candidates: Sequence[Candidate]) -> list[str]:
    """Fill in rewards and signal probabilities.

    Returns:
        signals that have a model.
    """
    rows = [(*candidate.prompt.chat, candidate.text) for candidate in candidates]
    scorer = PointwiseScorer(io.dep("models/pointwise_rm"), compute=io.settings.compute)
    for candidate, reward in zip(candidates, scorer.score(rows), strict=True):
        candidate.reward = reward
    models = SignalScorer(io.dep("models/signal_models"), io.dep("models/embedder"))
    trained = []
    for signal, chances in sorted(models.probabilities(rows).items()):
        if signal in models.untrained:
            continue
        trained.append(signal)
        for candidate, chance in zip(candidates, chances, strict=True):
            assert chance is not None
            candidate.signals[signal] = chance
    return trained


def _candidate_row(candidate: Candidate) -> dict[str, Any]:
    return {
        "prompt_id": candidate.prompt.prompt_id,
        "source": candidate.prompt.source,
        "candidate_id": candidate.candidate_id,
        "policy": candidate.policy,
        "text": candidate.text,
        "reward": candidate.reward,
        **{f"p_{signal}": candidate.signals.get(signal) for signal in TRAINABLE_SIGNALS},
        "kept": candidate.reason == KEPT,
        "reason": candidate.reason,
    }


def _write(folder: Path, candidates: Sequence[Candidate], accepted: Sequence[Candidate]) -> None:
    folder.mkdir(parents=True)
    write_rows([_candidate_row(one) for one in candidates], CANDIDATES, folder / "candidates.parquet")
    rows = [
        {
            "prompt_id": one.prompt.prompt_id,
            "candidate_id": one.candidate_id,
            "source": one.prompt.source,
            **one.prompt.context(),
            "reply": one.text,
            "reward": one.reward,
        }
        for one in accepted
    ]
    write_rows(rows, ACCEPTED, folder / "accepted.parquet")


def _mean(candidates: Sequence[Candidate]) -> float | None:
    rewards = [candidate.reward for candidate in candidates if candidate.reward is not None]
    return float(np.mean(rewards)) if rewards else None


def run(io: StageIO) -> Mapping[str, Any]:
    """Draw, score, choose.

    Raises:
        NothingAcceptedError: no candidate cleared the thresholds.
        PoolError: a policy of the pool is not what was pinned, or a remote one does not answer.
        PromptError: a table breaks a rule.
    """
    section, signals = io.settings.rejection_sample, io.settings.signal_models
    split = io.dep("data/split/policy_train.parquet")
    # One that cannot be used is an error before anything is drawn.
    classifier = classifier_of(io.settings, io.dep("safety_words"))
    prompts = load_split(split, io.dep("data/curated/cards.parquet"))
    prompts = choose(prompts, section.prompts, io.settings.seed, "rejection_sample")
    pool = open_pool(
        section.pool,
        read_json(io.dep("inputs/rejection_pool.json")),
        io.root,
        sampling=io.settings.sampling,
        compute=io.settings.compute,
        max_prompt_tokens=io.settings.prompt.max_tokens,
    )
    champion = dated_tokenizer(io.dep("inputs/champion"))
    short = cut_short(champion, [prompt.chat for prompt in prompts], io.settings.prompt.max_tokens)
    by_prompt, silent = _draw(io, pool, prompts)
    everything = [candidate for candidates in by_prompt for candidate in candidates]
    names = {prompt.card.name for prompt in prompts}
    identified = identifiers_said((one.text for one in everything), io.settings.privacy, names)
    for candidates in by_prompt:
        mark_unusable(candidates, identified)
    texts = [candidate.text for candidate in everything if not candidate.reason]
    mark_unsafe(everything, unsafe(classifier, texts, io.settings.safety.threshold))
    if section.drop_templated:
        mark_templated(everything)
    for candidates in by_prompt:
        mark_disobedient(candidates, section)
    trained = _score(io, [candidate for candidate in everything if not candidate.reason])
    limits = thresholds(everything, section, signals.used)
    accepted = [best for candidates in by_prompt if (best := decide(candidates, limits)) is not None]
    reasons = Counter(candidate.reason for candidate in everything)
    if not accepted:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        raise NothingAcceptedError(f"{split}: none of {len(everything)} candidates was accepted ({counts})")
    _write(io.out("data/rejection"), everything, accepted)
    return {
        "prompts": len(prompts),
        "cut_short": short,
        "candidates": len(everything),
        "accepted": {"all": len(accepted), **_by_source(accepted)},
        "by_policy": _by_policy(everything),
        "unanswered": silent,
        "prompts_by_source": dict(sorted(Counter(prompt.source for prompt in prompts).items())),
        "reasons": dict(sorted(reasons.items())),
        "mean_reward": {"accepted": _mean(accepted), "all": _mean(everything)},
        "thresholds": {
            "reward": limits.reward,
            **{f"p_{name}": least if name in trained else None for name, least in limits.signals.items()},
        },
        "signal_models": {name: int(name in trained) for name in signals.signals},
    }


def _by_source(accepted: Sequence[Candidate]) -> dict[str, int]:
    return dict(sorted(Counter(candidate.prompt.source for candidate in accepted).items()))


def _by_policy(candidates: Sequence[Candidate]) -> dict[str, dict[str, float | None]]:
    """Candidates, accepted ones and mean reward of each policy, by its name in the pool."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.policy.partition("@")[0], []).append(candidate)
    return {
        name: {
            "candidates": len(group),
            "accepted": sum(candidate.reason == KEPT for candidate in group),
            "mean_reward": _mean(group),
        }
        for name, group in sorted(groups.items())
    }
