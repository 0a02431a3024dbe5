"""What every model behind the gateway can do, wherever it runs."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from flywheel_tasks.chat.card import Card, Turn


class ModelError(RuntimeError):
    """A model gave no answer, or one that cannot be used."""


class RequestRefusedError(ModelError):
    """The model's server would not take this request (too long, for one): the model itself is not broken."""


@dataclass(frozen=True)
class Prompt:
    """What a model answers.

    Attributes:
        card: the character.
        history: turns, the last one the user's.
        max_tokens: of the reply.
    """

    card: Card
    history: Sequence[Turn]
    max_tokens: int


@dataclass(frozen=True)
class Piece:
    """A part of a reply.

    Attributes:
        text: the next characters.
        finish: ``stop`` or ``length`` with the last piece, else None.
        prompt_tokens: with the last piece, if known.
        completion_tokens: with the last piece, if known.
    """

    text: str
    finish: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Backend(Protocol):
    """A model that can be asked."""

    async def complete(self, prompt: Prompt) -> Piece:
        """The whole reply. Raises ModelError."""

    def stream(self, prompt: Prompt) -> AsyncIterator[Piece]:
        """The reply in pieces, the last one with ``finish``. Raises ModelError."""

    async def close(self) -> None:
        """Let go of what it holds."""
