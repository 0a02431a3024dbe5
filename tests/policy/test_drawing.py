"""Draws from a remote policy: what is kept of one that failed, and what a prompt without an answer costs."""

import json

import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.chat.prompt import prompt_messages
from flywheel_tasks.policy.drawing import draw, unanswered
from flywheel_tasks.policy.endpoint import EndpointError
from flywheel_tasks.policy.pool import PoolError, open_pool
from flywheel_tasks.settings import Compute, RemotePolicy, Sampling

CARD = Card("c1", "Mae", ("dry",), ("Never use emoji.",))
SAMPLING = Sampling(max_new_tokens=20, temperature=0.7, top_k=50, batch_rows=8)


@pytest.fixture
def remote(server, tiny_models, tmp_path):
    """``remote(concurrency=2)``: the server as the only policy of a pool."""
    (tmp_path / "root/inputs").mkdir(parents=True)
    (tmp_path / "root/inputs/champion").symlink_to(tiny_models / "base")

    def make(**changes):
        entry = RemotePolicy(
            **{"name": "teacher", "endpoint": server.url, "model": "big", "retries": 0} | changes
        )
        compute = Compute(precision="float32", threads=1)
        options = {"sampling": SAMPLING, "compute": compute, "max_prompt_tokens": 120}
        (policy,) = open_pool((entry,), {"policies": []}, tmp_path / "root", **options)
        return policy

    return make


def prompts(count):
    return [(CARD, [{"role": "user", "content": f"Hello {k}"}]) for k in range(count)]


def asked(server):
    return sorted(body["messages"][-1]["content"] for body in server.bodies)


def test_replies_do_not_depend_on_how_many_prompts_are_asked_at_once(server, remote):
    one = draw(remote(concurrency=1), prompts(12), 2, 7, say=False)
    assert draw(remote(concurrency=8), prompts(12), 2, 7, say=False) == one
    assert [of_prompt[0].text.split(" #")[0] for of_prompt in one] == [f"Hello {k}" for k in range(12)]
    assert draw(remote(), prompts(12), 2, 8, say=False) != one
    assert len({body["seed"] for body in server.bodies}) == 24


def test_no_answer_is_paid_for_twice(server, remote, tmp_path):
    whole = draw(remote(), prompts(20), 2, 7, say=False)
    server.bodies.clear()
    server.refuse = {"Hello 11": 500}
    with pytest.raises(EndpointError, match="HTTP 500"):
        draw(remote(concurrency=4), prompts(20), 2, 7, tmp_path, say=False)
    answered = [text for text in asked(server) if text != "Hello 11"]
    lines = [json.loads(line) for line in (tmp_path / "teacher.jsonl").read_bytes().splitlines()]
    assert len(answered) == len(lines) >= 11
    server.bodies.clear()
    server.refuse = {}
    assert draw(remote(concurrency=2), prompts(20), 2, 7, tmp_path, say=False) == whole
    assert sorted([*asked(server), *answered]) == sorted(f"Hello {k}" for k in range(20))


def test_a_prompt_that_is_refused_costs_only_itself_and_is_asked_again(server, remote, tmp_path):
    server.refuse = {"Hello 3": 400}
    found = draw(remote(), prompts(20), 2, 7, tmp_path, say=False)
    assert unanswered(found) == 1
    assert [k for k, of_prompt in enumerate(found) if not any(reply.text for reply in of_prompt)] == [3]
    server.refuse = {}
    server.bodies.clear()
    assert unanswered(draw(remote(), prompts(20), 2, 7, tmp_path, say=False)) == 0
    assert asked(server) == ["Hello 3"]


@pytest.mark.parametrize(
    ("count", "refused", "fails"), [(1, 1, True), (2, 1, False), (40, 2, False), (40, 3, True)]
)
def test_a_server_that_refuses_many_prompts_fails_the_draw(server, remote, tmp_path, count, refused, fails):
    server.refuse = {f"Hello {k}": 422 for k in range(refused)}
    if not fails:
        assert unanswered(draw(remote(), prompts(count), 1, 7, tmp_path, say=False)) == refused
        return
    with pytest.raises(
        PoolError, match=rf"policy teacher@big gives no answer to {refused} of {count}.*HTTP 422"
    ):
        draw(remote(), prompts(count), 1, 7, tmp_path, say=False)
    server.bodies.clear()
    server.refuse = {}
    assert unanswered(draw(remote(), prompts(count), 1, 7, tmp_path, say=False)) == 0
    assert len(server.bodies) == refused


def test_a_remote_policy_is_shown_the_turns_that_a_local_one_is(server, remote, tiny_models):
    from transformers import AutoTokenizer

    history = [
        {"role": "user" if k % 2 == 0 else "assistant", "content": f"Turn {k} is about the sea."}
        for k in range(41)
    ]
    draw(remote(), [(CARD, history)], 1, 7, say=False)
    shown = prompt_messages(AutoTokenizer.from_pretrained(tiny_models / "base"), CARD, history, 120)
    sent = server.bodies[0]["messages"]
    first = next(place for place, turn in enumerate(shown) if turn["role"] == "user")
    assert sent == [shown[0], *shown[first:]]
    assert 3 <= len(sent) < 15
