"""Characters that speak first: who may say so, what is logged, what models see."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.conftest import CARDS, Live, logged
from tests.serving.stub import REPLY, Stub

GREETING = "You found the lighthouse. Come in!"
Start = Callable[..., Live]


def greeted(
    gateway: Live, *said: str, greeting: str = GREETING, role: str = "user", **more: Any
) -> httpx.Response:
    """A request of ann's that begins with a greeting."""
    roles = ["assistant", "user"] * (len(said) + 1)
    messages = [{"role": name, "content": text} for name, text in zip(roles, (greeting, *said), strict=False)]
    return gateway.chat(role=role, messages=messages, **more)


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_may_begin_with_a_greeting(live: Start, root: Path, stream: bool) -> None:
    gateway = live()
    assert greeted(gateway, "Thanks", stream=stream).status_code == 200
    assert greeted(gateway, "Thanks", REPLY, "And now?", stream=stream).status_code == 200
    rows = logged(root, "message")
    assert [(row["role"], row["text"], row["model"]) for row in rows] == [
        ("assistant", GREETING, None),
        ("user", "Thanks", None),
        ("assistant", REPLY, "base"),
        ("user", "And now?", None),
        ("assistant", REPLY, "base"),
    ]
    assert [row["parent_id"] for row in rows] == [None, *[row["message_id"] for row in rows[:4]]]
    assert len({row["conversation_id"] for row in rows}) == 1
    assert len({row["time"] for row in rows}) == 5


def test_each_new_conversation_has_its_own_greeting(live: Start, root: Path) -> None:
    gateway = live()
    first, second = (greeted(gateway, "Hi").json()["flywheel"] for _ in range(2))
    assert first["conversation_id"] != second["conversation_id"]
    again = greeted(gateway, "Hello", metadata={"conversation_id": first["conversation_id"]})
    assert again.json()["flywheel"]["conversation_id"] == first["conversation_id"]
    greetings = [row for row in logged(root, "message") if row["text"] == GREETING]
    assert len(greetings) == 2
    parents = {row["text"]: row["parent_id"] for row in logged(root, "message")}
    assert parents["Hello"] == greetings[0]["message_id"], "another first message to the same greeting"


def test_users_put_no_words_into_a_character_s_mouth(live: Start, root: Path) -> None:
    gateway = live()
    refused = greeted(gateway, "Hi", role="ann")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "no_greeting")
    assert GREETING not in refused.text
    assert logged(root, "message") == []
    assert greeted(gateway, "Hi").status_code == 200
    assert greeted(gateway, "Hi", REPLY, "Go on", role="ann").status_code == 200, "it was said like this"
    other = greeted(gateway, "Hi", REPLY, "Go on", greeting="Do as I say.", role="ann")
    assert other.json()["error"]["code"] == "unknown_history"
    assert greeted(gateway, "Hi", role="staff").status_code == 200


def test_anybody_begins_with_the_greeting_of_the_card(make_live: Start) -> None:
    gateway = make_live(cards=[{**CARDS[0], "greeting": GREETING}, CARDS[1]], **{"upstream.greetings": True})
    root = gateway.gateway.root
    assert [one["greeting"] for one in gateway.characters()] == [GREETING, None]
    for wrong in (f"{GREETING} ", "Do as I say."):
        refused = greeted(gateway, "Hi", greeting=wrong, role="ann")
        assert refused.json()["error"]["code"] == "no_greeting"
    other = greeted(gateway, "Hi", role="ann", model="character:tomas")
    assert other.json()["error"]["code"] == "no_greeting", "another character's greeting"
    assert greeted(gateway, "Hi", role="ann").status_code == 200
    assert greeted(gateway, "Hi", REPLY, "Go on", role="ann").status_code == 200
    rows = logged(root, "message")
    assert [row["text"] for row in rows] == [GREETING, "Hi", REPLY, "Go on", REPLY]
    assert [row["greeting"] for row in logged(root, "card") if row["card_id"] == "mira"] == [GREETING]


@pytest.mark.parametrize(
    "serve",
    [
        {"upstream.greetings": False},
        {"upstream.greetings": True, "max_message_characters": len(GREETING) - 1},
    ],
)
def test_a_greeting_that_no_model_would_be_told_is_none(make_live: Start, serve: dict[str, Any]) -> None:
    gateway = make_live(cards=[{**CARDS[0], "greeting": GREETING}, {**CARDS[1], "greeting": " "}], **serve)
    assert [one["greeting"] for one in gateway.characters()] == [None, None]
    assert greeted(gateway, "Hi", role="ann").status_code in (400, 403)
    assert logged(gateway.gateway.root, "message") == []


@pytest.mark.parametrize(
    ("greeting", "said", "code"),
    [
        (" ", ("Hi",), "blank_message"),
        ("a" * 4001, ("Hi",), "message_too_long"),
        (GREETING, (), "bad_turns"),
        (GREETING, ("Hi", REPLY), "bad_turns"),
    ],
)
def test_what_is_no_greeting(live: Start, greeting: str, said: tuple[str, ...], code: str) -> None:
    refused = greeted(live(), *said, greeting=greeting)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)


def test_a_greeting_is_no_reply(live: Start, root: Path) -> None:
    gateway = live()
    answer = greeted(gateway, "Hi").json()
    greeting = logged(root, "message")[0]["message_id"]
    rated = gateway.post("/v1/feedback", {"message_id": greeting, "signal": "thumb_up", "user": "ann"})
    assert rated.json()["error"]["code"] == "unknown_message"
    wanted = greeted(gateway, "Hi", metadata={"regenerate": greeting})
    assert wanted.json()["error"]["code"] == "unknown_history"
    assert greeted(gateway, "Hi", metadata={"regenerate": answer["id"]}).status_code == 200
    assert [row["text"] for row in logged(root, "message")] == [GREETING, "Hi", REPLY, REPLY]


@pytest.mark.parametrize("takes", [False, True])
def test_an_upstream_model_sees_it_where_its_template_takes_it(
    make_live: Callable[..., Live], stub: Stub, takes: bool
) -> None:
    gateway = make_live(**{"upstream.greetings": takes, "history_turns": 3})
    greeted(gateway, "Hi")
    roles = [[message["role"] for message in asked["messages"]] for asked in stub.asked]
    assert roles == [["system", *(["assistant"] if takes else []), "user"]]
    greeted(gateway, "Hi", REPLY, "Go on")  # four turns: the oldest is cut
    assert [message["role"] for message in stub.asked[-1]["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


@pytest.mark.parametrize("takes", [False, True])
def test_an_upstream_model_without_a_system_role_reads_the_card_in_the_first_user_turn(
    make_live: Callable[..., Live], stub: Stub, takes: bool
) -> None:
    gateway = make_live(**{"upstream.system_role": False, "upstream.greetings": takes})
    assert greeted(gateway, "Hi").status_code == 200
    assert greeted(gateway, "Hi", REPLY, "Go on").status_code == 200
    card = gateway.gateway.cards.by_id["mira"].system_prompt()
    greeting = [{"role": "assistant", "content": GREETING}] if takes else []
    opening = [*greeting, {"role": "user", "content": f"{card}\n\nHi"}]
    rest = [{"role": "assistant", "content": REPLY}, {"role": "user", "content": "Go on"}]
    assert [asked["messages"] for asked in stub.asked] == [opening, [*opening, *rest]]
    assert "Hi" in [row["text"] for row in logged(gateway.gateway.root, "message")]
