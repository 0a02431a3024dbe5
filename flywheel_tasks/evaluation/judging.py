"""What every judge has in common, whichever model it is."""

from collections.abc import Sequence
from typing import Protocol

SYSTEM = "You judge one reply of a character in a chat. Answer with one word, yes or no."
TRIAL = "Is ice cold? Answer yes or no."  # asked before a judge is relied on


class JudgeError(RuntimeError):
    """The judge cannot be used: it was trained on, it is missing, or it does not answer."""


class Judging(Protocol):
    """What every judge can do."""

    name: str
    identity: str  # what else tells two judges of one name apart, such as a digest; for the name of a file

    def yes(self, prompts: Sequence[str]) -> list[float | None]:
        """Probability of "yes" for each prompt; None where the judge gave no usable answer."""
