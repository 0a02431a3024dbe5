"""Schemas of the tables of ``data/conversations``, and the names of what can be wrong with a conversation."""

import pyarrow as pa

from flywheel_tasks.traffic.schemas import TIME

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
STRINGS = pa.list_(pa.string())

# The newest version of each card.
CARDS = pa.schema(
    [("card_id", pa.string()), ("name", pa.string()), ("traits", STRINGS), ("instructions", STRINGS)]
)

# One user turn a row: the history that ends with it, and the first reply that it got.
PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("conversation_id", pa.string()),
        ("user_id", pa.string()),
        ("source", pa.string()),
        ("card_id", pa.string()),
        ("turn", pa.int64()),
        ("history", TURNS),
        ("reply", pa.string()),
        ("reply_model", pa.string()),
        ("signals", STRINGS),
    ]
)
# What assembly writes: when the turn was sent, too.
TIMED_PROMPTS = PROMPTS.append(pa.field("time", TIME))

# Two replies to one prompt of which one was preferred, by what users did: weaker than a label.
SIBLINGS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("conversation_id", pa.string()),
        ("user_id", pa.string()),
        ("source", pa.string()),
        ("card_id", pa.string()),
        ("history", TURNS),
        ("chosen_id", pa.string()),
        ("chosen", pa.string()),
        ("chosen_model", pa.string()),
        ("rejected_id", pa.string()),
        ("rejected", pa.string()),
        ("rejected_model", pa.string()),
        ("known_by", pa.string()),
    ]
)

# One event a row that is in no conversation, and why.
PROBLEMS = pa.schema(
    [
        ("event_id", pa.string()),
        ("type", pa.string()),
        ("conversation_id", pa.string()),
        ("message_id", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

# Why a conversation has no order; the first one that holds is named. All of its events go with it.
REASONS = {
    "repeated_message_id": "two messages have one id",
    "missing_parent": "a message answers one that is not in the conversation",
    "cycle": "messages answer one another in a circle",
    "no_root": "every first message replaces another one",
    "two_roots": "several messages answer nothing",
    "bad_replacement": "a message replaces one that is not there, of the other role, or that answers another one",
    "signal_without_message": "the signal's message is not in its conversation",
}
