"""Does a reward model read the card? The same replies under other rules, of which code knows the order.

From labels a model can learn what people like of replies in general, and do well on held-out pairs without reading a
card: then it likes questions of a character that may never ask, too, and so will a policy that is trained on it. Here
persona and conversation stay, and the card's instructions give way to those of some card: once to some that the one
reply keeps and the other breaks, once to some with which it is the other way round. What the replies are like is the
same on both sides of such a twin, so a model's taste cancels out of the sum of both margins; what is left is how far
the rules move it. They cost no label.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from typing import Any

from flywheel_tasks.curation.sampling import draw_order
from flywheel_tasks.evaluation.instructions import InstructionCheck, instruction_checks
from flywheel_tasks.evaluation.intervals import share
from flywheel_tasks.rewards.agreement import preferred
from flywheel_tasks.rewards.pairs import Pair

_TRIED = 24  # cards' instructions that are tried for a prompt
_COUPLES = 3  # of replies to one prompt: further ones ask of the same two cards

Rules = tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """What some rules say of two replies.

    Attributes:
        sign: 1 if the first keeps all that the second keeps and more, -1 the other way round, 0 where neither does.
        kinds: of the rules that only one of them keeps.
    """

    sign: int
    kinds: tuple[str, ...]


def told_by(tests: Iterable[InstructionCheck], first: str, second: str) -> Told:
    """Which of two replies keeps more rules, where that is plain.

    Args:
        tests: of the rules.
        first: a reply.
        second: another one.
    """
    differ = [
        (test.kind, kept)
        for test in tests
        if test.measures(first)
        and test.measures(second)
        and (kept := test.obeyed(first)) != test.obeyed(second)
    ]
    signs = {1 if kept else -1 for _, kept in differ}
    return Told(signs.pop() if len(signs) == 1 else 0, tuple(sorted({kind for kind, _ in differ})))


def twins(pairs: Sequence[Pair], most: int, seed: int) -> list[Pair]:
    """Couples of replies, each under rules that prefer the one, and under rules that prefer the other.

    Prompts come in a drawn order. Of the rules tried for a prompt, those two are taken that order most couples
    differently, by kinds of rules that have told few so far before others. Of a card's instructions only those are
    taken that code can check, and no facts of a persona: the rest could say otherwise, or contradict the card.

    Args:
        pairs: whose replies and cards are used; which side is better plays no part.
        most: pairs wanted.
        seed: of the draw.

    Returns:
        pairs of ``kind`` ``rules``, both of a twin beside each other: what one prefers, the other rejects.
    """
    tests = _rules(pairs)
    drawn = sorted(pairs, key=lambda pair: (draw_order(seed, "other rules", pair.prompt_id), pair.pair_id))
    used: Counter[str] = Counter()
    found: list[Pair] = []
    for prompt, of_prompt in groupby(drawn, lambda pair: pair.prompt_id):
        if len(found) >= most:
            break
        couples = list({frozenset((pair.chosen, pair.rejected)): pair for pair in of_prompt}.values())
        tried = sorted(tests, key=lambda one: draw_order(seed, prompt, "\n".join(one)))[:_TRIED]
        told = {one: [told_by(tests[one], pair.chosen, pair.rejected) for pair in couples] for one in tried}
        best = max(combinations(tried, 2), key=lambda two: _worth(told, two, used), default=None)
        if best is None:
            break  # no two cards have different rules
        apart = [k for k in range(len(couples)) if _apart(told, best, k)][:_COUPLES]
        used.update(kind for k in apart for one in best for kind in told[one][k].kinds)
        found += [_under(couples[k], one, told[one][k].sign) for k in apart for one in best]
    return found[: most - most % 2]


def _rules(pairs: Sequence[Pair]) -> dict[Rules, list[InstructionCheck]]:
    """The cards' instructions by which replies are ordered, each once, with their tests."""
    cards = {pair.card.instructions for pair in pairs}
    tests = {text: instruction_checks(text) for text in {text for card in cards for text in card}}
    usable = {
        text
        for text, found in tests.items()
        if found and not any(one.kind.startswith("fact_") for one in found)
    }
    rules = {tuple(text for text in card if text in usable) for card in cards}
    return {one: [test for text in one for test in tests[text]] for one in rules if one}


def _apart(told: Mapping[Rules, Sequence[Told]], two: tuple[Rules, Rules], couple: int) -> bool:
    """Whether two cards' rules order a couple of replies differently."""
    return told[two[0]][couple].sign * told[two[1]][couple].sign < 0


def _worth(told: Mapping[Rules, Sequence[Told]], two: tuple[Rules, Rules], used: Counter[str]) -> float:
    """What two cards' rules are worth: the couples that they order differently, those by rare kinds before others."""
    kinds = [told[one][k].kinds for k in range(len(told[two[0]])) if _apart(told, two, k) for one in two]
    return sum(sum(1 / (1 + used[kind]) for kind in of_one) / len(of_one) for of_one in kinds)


def _under(pair: Pair, rules: Rules, sign: int) -> Pair:
    chosen, rejected = (pair.chosen, pair.rejected) if sign > 0 else (pair.rejected, pair.chosen)
    return replace(
        pair,
        pair_id=f"{pair.pair_id}-{'same' if sign > 0 else 'turned'}",
        card=replace(pair.card, instructions=rules),
        chosen=chosen,
        rejected=rejected,
        kind="rules",
        consensus=False,
        one_review=None,
    )


def reading(pairs: Sequence[Pair], margins: Sequence[float]) -> dict[str, Any]:
    """How far a model's preferences follow the rules.

    Args:
        pairs: of :func:`twins`.
        margins: logit of P(chosen) of each.

    Returns:
        ``twins``: how many. ``share``: of those in which the rules move the model towards the reply that keeps them,
        that is, both margins add up to more than 0 (a tie counts one half): 1/2 for a model that reads no rule, however
        much it likes one of the replies. ``accuracy``: of the pairs; 1/2 also for one that reads, but weakly. Intervals
        are clustered by user; without twins both are null with the reason.
    """
    users = [pair.user_id for pair in pairs]
    moved = [one + other for one, other in zip(margins[::2], margins[1::2], strict=True)]
    of_twins, of_pairs = share(preferred(moved), users[::2]), share(preferred(margins), users)
    if not pairs:
        reason = "no instructions of two cards that code can check order two replies differently"
        of_twins["reason"] = of_pairs["reason"] = reason
    return {"twins": len(moved), "share": of_twins, "accuracy": of_pairs}
