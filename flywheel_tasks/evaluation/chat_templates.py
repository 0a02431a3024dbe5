"""Templates of replies in their chats: what card, history and users say is taken into account.

Rejection sampling, RL and ``flywheel score`` use this as the gate does, so that none adds to what the gate stops: a
reward model of few pairs comes to like a stock ending ("What happens next?"), and annotators' rewrites have stock
phrases of their own.
"""

from collections.abc import Iterable, Mapping, Sequence

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.evaluation.templates import Mined, Pattern, Reply, Template, mine, probability

SET = 100  # about so many replies are mined together: more of them share more patterns
LIKELY = 0.5  # from this probability on a reply counts as templated


def conversation_key(whose: str, history: Sequence[Turn], otherwise: str) -> str:
    """Key of a conversation where logs have none: turns of one with one beginning are of one.

    A character may greet everyone alike, so a beginning goes up to the first turn of the user.

    Args:
        whose: with whom, as far as it is known (user, character).
        history: turns before the reply.
        otherwise: its key if the user has said nothing.
    """
    said = [turn["role"] for turn in history]
    if "user" not in said:
        return f"{whose}\0\0{otherwise}"
    return "\0".join([whose, *(turn["content"] for turn in history[: said.index("user") + 1])])


def in_chat(conversation: str, card: Card, history: Sequence[Turn], reply: str) -> Reply:
    """A reply that may repeat what its card and its history say.

    Args:
        conversation: key; replies of one conversation count once.
        card: the character.
        history: turns, the last one the user's.
        reply: the text.
    """
    return Reply(conversation, reply, (card.system_prompt(), *(turn["content"] for turn in history)))


def mine_chats(rows: Iterable[tuple[str, Card, Sequence[Turn], str]]) -> Mined:
    """The templates among replies, and how likely each reply is templated; the users' turns are the background.

    A pattern is found when enough replies share it, so the share of templated ones would grow with the number of
    replies. They are dealt to equal sets of about ``SET``, each mined by itself (rarefaction): what is found means the
    same however many replies there are, and the same as in the gate.

    Args:
        rows: of one policy, of one stage or of one file, those to one prompt beside each other: arguments of
            :func:`in_chat`.

    Returns:
        the probability of each reply in its own set, and the templates of all sets; of one that several sets have,
        what the clearest found.
    """
    rows = list(rows)
    sets = max(1, round(len(rows) / SET))
    templates: dict[Pattern, Template] = {}
    probabilities = [0.0] * len(rows)
    for first in range(sets):
        mined = _mine_set(rows[first::sets])
        probabilities[first::sets] = mined.probabilities
        for pattern, template in mined.templates.items():
            templates[pattern] = min(template, templates.get(pattern, template), key=_unlikeliness)
    return Mined(templates, probabilities)


def _unlikeliness(template: Template) -> float:
    return template.expected / template.conversations


def _mine_set(rows: Sequence[tuple[str, Card, Sequence[Turn], str]]) -> Mined:
    people = [turn["content"] for _, _, history, _ in rows for turn in history if turn["role"] == "user"]
    return mine([in_chat(*row) for row in rows], people)


def is_templated(
    card: Card, history: Sequence[Turn], reply: str, templates: Mapping[Pattern, Template]
) -> bool:
    """Whether a reply uses one of the templates, or a stock phrase of assistants, by itself and not after the user.

    Args:
        card: the character.
        history: turns, the last one the user's.
        reply: the text.
        templates: of :func:`mine_chats`.
    """
    return probability(in_chat("", card, history, reply), templates) >= LIKELY
