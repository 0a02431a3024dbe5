"""Templated replies: a phrase or pattern that recurs across replies or conversations (paper, annotation).

Patterns are mined from the set of replies itself: runs of words, two runs with a gap (a slot) between them, frames
(how a sentence begins and ends, whatever is between), openings, closings and whole replies; names and numbers are
slots too. A pattern is a template when more conversations have it than ordinary language would bring: than a Poisson
count with the rate at which the people's own turns (the background) use it, shrunk towards a rate that is usual for a
pattern of its size; where there are few turns of people, the project's own dialogue lines say whether a pattern is
rarer than usual. What the card or the history says first is the reply's to repeat. Known stock phrases of assistants
count alone.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from scipy import special

from flywheel_tasks.evaluation.labelled_lines import written_lines
from flywheel_tasks.evaluation.wording import pattern_of, words_of
from flywheel_tasks.policy.sentences import SPACED_ENDS, WIDE_ENDS
from flywheel_tasks.style.text import MARK, straight

LEAST = 3  # conversations that must share a pattern
ALPHA = 1e-4  # chance of so many conversations by ordinary language
_PRIOR_TURNS = 200  # how many background turns the usual rate is worth
_RUNS = {
    4: 0.008,
    5: 0.006,
    6: 0.003,
    7: 0.002,
    8: 0.0015,
}  # words in a row, and the usual rate of the commonest such runs
_PIECE = 3
_GAPPED = (
    (3, 4, 0.0025),
    (2, 3, 0.004),
)  # words on both sides of a gap, its words at most, and the usual rate
_FRAMES, _FRAME_RATE = ((4, 2), (2, 3), (1, 4), (4, 1)), 0.001  # words of a sentence's beginning and end
_TAIL, _TAIL_RATE = 3, 0.002  # words that end a sentence, where they say something
_EDGES = {"opening": 0.008, "closing": 0.008}
_EDGE_WORDS = 4
_WHOLE_RATE = 0.002
_STOCK = 0.9
_PLAIN_FACTORS = (6, 2, 1)  # of the usual rate, by how many words are not plain
_OWN_MARGIN = 2  # people may use a pattern so many times as often as the project's own lines do
_ENOUGH_TURNS = 2000  # of people, with which the own lines say nothing more

_END = rf"[{SPACED_ENDS}{WIDE_ENDS}]"
_TOKEN = re.compile(
    rf"\d[\d.,:]*|[^\W\d_]+(?:{MARK}[^\W\d_]*)*(?:['’\-][^\W_]+(?:{MARK}[^\W_]*)*)*|{_END}+|\n+"
)
_NAME = re.compile(r"[A-Z][a-z]+(?:['’]s)?$")
_ENDS = re.compile(rf"{_END}|\n")
Pattern = tuple[str, ...]
_MARKS = frozenset(("…", "^", "$", "/", "|"))
_SLOTS = frozenset(("<name>", "<number>"))


@dataclass(frozen=True)
class Template:
    """A recurring pattern.

    Attributes:
        text: its words; ``…`` is a gap, ``<name>`` and ``<number>`` are slots.
        conversations: how many have it.
        expected: how many would by ordinary language.
    """

    text: str
    conversations: int
    expected: float


@dataclass(frozen=True)
class Reply:
    """A reply among others.

    Attributes:
        conversation: key; replies of one conversation count once.
        text: what was said.
        given: texts that may be repeated: the card's prompt, the turns before.
    """

    conversation: str
    text: str
    given: tuple[str, ...] = ()


def _sentences(text: str) -> list[list[str]]:
    """Words of each sentence, in lower case; numbers and names inside a sentence are slots."""
    found: list[list[str]] = [[]]
    for token in _TOKEN.findall(straight(text)):
        if _ENDS.match(token):
            found.append([])
        elif token[0].isdigit():
            found[-1].append("<number>")
        elif found[-1] and len(token) > 1 and _NAME.match(token):
            if found[-1][-1] != "<name>":
                found[-1].append("<name>")
        else:
            found[-1].append(token.lower())
    return [sentence for sentence in found if sentence]


def patterns(text: str) -> dict[Pattern, float]:
    """All patterns of a text, with the usual rate of their kind.

    Args:
        text: a reply or a turn.
    """
    sentences = _sentences(text)
    found: dict[Pattern, float] = {}
    for words in sentences:
        for size, rate in _RUNS.items():
            for i in range(len(words) - size + 1):
                found[tuple(words[i : i + size])] = rate
        for piece, most_gap, rate in _GAPPED:
            for i in range(len(words) - 2 * piece):
                for j in range(i + piece + 1, min(i + piece + most_gap, len(words) - piece) + 1):
                    pieces = (*words[i : i + piece], "…", *words[j : j + piece])
                    if (
                        len(_SLOTS.intersection(pieces[:piece])) + len(_SLOTS.intersection(pieces[-piece:]))
                        < piece
                    ):
                        found[pieces] = rate
        for first, last in _FRAMES:
            ends = (words[:first], words[-last:])
            if len(words) > first + last and not any(len(end) == 1 and end[0] in _SLOTS for end in ends):
                found[("|", *ends[0], "…", *ends[1], "|")] = _FRAME_RATE
        if len(words) > _TAIL and _content(tuple(words[-_TAIL:])) >= len(_PLAIN_FACTORS) - 1:
            found[("…", *words[-_TAIL:], "|")] = _TAIL_RATE
    if sentences and len(sentences[0]) > _EDGE_WORDS:
        found[("^", *sentences[0][:_EDGE_WORDS])] = _EDGES["opening"]
    if len(sentences) > 1 and len(sentences[-1]) >= _EDGE_WORDS:
        found[(*sentences[-1][-_EDGE_WORDS:], "$")] = _EDGES["closing"]
    if sum(map(len, sentences)) >= _EDGE_WORDS:
        found[("^", *(word for words in sentences for word in (*words, "/")), "$")] = _WHOLE_RATE
    return found


def _words(text: str) -> list[str]:
    return [word for words in _sentences(text) for word in words]


def _pieces(pattern: Pattern) -> list[str]:
    """The runs of a pattern between its slots, gaps and edges."""
    runs = re.split(r"(?:^| )(?:…|\^|\$|/|\||<\w+>)(?= |$)", " ".join(pattern))
    return [run.strip() for run in runs if run.strip()]


def _repeats(pattern: Pattern, before: str) -> bool:
    """Whether all but a word or two of a pattern was said before."""
    pieces = _pieces(pattern)
    fresh = sum(len(piece.split()) for piece in pieces if f" {piece} " not in before)
    return fresh == 0 or (fresh < _PIECE and len(pieces) > 1)


@dataclass(frozen=True)
class Mined:
    """What was found in a set of replies.

    Attributes:
        templates: by pattern.
        probabilities: of each reply being templated, in the order of the replies.
    """

    templates: dict[Pattern, Template]
    probabilities: list[float]


def mine(replies: Sequence[Reply], background: Iterable[str] = ()) -> Mined:
    """Find the templates of a set of replies, and the replies that use one.

    Args:
        replies: of one policy (or one file).
        background: turns that people wrote; their phrases are ordinary language.
    """
    templates = find(replies, background)
    return Mined(templates, [probability(reply, templates) for reply in replies])


def _own(reply: Reply) -> dict[Pattern, float]:
    """The patterns of a reply that are not taken from what was said before."""
    found = patterns(reply.text)
    if not reply.given:
        return found
    before = _before(reply.given)
    return {pattern: rate for pattern, rate in found.items() if not _repeats(pattern, before)}


def _before(given: Iterable[str]) -> str:
    """What was said, once with slots and once word for word: in "end with 'Stay sharp.'" no name begins a sentence."""
    said = [words for text in given for words in (_words(text), _spelled(text))]
    return " " + " / ".join(map(" ".join, said)) + " "


def _spelled(text: str) -> list[str]:
    return [token.lower() for token in _TOKEN.findall(straight(text)) if not _ENDS.match(token)]


def said_in(shown: str, given: Iterable[str]) -> bool:
    """Whether a template is in texts that may be repeated, but for a word or two.

    Args:
        shown: the template, as :class:`Template` has its text.
        given: a card's prompt, turns.
    """
    return _repeats(tuple(shown.split()), _before(given))


def find(replies: Sequence[Reply], background: Iterable[str] = ()) -> dict[Pattern, Template]:
    """The templates of a set of replies.

    Args:
        replies: of one policy (or one file).
        background: turns that people wrote.
    """
    users: dict[Pattern, set[str]] = defaultdict(set)
    rates: dict[Pattern, float] = {}
    for reply in replies:
        for pattern, rate in _own(reply).items():
            users[pattern].add(reply.conversation)
            rates[pattern] = rate
    common = {pattern: len(ids) for pattern, ids in users.items() if len(ids) >= LEAST}
    turns, own = list(dict.fromkeys(background)), _own_turns()
    seen, seen_own = _seen(common.keys(), turns), _seen_own(common.keys())
    trust = min(1.0, len(turns) / _ENOUGH_TURNS)
    conversations = len({reply.conversation for reply in replies})
    templates: dict[Pattern, Template] = {}
    for pattern, count in common.items():
        usual = rates[pattern] * _PLAIN_FACTORS[min(_content(pattern), len(_PLAIN_FACTORS) - 1)]
        rarer = min(usual, _OWN_MARGIN * _shrunk(seen_own[pattern], len(own), usual))
        expected_rate = _shrunk(
            seen[pattern] + seen[pattern] ** 0.5, len(turns), rarer + (usual - rarer) * trust
        )
        expected = conversations * min(1.0, expected_rate)
        if special.pdtrc(count - 1, expected) <= ALPHA:  # P(a Poisson count is at least this)
            templates[pattern] = Template(_shown(pattern), count, expected)
    return templates


def _shrunk(seen: float, turns: int, usual: float) -> float:
    """Rate of a pattern that ``seen`` of so many turns have, shrunk towards the usual one."""
    return (seen + usual * _PRIOR_TURNS) / (turns + _PRIOR_TURNS)


@cache
def _own_turns() -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for line in written_lines() for text in (line.said, line.reply)))


def _content(pattern: Pattern) -> int:
    plain = words_of("plain")
    return sum(word not in plain and word not in _MARKS for word in pattern)


def _is_edge(pattern: Pattern) -> bool:
    return not _MARKS.isdisjoint(pattern) and "…" not in pattern


def _said(turn: str) -> str:
    return f" {' '.join(_words(turn))} "


def _edges_seen(wanted: Iterable[Pattern], said: Iterable[str]) -> Counter[Pattern]:
    """How many turns have each opening, closing or whole reply: it counts wherever its words stand."""
    edges = [
        (pattern, [f" {piece} " for piece in _pieces(pattern)]) for pattern in wanted if _is_edge(pattern)
    ]
    return Counter(
        pattern for turn in said for pattern, pieces in edges if all(piece in turn for piece in pieces)
    )


def _seen(wanted: Collection[Pattern], turns: Sequence[str]) -> Counter[Pattern]:
    """How many turns have each pattern."""
    inner = {pattern for pattern in wanted if not _is_edge(pattern)}
    seen = Counter(pattern for turn in turns for pattern in inner.intersection(patterns(turn)))
    return seen + _edges_seen(wanted, map(_said, turns))


@cache
def _own_counts() -> Counter[Pattern]:
    """Kept, because every set of replies asks for some of them."""
    return Counter(p for turn in _own_turns() for p in patterns(turn) if not _is_edge(p))


@cache
def _own_said() -> tuple[str, ...]:
    return tuple(map(_said, _own_turns()))


def _seen_own(wanted: Collection[Pattern]) -> Counter[Pattern]:
    counts = _own_counts()
    inner = Counter({pattern: counts[pattern] for pattern in wanted if pattern in counts})
    return inner + _edges_seen(wanted, _own_said())


def probability(reply: Reply, templates: Mapping[Pattern, Template]) -> float:
    """How likely a reply is templated, given the templates of its set.

    Args:
        reply: the reply.
        templates: of :func:`find`.

    Returns:
        ``1 - expected / conversations`` of its clearest template; 0.9 for a stock phrase; 0 without either.
    """
    best = _STOCK if pattern_of("stock").search(straight(reply.text)) else 0.0
    for pattern in _own(reply).keys() & templates.keys():
        best = max(best, 1 - templates[pattern].expected / templates[pattern].conversations)
    return round(best, 4)


def _shown(pattern: Pattern) -> str:
    return " ".join("…" if word in ("^", "$") else word for word in pattern if word not in "/|")


@lru_cache(maxsize=8192)
def shown(text: str) -> frozenset[str]:
    """All patterns of a text, as templates show them."""
    return frozenset(_shown(pattern) for pattern in patterns(text))


def distinct(templates: Iterable[Template], most: int = 20) -> list[Template]:
    """The commonest templates, without those that say again what ones of at least nearly the count say.

    Args:
        templates: as mined.
        most: how many at most.
    """
    kept: list[Template] = []
    said: set[str] = set()
    for template in sorted(templates, key=lambda t: (-t.conversations, -len(t.text), t.text)):
        words = set(template.text.split()) - {"…"}
        again = any(len(words & set(other.text.split())) >= 0.6 * len(words) for other in kept)
        if not again and len(words & said) < 0.75 * len(words):
            kept.append(template)
            said |= words
        if len(kept) == most:
            break
    return kept
