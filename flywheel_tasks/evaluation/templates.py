"""Templated replies: a phrase or pattern that recurs across replies or conversations (paper, annotation).

Patterns are mined from the set of replies itself: runs of words, two runs with a gap (a slot) between them, openings,
closings and whole replies; names and numbers are slots too. A pattern is a template when more conversations have it
than ordinary language would bring: than a Poisson count with the rate at which the people's own turns (the background)
use it, shrunk towards a rate that is usual for a pattern of its size. What the card or the history says first is the
reply's to repeat. Known stock phrases of assistants count alone.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy import stats

from flywheel_tasks.style.text import straight

LEAST = 3  # conversations that must share a pattern
ALPHA = 1e-4  # chance of so many conversations by ordinary language
_PRIOR_TURNS = 200  # how many background turns the usual rate is worth
_RUNS = {4: 0.008, 5: 0.006, 6: 0.003, 7: 0.002, 8: 0.0015}  # words in a row, and the usual rate of the commonest such runs
_SHORT = 4  # runs of so few words must say something
_PIECE, _MOST_GAP, _GAPPED_RATE = 3, 4, 0.0025
_EDGES = {"opening": 0.008, "closing": 0.008}
_EDGE_WORDS = 4
_WHOLE_RATE = 0.002
_STOCK = 0.9
# Words that say little: patterns of such words alone ("so what do you like to do") are ordinary language more often.
_PLAIN = frozenset(
    """a an the this that these those it its it's that's there there's here i i'm i've i'd i'll me my mine we we're us our you
    you're you've your he she they them his her their who what when where why how which is are was were be been am do does did
    don't didn't doing have has had having can can't could will won't would should may might must not no yes yeah yep oh ah
    well so too also just really very quite and or but if then than as of in on at to for from with by about into up out over
    some any all more most much many lot lots one ones something anything things thing else other again now today time always
    never ever like love enjoy think know want go going went get got make see try take say tell talk talking meet feel fun
    nice good great cool sure right okay sorry thanks thank glad happy sounds living work hope let's being able <name> <number>""".split()
)
_PLAIN_FACTORS = (6, 2, 1)  # of the usual rate, by how many words are not plain

_TOKEN = re.compile(r"\d[\d.,:]*|[^\W\d_]+(?:['’\-][^\W_]+)*|[.!?…]+|\n+")
_NAME = re.compile(r"[A-Z][a-z]+(?:['’]s)?$")
_ENDS = re.compile(r"[.!?…\n]")
_STOCK_PHRASES = re.compile(
    r"\bhow (?:can|may) i (?:help|assist)(?: you)?\b|\bi'?m here to (?:help|assist|support)\b"
    r"|\bfeel free to (?:ask|share|let me know|reach out)\b"
    r"|\bis there (?:any|some)thing (?:else )?(?:specific )?(?:i can\b(?!')|you(?:'d| would) like)"
    r"|\bi(?:'d| would) be (?:happy|glad|delighted) to (?:help|assist)\b|\bi hope this helps\b"
    r"|\bit'?s (?:great|nice|wonderful) to (?:hear|chat)\b|\bwhat can i help you with\b",
    re.IGNORECASE,
)
Pattern = tuple[str, ...]


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
        elif found[-1] and _NAME.match(token) and token != "I":
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
        for i in range(len(words) - 2 * _PIECE):
            for gap in range(1, _MOST_GAP + 1):
                j = i + _PIECE + gap
                if j + _PIECE <= len(words):
                    found[(*words[i : i + _PIECE], "…", *words[j : j + _PIECE])] = _GAPPED_RATE
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
    runs = re.split(r"(?:^| )(?:…|\^|\$|/|<\w+>)(?= |$)", " ".join(pattern))
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

    Returns:
        the templates, and for each reply ``1 - expected / conversations`` of its clearest template; 0.9 for a stock
        phrase; 0 without either.
    """
    own: list[dict[Pattern, float]] = []
    users: dict[Pattern, set[str]] = defaultdict(set)
    rates: dict[Pattern, float] = {}
    for reply in replies:
        before = " " + " / ".join(" ".join(_words(given)) for given in reply.given) + " "
        found = {
            pattern: rate
            for pattern, rate in patterns(reply.text).items()
            if not (reply.given and _repeats(pattern, before))
        }
        own.append(found)
        for pattern, rate in found.items():
            users[pattern].add(reply.conversation)
            rates[pattern] = rate
    common = {pattern: len(ids) for pattern, ids in users.items() if len(ids) >= LEAST}
    turns = list(dict.fromkeys(background))
    seen: Counter[Pattern] = Counter()
    edges = [(pattern, _pieces(pattern)) for pattern in common if "^" in pattern or "$" in pattern]
    for turn in turns:
        seen.update(pattern for pattern in patterns(turn) if pattern in common and "^" not in pattern and "$" not in pattern)
        said = f" {' '.join(_words(turn))} "
        seen.update(pattern for pattern, pieces in edges if all(f" {piece} " in said for piece in pieces))
    conversations = len({reply.conversation for reply in replies})
    templates: dict[Pattern, Template] = {}
    for pattern, count in common.items():
        rate = (seen[pattern] + rates[pattern] * _PRIOR_TURNS) / (len(turns) + _PRIOR_TURNS)
        content = sum(word not in _PLAIN and word not in ("…", "^", "$", "/") for word in pattern)
        if len(pattern) <= _SHORT and content < len(_PLAIN_FACTORS) - 1:
            continue
        expected = conversations * min(1.0, rate * _PLAIN_FACTORS[min(content, len(_PLAIN_FACTORS) - 1)])
        if stats.poisson.sf(count - 1, expected) <= ALPHA:
            templates[pattern] = Template(_shown(pattern), count, expected)
    return Mined(templates, [_probability(reply, found, templates) for reply, found in zip(replies, own, strict=True)])


def _probability(reply: Reply, found: dict[Pattern, float], templates: dict[Pattern, Template]) -> float:
    best = _STOCK if _STOCK_PHRASES.search(straight(reply.text)) else 0.0
    for pattern in found:
        template = templates.get(pattern)
        if template is not None:
            best = max(best, 1 - template.expected / template.conversations)
    return round(best, 4)


def _shown(pattern: Pattern) -> str:
    return " ".join("…" if word in ("^", "$") else word for word in pattern if word != "/")


def distinct(templates: Iterable[Template], most: int = 20) -> list[Template]:
    """The commonest templates, without those whose words another one of at least nearly the count holds.

    Args:
        templates: as mined.
        most: how many at most.
    """
    kept: list[Template] = []
    for template in sorted(templates, key=lambda t: (-t.conversations, -len(t.text), t.text)):
        words = set(template.text.split()) - {"…"}
        if not any(len(words & set(other.text.split())) >= 0.6 * len(words) for other in kept):
            kept.append(template)
        if len(kept) == most:
            break
    return kept
