"""Candidates of rejection sampling: which need no score, which are out whatever their score, and which one is kept."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flywheel_tasks.evaluation.chat_templates import LIKELY, mine_chats
from flywheel_tasks.evaluation.instructions import share_seen_kept
from flywheel_tasks.policy.prompts import Prompt
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.policy.sentences import whole_sentences
from flywheel_tasks.policy.tool_calls import is_broken, marked
from flywheel_tasks.settings import RejectionSample

REMOVED = "[removed: an identifier]"
KEPT = "best_of_n"


@dataclass
class Candidate:
    """One reply with its scores.

    Attributes:
        prompt: what it answers.
        candidate_id: unique in the stage.
        policy: who drew it: a policy's name in the pool and its weights or remote model (``policy_id``).
        text: the reply.
        cut_off: it was cut off at the token limit, and not even one sentence of it was whole, or it has a tool call.
        reward: of the pointwise model; None if it was not scored.
        signals: probability of each signal whose model could be trained.
        reason: why it was kept or dropped.
    """

    prompt: Prompt
    candidate_id: str
    policy: str
    text: str
    cut_off: bool
    reward: float | None = None
    signals: dict[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Thresholds:
    """What the best candidate of a prompt must reach.

    Attributes:
        reward: least reward.
        signals: least probability of each signal that may select.
    """

    reward: float
    signals: Mapping[str, float]


def candidates_of(prompt: Prompt, policy: str, replies: Sequence[Reply]) -> list[Candidate]:
    """Candidates of one policy for one prompt.

    A reply that the token limit cut off is shortened to its whole sentences, and is scored like that: as
    training data it would teach to stop in the middle of a sentence. One with a mark of a tool call is left as it is: a
    call has no sentences, and what stands before or after one is not what was to be said.
    """
    found = []
    for number, reply in enumerate(replies):
        text = reply.text
        if not reply.ended:
            text = "" if marked(text) else whole_sentences(text)
        identity = f"{prompt.prompt_id}:{policy}:{number}"
        found.append(Candidate(prompt, identity, policy, text or reply.text, bool(reply.text and not text)))
    return found


def mark_unusable(candidates: Sequence[Candidate], identified: Collection[str] = ()) -> None:
    """Give a reason to candidates of one prompt that need no score: empty, cut off, a broken tool call, a repetition.

    One in which the model says an identifier, made up or remembered, is not kept at all.

    Args:
        candidates: of one prompt.
        identified: texts with an identifier.
    """
    seen: set[str] = set()
    for candidate in candidates:
        plain = " ".join(candidate.text.split())
        if not plain:
            candidate.reason = "empty"
        elif candidate.text in identified:
            candidate.reason, candidate.text = "identifier", REMOVED
        elif candidate.cut_off:
            candidate.reason = "cut_off"
        elif is_broken(candidate.text):
            candidate.reason = "broken_tool_call"
        elif plain in seen:
            candidate.reason = "duplicate"
        seen.add(plain)


def mark_unsafe(candidates: Sequence[Candidate], refused: Collection[str]) -> None:
    """Give a reason to candidates that the safety classifier refuses: the gateway would withhold what they teach.

    Args:
        candidates: of all prompts; those with a reason already are left out.
        refused: their texts.
    """
    for candidate in candidates:
        if not candidate.reason and candidate.text in refused:
            candidate.reason = "unsafe"


def mark_templated(candidates: Sequence[Candidate]) -> None:
    """Give a reason to candidates that say what many of the others say: trained on, it would spread.

    Args:
        candidates: of all prompts; those with a reason already are left out.
    """
    usable = [one for one in candidates if not one.reason]
    found = mine_chats((one.prompt.conversation, *one.prompt.chat, one.text) for one in usable)
    for one, chance in zip(usable, found.probabilities, strict=True):
        if chance >= LIKELY:
            one.reason = "templated"


def mark_disobedient(candidates: Sequence[Candidate], section: RejectionSample) -> None:
    """Give a reason to candidates of one prompt that break too much of the card, or more of it than another one.

    A reward model of few pairs hardly sees whether a reply is in lower case or ends in a question; code does. Cards
    whose instructions code cannot check are left to the reward model.

    Args:
        candidates: of one prompt; those with a reason already are left out.
        section: settings.
    """
    kept = {id(one): share_seen_kept(one.prompt.card, one.text) for one in candidates if not one.reason}
    shares = [share for share in kept.values() if share is not None]
    most = max(shares, default=0.0)
    for candidate in candidates:
        share = kept.get(id(candidate))
        if share is None:
            continue
        if share < section.min_instructions:
            candidate.reason = "below_instructions"
        elif section.most_instructions and share < most:
            candidate.reason = "keeps_fewer_instructions"


def thresholds(candidates: Sequence[Candidate], section: RejectionSample, used: Sequence[str]) -> Thresholds:
    """Limits from the settings and from the rewards of all scored candidates.

    Args:
        candidates: of all prompts.
        section: settings.
        used: signals that may select.
    """
    rewards = [candidate.reward for candidate in candidates if candidate.reward is not None]
    reward = float(np.quantile(rewards, section.min_reward_quantile)) if rewards else 0.0
    limits = {signal: least for signal, least in section.least_signals.items() if signal in used}
    return Thresholds(reward, limits)


def decide(candidates: Sequence[Candidate], limits: Thresholds) -> Candidate | None:
    """Give every scored candidate of one prompt its reason.

    Args:
        candidates: of one prompt; those with a reason already are left out.
        limits: for the best one.

    Returns:
        the kept one, or None.
    """
    scored = [candidate for candidate in candidates if candidate.reward is not None and not candidate.reason]
    if not scored:
        return None
    best = max(scored, key=lambda candidate: (candidate.reward, candidate.candidate_id))
    for candidate in scored:
        candidate.reason = "not_best"
    best.reason = _verdict(best, limits)
    return best if best.reason == KEPT else None


def _verdict(best: Candidate, limits: Thresholds) -> str:
    assert best.reward is not None
    if not best.reward >= limits.reward:
        return "below_reward_threshold"
    for signal, least in limits.signals.items():
        # A signal without a model says nothing about this reply.
        if signal in best.signals and not best.signals[signal] >= least:
            return f"below_p_{signal}"
    return KEPT
