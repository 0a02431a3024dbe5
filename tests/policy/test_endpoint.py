"""Remote policies against a real HTTP server that speaks the chat-completions format; its replies are made up."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.policy.endpoint import Asked, ChatEndpoint, EndpointError
from flywheel_tasks.settings import RemotePolicy, Sampling

CARD = Card("c1", "Mae", ("dry",), ("Never use emoji.",))
SAMPLING = Sampling(max_new_tokens=20, temperature=0.7, top_k=50, batch_rows=8)


def endpoint(server, waits=None, **changes):
    entry = RemotePolicy(**{"name": "teacher", "endpoint": server.url, "model": "big", **changes})
    return ChatEndpoint(entry, SAMPLING, wait=(waits if waits is not None else []).append)


def prompts(count, seed=0):
    return [
        Asked(k, CARD, [{"role": "user", "content": f"Hello {k}"}], seed + 1000 * k) for k in range(count)
    ]


def replies(asked_of, asked, n):
    """Replies to each prompt, in the prompts' order."""
    found = dict(asked_of.draw(asked, n))
    assert set(found) == {one.number for one in asked}
    return [found[one.number] for one in asked]


def test_a_greeting_is_not_sent(server):
    """The server's template may insist that users begin."""
    history = [{"role": "assistant", "content": "Ahoy!"}, {"role": "user", "content": "Hello"}]
    replies(endpoint(server), [Asked(0, CARD, history, 0)], 1)
    assert [message["role"] for message in server.bodies[0]["messages"]] == ["system", "user"]


def test_replies_come_back_in_order_with_the_card_as_system_prompt(server):
    found = replies(endpoint(server), prompts(12, 5), 3)
    assert [len(replies) for replies in found] == [3] * 12
    assert all(
        reply.text.startswith(f"Hello {k} #") and reply.ended
        for k, replies in enumerate(found)
        for reply in replies
    )
    body = server.bodies[0]
    assert body["messages"][0] == {"role": "system", "content": CARD.system_prompt()}
    assert (body["model"], body["n"], body["temperature"], body["max_tokens"]) == ("big", 3, 0.7, 20)
    assert len({body["seed"] for body in server.bodies}) == 12


def test_the_same_seed_asks_the_same(server):
    replies(endpoint(server), prompts(5, 5), 2)
    first = sorted(body["seed"] for body in server.bodies)
    server.bodies.clear()
    replies(endpoint(server), prompts(5, 5), 2)
    assert sorted(body["seed"] for body in server.bodies) == first


def test_a_server_that_ignores_n_is_asked_again_with_other_seeds(server):
    server.ignores_n = True
    found = replies(endpoint(server), prompts(2, 1), 3)
    assert [len({reply.text for reply in replies}) for replies in found] == [3, 3]
    assert len(server.bodies) == 6


def test_a_reply_that_was_cut_off_ends_with_its_last_whole_sentence(server):
    whole = replies(endpoint(server), prompts(1), 1)[0][0]
    server.finish = "length"
    cut = replies(endpoint(server), prompts(1), 1)[0][0]
    assert (whole.text.endswith("And then"), whole.ended) == (True, True)
    assert (cut.text.endswith("!"), cut.ended) == (True, False)


@pytest.mark.parametrize(
    ("reason", "ended"), [(None, True), ("stop", True), ("length", False), ("content_filter", False)]
)
def test_only_a_reply_that_stopped_by_itself_is_whole(server, reason, ended):
    server.finish = reason
    reply = replies(endpoint(server), prompts(1), 1)[0][0]
    assert reply.ended is ended
    assert reply.text.endswith("And then" if ended else "!")


@pytest.mark.parametrize("reason", ["content_filter", "length", "tool_calls"])
def test_a_reply_without_a_text_was_cut_off_before_it_began(server, reason):
    """A reasoning model that thinks until the limit answers null."""
    server.document = {"choices": [{"message": {"content": None}, "finish_reason": reason}]}
    reply = replies(endpoint(server), prompts(1), 1)[0][0]
    assert (reply.text, reply.ended, reply.unanswered) == ("", False, None)


@pytest.mark.parametrize("reason", [None, "stop"])
def test_a_reply_that_ended_without_a_text_is_none(server, reason):
    server.document = {"choices": [{"message": {"content": None}, "finish_reason": reason}]}
    reply = replies(endpoint(server), prompts(1), 1)[0][0]
    assert (reply.text, reply.ended, reply.unanswered) == ("", False, "a message has no text")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_is_refused_has_empty_replies_that_say_why(server, status):
    server.refuse = {"Hello 1": status}
    found = replies(endpoint(server), prompts(3), 2)
    assert [[reply.text for reply in of_prompt] for of_prompt in found][1] == ["", ""]
    assert [of_prompt[0].unanswered is None for of_prompt in found] == [True, False, True]
    assert found[1][1].unanswered.startswith(f"HTTP {status}: ")
    assert len(server.bodies) == 3  # asked once


def test_half_an_emoji_does_not_fail_the_draw(server):
    server.document = b'{"choices":[{"message":{"content":"Fine \\ud83d"},"finish_reason":"length"}]}'
    assert replies(endpoint(server), prompts(1), 1)[0][0].text == "Fine \N{REPLACEMENT CHARACTER}"


def test_what_was_answered_by_then_is_given_before_a_failure(server):
    server.delay, server.refuse = 0.05, {"Hello 5": 401}
    got = []
    with pytest.raises(EndpointError, match="HTTP 401"):
        got.extend(endpoint(server, concurrency=4).draw(prompts(40), 1))
    asked = {body["messages"][-1]["content"] for body in server.bodies} - {"Hello 5"}
    assert {f"Hello {number}" for number, _ in got} == asked
    assert 5 <= len(asked) < 20  # and nothing more was asked


def test_no_more_requests_run_at_once_than_allowed(server):
    server.delay = 0.02
    replies(endpoint(server, concurrency=3), prompts(18), 1)
    assert 1 < server.most <= 3


def test_busy_answers_are_tried_again_with_growing_waits(server):
    waits = []
    server.failures = [529, 429, 520]  # overloaded, busy, and a proxy's own
    found = replies(endpoint(server, waits, concurrency=1), prompts(1), 1)
    assert found[0][0].text.startswith("Hello 0")
    assert waits == [0.5, 1.0, 2.0]


def test_a_server_may_ask_to_wait_longer_but_not_for_ever(server):
    waits = []
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    asked = ["7", "0", "100000", soon, "Mon, 01 Jan 2018 00:00:00 GMT", "soon"]
    server.failures = [(429, {"Retry-After": value}) for value in asked]
    replies(endpoint(server, waits, concurrency=1, retries=6), prompts(1), 1)
    assert waits[:3] == [7.0, 1.0, 120.0]
    assert 40 < waits[3] <= 50
    assert waits[4:] == [8.0, 16.0]


@pytest.mark.parametrize(("status", "requests"), [(500, 3), (401, 1), (404, 1)])
def test_a_request_that_keeps_failing_fails_the_draw(server, status, requests):
    server.failures = [status] * 9
    with pytest.raises(EndpointError, match=rf"policy teacher \(big at http.*\): HTTP {status}"):
        replies(endpoint(server, concurrency=1, retries=2), prompts(1), 1)
    assert len(server.bodies) == requests


def test_a_server_that_is_not_there_fails_the_draw():
    entry = RemotePolicy(name="teacher", endpoint="http://127.0.0.1:9/v1", model="big", retries=1)
    with pytest.raises(EndpointError, match="ConnectError"):
        replies(ChatEndpoint(entry, SAMPLING, wait=lambda _: None), prompts(1), 1)


@pytest.mark.parametrize(
    "document",
    [
        b"<html>",
        {},
        [],
        {"choices": []},
        {"choices": [{"finish_reason": "stop"}]},
        {"choices": [{"message": {"role": "assistant", "content": 3}}]},
    ],
)
def test_an_answer_that_is_no_chat_completion_fails_the_draw(server, document):
    server.document = document
    with pytest.raises(EndpointError, match="policy teacher"):
        replies(endpoint(server), prompts(1), 1)


def test_the_key_comes_from_the_environment_only(server, monkeypatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(EndpointError, match="TEACHER_KEY is not set"):
        replies(endpoint(server, api_key_env="TEACHER_KEY"), prompts(1), 1)
    monkeypatch.setenv("TEACHER_KEY", "very-secret")
    server.failures = [403]
    with pytest.raises(EndpointError) as caught:
        replies(endpoint(server, api_key_env="TEACHER_KEY"), prompts(1), 1)
    assert "very-secret" not in str(caught.value)
    assert server.headers[-1]["Authorization"] == "Bearer very-secret"
