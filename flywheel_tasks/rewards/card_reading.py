"""Does a reward model read the card? The same replies under other cards' rules, of which code knows the order.

From labels a model can learn what people like of replies in general, and do well on held-out pairs without reading a
card: then it likes questions of a character that may never ask, too, and so will a policy that is trained on it. Here
the persona and the conversation stay, and the card's instructions give way to those of another card: once to some that
the one reply keeps and the other breaks, once to some with which it is the other way round. What the replies are like
is the same on both sides of such a twin; only what the card says tells which one is better. A model that reads no
instruction is right on exactly half of them. They cost no label.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby

from flywheel_tasks.curation.sampling import draw_order
from flywheel_tasks.evaluation.instructions import InstructionCheck, checks, instruction_checks
from flywheel_tasks.rewards.pairs import Pair

_SHEETS = 24  # other cards' instructions that are tried for a prompt
_COUPLES = 3  # of replies to one prompt: further ones ask of the same two cards

Rules = tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """What a card's rules say of two replies.

    Attributes:
        sign: 1 if the first keeps all that the second keeps and more, -1 the other way round, 0 where neither does.
        kinds: of the rules that only one of them keeps.
    """

    sign: int
    kinds: tuple[str, ...]


def told_by(tests: Iterable[InstructionCheck], first: str, second: str) -> Told:
    """Which of two replies keeps more rules, where that is plain.

    Args:
        tests: of a card's instructions.
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


def under_other_rules(pairs: Sequence[Pair], most: int, seed: int) -> list[Pair]:
    """Twins of couples of replies: under rules that prefer the one, and under rules that prefer the other.

    Prompts come in a drawn order. Of the rules tried for a prompt, those two are taken that order most couples
    differently, by kinds of rules that have told few so far before others.

    Args:
        pairs: whose replies and cards are used; which side is better plays no part.
        most: pairs wanted.
        seed: of the draw.

    Returns:
        pairs of ``kind`` ``rules``, both of a twin beside each other; none where code can check no rule.
    """
    rules = sorted({pair.card.instructions for pair in pairs if checks(pair.card)})
    tests = {one: [check for text in one for check in instruction_checks(text)] for one in rules}
    drawn = sorted(pairs, key=lambda pair: (draw_order(seed, "other rules", pair.prompt_id), pair.pair_id))
    used: Counter[str] = Counter()
    found: list[Pair] = []
    for prompt, of_prompt in groupby(drawn, lambda pair: pair.prompt_id):
        if len(found) >= most:
            break
        couples = list({frozenset((pair.chosen, pair.rejected)): pair for pair in of_prompt}.values())
        tried = sorted(rules, key=lambda one: draw_order(seed, prompt, "\n".join(one)))[:_SHEETS]
        told = {one: [told_by(tests[one], pair.chosen, pair.rejected) for pair in couples] for one in tried}
        best = max(combinations(tried, 2), key=lambda two: _worth(told, two, used), default=None)
        if best is None:
            break  # all cards have the same rules
        apart = [k for k in range(len(couples)) if _apart(told, best, k)][:_COUPLES]
        used.update(kind for k in apart for one in best for kind in told[one][k].kinds)
        found += [_under(couples[k], one, told[one][k].sign) for k in apart for one in best]
    return found[: most - most % 2]


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
