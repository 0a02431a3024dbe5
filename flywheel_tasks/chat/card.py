"""Character cards and the conversation turns between a user and a character."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile
from typing import Any, Literal, TypedDict, TypeVar


class Turn(TypedDict):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: str


Message = TypeVar("Message", bound=Mapping[str, Any])


def user_first(turns: Sequence[Message]) -> list[Message]:
    """Turns from the first one of the user on: some chat templates (Mistral's, Llama 2's) refuse a greeting before it.

    Args:
        turns: of a conversation, the last one the user's, without a system prompt.
    """
    return list(dropwhile(lambda turn: turn["role"] != "user", turns))


def in_first_user_turn(system: str, turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turns with the system's text before the user's first one, as is the custom where a template has no system role.

    Args:
        system: the text.
        turns: of a conversation, without a system message. If none is the user's, the text is left out.
    """
    shown = [dict(turn) for turn in turns]
    first = next((turn for turn in shown if turn["role"] == "user"), None)
    if first is not None:
        first["content"] = "\n\n".join(filter(None, (system, first["content"])))
    return shown


@dataclass(frozen=True)
class Card:
    """A character: what the system prompt is made of, and how a conversation begins.

    Attributes:
        card_id: stable id.
        name: the character's name.
        traits: short phrases of who they are.
        instructions: rules that every reply must obey.
        greeting: what the character says before the user's first message, or None; no part of the system prompt.
            In a row, a blank one is none.
    """

    card_id: str
    name: str
    traits: tuple[str, ...]
    instructions: tuple[str, ...]
    greeting: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Card":
        """A card from a row of the cards table."""
        traits, instructions = (tuple(row[name] or ()) for name in ("traits", "instructions"))
        greeting = row.get("greeting")
        said = greeting if greeting and greeting.strip() else None
        return cls(row["card_id"], row["name"], traits, instructions, said)

    def parts(self) -> int:
        """How many parts it can lose: traits and instructions."""
        return len(self.traits) + len(self.instructions)

    def without(self, parts: int) -> "Card":
        """The card without some of its parts: first the traits go, from the last on, then the instructions.

        A reply that lacks a trait is still in character; one that breaks an instruction is wrong.

        Args:
            parts: how many go, at most :meth:`parts`.
        """
        traits = max(0, len(self.traits) - parts)
        instructions = self.parts() - parts - traits
        return replace(self, traits=self.traits[:traits], instructions=self.instructions[:instructions])

    def system_prompt(self) -> str:
        """The system prompt: name, traits, instructions."""
        parts = [f"You are {self.name}, chatting with a user. Stay in character."]
        if self.traits:
            parts.append("Traits: " + "; ".join(self.traits) + ".")
        if self.instructions:
            parts.append("Rules: " + " ".join(self.instructions))
        return "\n".join(parts)
