"""Templates in what a policy says, found before it learns from it: neither rejection sampling nor RL shall add to them.

A reward model of few pairs comes to like a stock ending ("What happens next?"), and annotators' rewrites have stock
phrases of their own: both spread from one generation to the next until the gate stops the policy.
"""

from collections.abc import Mapping, Sequence

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.evaluation.templates import Pattern, Reply, Template, find, probability
from flywheel_tasks.policy.prompts import Prompt

_LIKELY = 0.5  # as in the gate's metric


def _among_others(card: Card, history: Sequence[Turn], reply: str, conversation: str) -> Reply:
    return Reply(conversation, reply, (card.system_prompt(), *(turn["content"] for turn in history)))


def templates_among(prompts: Sequence[Prompt], replies: Sequence[str]) -> dict[Pattern, Template]:
    """Patterns that recur over conversations more often than ordinary language would bring.

    Args:
        prompts: what was answered; one prompt may come several times.
        replies: one for each; the users' turns are the background.
    """
    said = [
        _among_others(*prompt.chat, reply, prompt.prompt_id)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    people = [turn["content"] for prompt in prompts for turn in prompt.history if turn["role"] == "user"]
    return find(said, people)


def is_templated(
    card: Card, history: Sequence[Turn], reply: str, templates: Mapping[Pattern, Template]
) -> bool:
    """Whether a reply uses one of the templates, or a stock phrase of assistants, by itself and not after the user.

    Args:
        card: the character.
        history: turns, the last one the user's.
        reply: the text.
        templates: of :func:`templates_among`.
    """
    return probability(_among_others(card, history, reply, ""), templates) >= _LIKELY
