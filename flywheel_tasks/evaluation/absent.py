"""When a production metric counts as not measured, and the reason that stands for it.

A few replies that nobody and nothing could judge are left out; beyond ``UNANSWERED`` the others would stand for them.
"""

from collections.abc import Mapping, Sequence

from flywheel_tasks.evaluation import judge

UNANSWERED = 0.05  # share of replies that could not be judged from which on a metric is not measured
NO_RULE = "no instruction of the cards can be checked"
NOT_ASKED = "no safety classifier was asked"
NO_WORDS = "are in a script without spaces, whose words cannot be counted"
NOT_READ = "are in a script that the refusal detector does not read"
_REASONS = {
    "withheld": NOT_ASKED,
    "instruction_following": NO_RULE,
    "instruction_violation": NO_RULE,
}
_UNREAD = {
    "templated": NO_WORDS,
    "wall_of_text": NO_WORDS,
    "words": NO_WORDS,
    "refusal": NOT_READ,
    "false_refusal": NOT_READ,
}


def unjudged(
    name: str, absent: int, rows: int, answers: Sequence[Mapping[str, float | None]] = ()
) -> tuple[int, str]:
    """On how many replies a metric could not be told that is told of replies like them.

    Args:
        name: of the metric.
        absent: replies without a value.
        rows: all replies.
        answers: of the judge, one mapping a reply; none without one.

    Returns:
        the number, and the reason in words.
    """
    if name in _UNREAD:
        return absent, f"{absent} of {rows} replies {_UNREAD[name]}"
    if name.startswith("instruction"):
        absent = sum(bool(answer.get("unanswered_rules")) for answer in answers)
    elif name not in judge.QUESTIONS or not answers:
        absent = 0
    return absent, f"the judge gave no usable answer to {absent} of {rows} replies"


def reason(name: str) -> str:
    """Why a metric has no value on any reply although all could be judged."""
    return _REASONS.get(name, judge.NOT_SET)
