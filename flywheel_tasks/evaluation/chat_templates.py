"""Templates of replies in their chats: what card, history and users say is taken into account.

Rejection sampling and RL use this as the gate does, so that neither adds to what the gate stops: a reward model of
few pairs comes to like a stock ending ("What happens next?"), and annotators' rewrites have stock phrases of their own.
"""

from collections.abc import Iterable, Mapping, Sequence

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.evaluation.templates import Mined, Pattern, Reply, Template, mine, probability

LIKELY = 0.5  # from this probability on a reply counts as templated


def conversation_key(whose: str, history: Sequence[Turn], otherwise: str) -> str:
    """Key of a conversation where logs have none: turns of one with one first turn are of one.

    Args:
        whose: with whom, as far as it is known (user, character).
        history: turns before the reply.
        otherwise: its key if there are none.
    """
    first = history[0]["content"] if history else f"\0{otherwise}"
    return f"{whose}\0{first}"


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

    Args:
        rows: of one policy, or of one stage: arguments of :func:`in_chat`.
    """
    rows = list(rows)
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
