"""Where a request belongs in the logs: a new conversation, the next message of one, or another try at a reply."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from flywheel_tasks.chat.card import Turn
from flywheel_tasks.serving.events import new_id
from flywheel_tasks.serving.requests import ApiError
from flywheel_tasks.serving.turns import GREETING, LoggedTurn, TurnIndex, longer, owner_of, root_chain

_TICK = timedelta(microseconds=1)


@dataclass(frozen=True)
class Caller:
    """Whose request it is.

    Attributes:
        user_id: the user.
        source: internal or user.
        staff: whether they may choose an arm.
        greets: whether they may say how a character greets: a product's own back end, or staff.
    """

    user_id: str
    source: str
    staff: bool
    greets: bool = False


@dataclass(frozen=True)
class Link:
    """The place of a request.

    Attributes:
        turn: the user's message that is answered.
        replaces: the reply that is tried again; then ``turn`` is in the logs already.
        time: of the request, not before what it follows.
        refused: places in the history of messages that were refused and of the refusals: no model sees them.
        greeting: of a conversation that begins with it, to be logged before ``turn``; or None.
    """

    turn: LoggedTurn
    replaces: LoggedTurn | None
    time: datetime
    refused: frozenset[int] = frozenset()
    greeting: LoggedTurn | None = None

    def said(self, history: Sequence[Turn]) -> list[tuple[LoggedTurn, str]]:
        """What the logs do not have yet of a history, with its texts: the user's message, after a greeting."""
        new = [(self.turn, history[-1]["content"])]
        return new if self.greeting is None else [(self.greeting, history[0]["content"]), *new]

    def reply(self, text: str, now: datetime) -> LoggedTurn:
        """The turn of a reply, right after what it answers at the earliest."""
        return LoggedTurn(
            message_id=new_id("m"),
            conversation_id=self.turn.conversation_id,
            parent_id=self.turn.message_id,
            role="assistant",
            owner=self.turn.owner,
            chain=longer(self.turn.chain, "assistant", text),
            time=max(now, self.time + _TICK),
            source=self.turn.source,
        )


def _unknown() -> ApiError:
    return ApiError(
        409,
        "unknown_history",
        "this is not how a conversation of this user with this character went: send all its messages as they "
        "were said, or begin a new one with the user's message alone",
    )


def _greeting(caller: Caller, chain: bytes, own: bool, now: datetime) -> LoggedTurn:
    """The first turn of a new conversation, in which the character speaks first.

    Raises:
        ApiError: these are not the character's own words, and the caller may not put others into its mouth.
    """
    if not (own or caller.greets):
        raise ApiError(
            403,
            "no_greeting",
            "a conversation begins with the character's own greeting (see GET /v1/models) or with the user's message; "
            "other greetings are for staff and for keys that speak for many users",
        )
    return LoggedTurn(
        message_id=new_id("m"),
        conversation_id=new_id("c"),
        parent_id=None,
        role=GREETING,
        owner=owner_of(caller.user_id),
        chain=chain,
        time=now,
        source=caller.source,
    )


def link(
    index: TurnIndex,
    caller: Caller,
    card_id: str,
    history: Sequence[Turn],
    *,
    greeting: str | None = None,
    conversation_id: str | None = None,
    regenerate: str | None = None,
) -> Link:
    """Find a request's place.

    Args:
        index: of what was said.
        caller: whose request it is.
        card_id: the character.
        history: all turns, the last one the user's.
        greeting: the character's own, with which anybody may begin.
        conversation_id: the conversation, if the client names it (two may have gone the same way so far).
        regenerate: id of the reply to ``history`` that is to be replaced, or None.

    Raises:
        ApiError: the logs have no such history, or no such reply.
    """
    now = datetime.now(UTC)
    chain = root_chain(caller.user_id, card_id, caller.source)
    chains: list[bytes] = []
    for before in history[:-1]:
        chains.append(chain := longer(chain, before["role"], before["content"]))
    refusals = index.refusals(chains)
    refused = frozenset(
        place for end, one in enumerate(chains) if one in refusals for place in (end - 1, end)
    )
    said = longer(chain, "user", history[-1]["content"])
    if regenerate is not None:
        reply = index.by_id(regenerate)
        asked = index.by_id(reply.parent_id) if reply is not None and reply.parent_id else None
        if reply is None or asked is None or reply.role == "user" or asked.chain != said:
            raise _unknown()
        return Link(asked, reply, max(now, reply.time + _TICK), refused)
    greeted = history[0]["role"] == "assistant"
    parent = said_first = None
    if len(history) > 1 + greeted or conversation_id is not None:
        parent = index.by_chain(chain, conversation_id)
        if parent is None:
            raise _unknown()
    elif greeted:
        parent = said_first = _greeting(caller, chain, history[0]["content"] == greeting, now)
    time = now if parent is None else max(now, parent.time + _TICK)
    turn = LoggedTurn(
        message_id=new_id("m"),
        conversation_id=new_id("c") if parent is None else parent.conversation_id,
        parent_id=None if parent is None else parent.message_id,
        role="user",
        owner=owner_of(caller.user_id),
        chain=said,
        time=time,
        source=caller.source,
    )
    return Link(turn, None, time, refused, said_first)
