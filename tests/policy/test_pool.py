from itertools import pairwise

import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.policy.drawing import draw
from flywheel_tasks.policy.pool import LocalPolicy, PoolError, open_pool, share_out
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.settings import Compute, Sampling
from flywheel_tasks.settings import LocalPolicy as LocalEntry
from flywheel_tasks.storage.digests import tree_digest

CARD = Card("c1", "Mae", ("dry",), ("Never use emoji.",))
SAMPLING = Sampling(max_new_tokens=6, temperature=0.9, top_k=50, batch_rows=8)
OPTIONS = {
    "sampling": SAMPLING,
    "compute": Compute(precision="float32", threads=1),
    "max_prompt_tokens": 120,
}


def prompts(count):
    return [(CARD, [{"role": "user", "content": "word " * (1 + 7 * k % 11)}]) for k in range(count)]


class Counted:
    """A policy that answers with the seed and its prompt's length, and may be killed after some chunks."""

    name, policy_id = "counted", "counted@1"

    def __init__(self, killed_after=None):
        self.calls, self.killed_after = 0, killed_after

    def chunk(self, n):
        return 3

    def lengths(self, chats):
        return [len(history[-1]["content"]) for _, history in chats]

    def draw(self, chunks, n):
        for chunk in chunks:
            if self.calls == self.killed_after:
                raise KeyboardInterrupt
            self.calls += 1
            yield (
                chunk.number,
                [
                    [Reply(f"{chunk.seed}:{len(history[-1]['content'])}:{k}", 3, k > 0) for k in range(n)]
                    for _, history in chunk.prompts
                ],
            )

    def release(self):
        self.released = True


def test_replies_keep_the_order_of_the_prompts_and_chunks_hold_similar_lengths():
    asked = prompts(10)
    found = draw(Counted(), asked, 2, 4, say=False)
    assert [[int(reply.text.split(":")[1]) for reply in replies] for replies in found] == [
        [len(history[-1]["content"])] * 2 for _, history in asked
    ]
    by_seed = {}
    for replies in found:
        seed, length, _ = replies[0].text.split(":")
        by_seed.setdefault(seed, []).append(int(length))
    ranges = sorted((min(lengths), max(lengths)) for lengths in by_seed.values())
    assert len(ranges) == 4
    assert all(first[1] <= second[0] for first, second in pairwise(ranges))


@pytest.mark.parametrize("killed_after", [0, 1, 3])
@pytest.mark.parametrize("half_written", [False, True])
def test_a_killed_draw_goes_on_and_gives_the_same(tmp_path, killed_after, half_written):
    asked, whole = prompts(10), draw(Counted(), prompts(10), 2, 4, say=False)
    with pytest.raises(KeyboardInterrupt):
        draw(Counted(killed_after), asked, 2, 4, tmp_path, say=False)
    if half_written:
        with (tmp_path / "counted.jsonl").open("ab") as journal:
            journal.write(b'{"chunk":')
    again = Counted()
    assert draw(again, asked, 2, 4, tmp_path, say=False) == whole
    assert again.calls == 4 - killed_after
    done = Counted(killed_after=0)
    assert draw(done, asked, 2, 4, tmp_path, say=False) == whole


def test_a_real_tiny_model_resumed_gives_what_an_uninterrupted_draw_gives(tiny_models, tmp_path):
    folder = tiny_models / "talker"
    policy = LocalPolicy("champion", folder, tree_digest(folder), **OPTIONS)
    whole = draw(policy, prompts(9), 2, 4, say=False)
    draw(policy, prompts(9), 2, 4, tmp_path, say=False)
    lines = (tmp_path / "champion.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "champion.jsonl").write_bytes(b"".join(lines[:1]))
    assert len(lines) == 3
    assert draw(policy, prompts(9), 2, 4, tmp_path, say=False) == whole
    assert draw(policy, prompts(9), 2, 5, say=False) != whole


def test_candidates_are_shared_out_evenly_the_first_one_more():
    pool = [Counted() for _ in range(4)]
    assert [n for _, n in share_out(pool[:2], 3)] == [2, 1]
    assert [n for _, n in share_out(pool, 3)] == [1, 1, 1]
    assert [n for _, n in share_out(pool[:1], 3)] == [3]


def test_the_pool_is_what_was_pinned(tiny_models, tmp_path):
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs/champion").symlink_to(tiny_models / "base")
    row = {"path": "inputs/champion", "digest": tree_digest(tiny_models / "base"), "model": "g0001"}
    pinned = {"policies": [{"name": "champion", **row}]}
    pool = open_pool(("champion", "previous"), pinned, tmp_path, **OPTIONS)
    assert [policy.policy_id.split("@")[0] for policy in pool] == ["champion"]
    with pytest.raises(PoolError, match=r"policy teacher is not pinned"):
        open_pool((LocalEntry(name="teacher", model="x"),), pinned, tmp_path, **OPTIONS)
    wrong = {"policies": [{"name": "champion", **row, "digest": "sha256:0"}]}
    with pytest.raises(PoolError, match=r"policy champion: .* is sha256:.*, pinned is sha256:0"):
        open_pool(("champion",), wrong, tmp_path, **OPTIONS)
    with pytest.raises(PoolError, match="no policy of the pool is there"):
        open_pool(("previous",), pinned, tmp_path, **OPTIONS)
