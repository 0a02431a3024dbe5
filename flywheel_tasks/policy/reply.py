"""A reply as every policy gives it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """A sampled reply.

    Attributes:
        text: as a user sees it (:meth:`flywheel_tasks.policy.sampler.Sampler.decode`); may be empty.
        tokens: how many, the end token left out; None where the policy is remote.
        ended: False if it was cut off at ``max_new_tokens``.
        unanswered: why a remote policy gave none to this prompt; the text is then empty.
    """

    text: str
    tokens: int | None
    ended: bool
    unanswered: str | None = None
