"""Remote policies against a real HTTP server that speaks the chat-completions format; its replies are made up."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.policy.endpoint import ChatEndpoint, EndpointError
from flywheel_tasks.settings import RemotePolicy, Sampling

CARD = Card("c1", "Mae", ("dry",), ("Never use emoji.",))
SAMPLING = Sampling(max_new_tokens=20, temperature=0.7, top_k=50, batch_rows=8)


class Server:
    """Answers ``<last user turn> #<seed>``; what else it does is set by its attributes."""

    def __init__(self):
        self.failures, self.bodies, self.headers = [], [], []
        self.ignores_n, self.finish, self.document = False, "stop", None
        self.running = self.most = 0
        self.delay = 0.0
        self._lock = threading.Lock()

    def answer(self, body, headers):
        with self._lock:
            self.bodies.append(body)
            self.headers.append(dict(headers))
            self.running += 1
            self.most = max(self.most, self.running)
            failure = self.failures.pop(0) if self.failures else None
        time.sleep(self.delay)
        with self._lock:
            self.running -= 1
        if failure:
            return failure, {"error": {"message": "busy"}}
        if self.document is not None:
            return 200, self.document
        count = 1 if self.ignores_n else body["n"]
        said = body["messages"][-1]["content"]
        choices = [
            {
                "index": k,
                "message": {"role": "assistant", "content": f" {said} #{body['seed']}.{k}! And then "},
                "finish_reason": self.finish,
            }
            for k in range(count)
        ]
        return 200, {"id": "x", "object": "chat.completion", "model": body["model"], "choices": choices}


@pytest.fixture
def server():
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                status, document = 404, {}
            else:
                status, document = state.answer(body, self.headers)
            payload = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield state
    http.shutdown()
    http.server_close()


def endpoint(server, waits=None, **changes):
    entry = RemotePolicy(**{"name": "teacher", "endpoint": server.url, "model": "big", **changes})
    return ChatEndpoint(entry, SAMPLING, wait=(waits if waits is not None else []).append)


def prompts(count):
    return [(CARD, [{"role": "user", "content": f"Hello {k}"}]) for k in range(count)]


def test_a_greeting_is_not_sent(server):
    """The server's template may insist that users begin."""
    history = [{"role": "assistant", "content": "Ahoy!"}, {"role": "user", "content": "Hello"}]
    endpoint(server).draw([(CARD, history)], 1, 0)
    assert [message["role"] for message in server.bodies[0]["messages"]] == ["system", "user"]


def test_replies_come_back_in_order_with_the_card_as_system_prompt(server):
    found = endpoint(server).draw(prompts(12), 3, seed=5)
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
    endpoint(server).draw(prompts(5), 2, seed=5)
    first = sorted(body["seed"] for body in server.bodies)
    server.bodies.clear()
    endpoint(server).draw(prompts(5), 2, seed=5)
    assert sorted(body["seed"] for body in server.bodies) == first


def test_a_server_that_ignores_n_is_asked_again_with_other_seeds(server):
    server.ignores_n = True
    found = endpoint(server).draw(prompts(2), 3, seed=1)
    assert [len({reply.text for reply in replies}) for replies in found] == [3, 3]
    assert len(server.bodies) == 6


def test_a_reply_that_was_cut_off_ends_with_its_last_whole_sentence(server):
    whole = endpoint(server).draw(prompts(1), 1, seed=0)[0][0]
    server.finish = "length"
    cut = endpoint(server).draw(prompts(1), 1, seed=0)[0][0]
    assert (whole.text.endswith("And then"), whole.ended) == (True, True)
    assert (cut.text.endswith("!"), cut.ended) == (True, False)


@pytest.mark.parametrize(
    ("reason", "ended"), [(None, True), ("stop", True), ("length", False), ("content_filter", False)]
)
def test_only_a_reply_that_stopped_by_itself_is_whole(server, reason, ended):
    server.finish = reason
    reply = endpoint(server).draw(prompts(1), 1, seed=0)[0][0]
    assert reply.ended is ended
    assert reply.text.endswith("And then" if ended else "!")


def test_a_reply_that_the_servers_filter_held_back_is_empty_and_fails_nothing(server):
    message = {"role": "assistant", "content": None}
    server.document = {"choices": [{"message": message, "finish_reason": "content_filter"}]}
    reply = endpoint(server).draw(prompts(1), 1, seed=0)[0][0]
    assert (reply.text, reply.ended) == ("", False)


def test_no_more_requests_run_at_once_than_allowed(server):
    server.delay = 0.02
    endpoint(server, concurrency=3).draw(prompts(18), 1, seed=0)
    assert 1 < server.most <= 3


def test_busy_answers_are_tried_again_with_growing_waits(server):
    waits = []
    server.failures = [503, 429, 500]
    found = endpoint(server, waits, concurrency=1).draw(prompts(1), 1, seed=0)
    assert found[0][0].text.startswith("Hello 0")
    assert waits == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(("status", "requests"), [(500, 3), (400, 1), (401, 1)])
def test_a_request_that_keeps_failing_or_is_refused_fails_the_draw(server, status, requests):
    server.failures = [status] * 9
    with pytest.raises(EndpointError, match=rf"policy teacher \(big at http.*\): HTTP {status}"):
        endpoint(server, concurrency=1, retries=2).draw(prompts(1), 1, seed=0)
    assert len(server.bodies) == requests


def test_a_server_that_is_not_there_fails_the_draw():
    entry = RemotePolicy(name="teacher", endpoint="http://127.0.0.1:9/v1", model="big", retries=1)
    with pytest.raises(EndpointError, match="ConnectError"):
        ChatEndpoint(entry, SAMPLING, wait=lambda _: None).draw(prompts(1), 1, seed=0)


@pytest.mark.parametrize(
    "document",
    [
        b"<html>",
        {},
        [],
        {"choices": []},
        {"choices": [{"finish_reason": "stop"}]},
        {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": []}}]},
    ],
)
def test_an_answer_that_is_no_chat_completion_fails_the_draw(server, document):
    server.document = document
    with pytest.raises(EndpointError, match="policy teacher"):
        endpoint(server).draw(prompts(1), 1, seed=0)


def test_the_key_comes_from_the_environment_only(server, monkeypatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(EndpointError, match="TEACHER_KEY is not set"):
        endpoint(server, api_key_env="TEACHER_KEY").draw(prompts(1), 1, seed=0)
    monkeypatch.setenv("TEACHER_KEY", "very-secret")
    server.failures = [403]
    with pytest.raises(EndpointError) as caught:
        endpoint(server, api_key_env="TEACHER_KEY").draw(prompts(1), 1, seed=0)
    assert "very-secret" not in str(caught.value)
    assert server.headers[-1]["Authorization"] == "Bearer very-secret"
