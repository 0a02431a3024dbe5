import pytest

from flywheel_tasks.annotation import batch
from flywheel_tasks.annotation.interface import interface_id
from flywheel_tasks.annotation.reading import read_files
from flywheel_tasks.annotation.tasks import AnnotationError
from flywheel_tasks.curation.tables import CARDS, PROMPTS
from flywheel_tasks.policy.pool import PoolError
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.settings import SPLITS, load_settings
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_jsonl, write_json, write_jsonl
from flywheel_tasks.storage.tables import write_rows
from tests.annotation.tasks_of_tests import label
from tests.conftest import PROJECT
from tests.curation.rows import prompt

CARD = {"card_id": "c1", "name": "Mae", "traits": ["dry"], "instructions": ["Never use emoji."]}


def pin(root, **folders):
    rows = [
        {"name": name, "path": f"inputs/{name}", "digest": tree_digest(path), "model": "m"}
        for name, path in folders.items()
    ]
    write_json({"policies": rows}, root / "inputs/pool.json")


def workspace(make_io, root, champion, overrides=None):
    settings = {
        "annotation_batch.candidates": 3,
        "annotation_batch.max_reward_train": 4,
        "annotation_batch.max_reward_heldout": 3,
        "annotation_batch.max_policy": 2,
        "annotation_batch.max_rewrite": 0,
        "sampling.max_new_tokens": 6,
        "rl.length_limit": 6,
        "compute.threads": 1,
    }
    io = make_io("annotation_batch", root, {**settings, **(overrides or {})})
    (root / "inputs").mkdir(exist_ok=True)
    (root / "inputs/champion").symlink_to(champion)
    pin(root, champion=champion)
    write_rows([CARD], CARDS, root / "data/curated/cards.parquet")
    for name in SPLITS:
        rows = [
            prompt(
                f"{name}-{k}",
                f"Tell me about {k}.",
                f"{name}-u{k}",
                "internal" if k % 2 else "user",
                reply="LOGGED",
            )
            | {"signals": ["thumb_down"] if k < 3 else []}
            for k in range(8)
        ]
        write_rows(rows, PROMPTS, root / f"data/split/{name}.parquet")
    return io


def test_tasks_of_every_purpose_from_a_real_tiny_model(make_io, tiny_models, tmp_path):
    io = workspace(make_io, tmp_path, tiny_models / "base")
    metrics = batch.run(io)
    tasks = list(read_jsonl(io.out("data/annotation/batch.jsonl")))
    assert {
        purpose: metrics[purpose]["tasks"] for purpose in ("reward_train", "reward_heldout", "policy")
    } == {
        "reward_train": 4,
        "reward_heldout": 3,
        "policy": 2,
    }
    assert metrics["reward_train"]["by_source"] == {"internal": 2, "user": 2}
    ids = [candidate["candidate_id"] for task in tasks for candidate in task["candidates"]]
    assert len(set(ids)) == len(ids) == metrics["candidates_kept"]
    assert all(task["prompt_id"].startswith(("reward_", "policy_train")) for task in tasks)
    assert not any(candidate["text"] == "LOGGED" for task in tasks for candidate in task["candidates"])
    assert tasks[0]["card"] == CARD


class Fixed:
    """A policy that gives one reply to each even prompt and two to the others."""

    name, policy_id = "fixed", "fixed@0"

    def chunk(self, n):
        return 100

    def lengths(self, prompts):
        return [0] * len(prompts)

    texts = (("same", " same ", ""), ("one", "two", "one"))

    def draw(self, chunks, n):
        for chunk in chunks:
            texts = [self.texts[k % len(self.texts)] for k in range(len(chunk.prompts))]
            yield chunk.number, [[Reply(text, None, True) for text in drawn] for drawn in texts]

    def release(self):
        pass


def test_prompts_with_too_few_distinct_candidates_are_counted(make_io, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "open_pool", lambda *args, **kwargs: [Fixed()])
    io = workspace(make_io, tmp_path, tiny_models / "base")
    metrics = batch.run(io)
    assert metrics["unanswered"] == {"fixed": 0}
    tasks = list(read_jsonl(io.out("data/annotation/batch.jsonl")))
    assert all(sorted(c["text"] for c in task["candidates"]) == ["one", "two"] for task in tasks)
    for purpose, count in (("reward_train", 4), ("reward_heldout", 3), ("policy", 2)):
        assert metrics[purpose]["prompts"] == count
        assert metrics[purpose]["tasks"] + metrics[purpose]["dropped_too_few_candidates"] == count
    assert (
        sum(metrics[purpose]["tasks"] for purpose in ("reward_train", "reward_heldout", "policy"))
        == len(tasks)
        == 4
    )


def test_replies_that_say_an_identifier_are_not_offered(make_io, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(Fixed, "texts", [["one", "two", "Text me: 07911 123456"]])
    monkeypatch.setattr(batch, "open_pool", lambda *args, **kwargs: [Fixed()])
    metrics = batch.run(io := workspace(make_io, tmp_path, tiny_models / "base"))
    tasks = list(read_jsonl(io.out("data/annotation/batch.jsonl")))
    assert {c["text"] for task in tasks for c in task["candidates"]} == {"one", "two"}
    assert metrics["candidates_with_identifiers"] == len(tasks) == metrics["candidates_drawn"] / 3


def test_a_prompt_without_a_card_is_an_error(make_io, tiny_models, tmp_path):
    io = workspace(make_io, tmp_path, tiny_models / "base")
    write_rows([{**CARD, "card_id": "other"}], CARDS, tmp_path / "data/curated/cards.parquet")
    with pytest.raises(AnnotationError, match="no card for prompt"):
        batch.run(io)


def test_replies_are_shown_in_an_order_that_the_seed_draws_and_that_is_recorded(
    make_io, tiny_models, tmp_path, monkeypatch
):
    monkeypatch.setattr(batch, "open_pool", lambda *args, **kwargs: [Fixed()])
    more = {"annotation_batch.max_reward_train": 8, "annotation_batch.max_reward_heldout": 8}
    io = workspace(make_io, tmp_path, tiny_models / "base", more)
    batch.run(io)
    tasks = list(read_jsonl(io.out("data/annotation/batch.jsonl")))
    first = {task["candidates"][0]["text"] for task in tasks}
    assert first == {"one", "two"}  # neither is always shown first
    for task in tasks:
        for candidate in task["candidates"]:
            assert candidate["text"] == ("one", "two")[candidate["drawn"]]
    batch.run(io)
    assert list(read_jsonl(io.out("data/annotation/batch.jsonl"))) == tasks


def made(kind, replies, card=CARD, history="Hello?"):
    """A task of the same prompt, of whatever was drawn for it."""
    settings = load_settings(PROJECT / "params.yaml").annotation_batch
    maker = batch.TaskMaker(settings, 1, {"c1": card})
    row = prompt("p1", history, "u1", "user")
    return maker.make(kind, "policy", row, [(f"policy-{k}", text) for k, text in enumerate(replies)])


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("comparison", {"replies": ["one", "two"]}, {"replies": ["one", "three"]}),
        ("comparison", {"replies": ["one", "two"]}, {"replies": ["two", "one"]}),  # the places are swapped
        ("rewrite", {"replies": ["bad"]}, {"replies": ["worse"]}),
        ("rewrite", {"replies": ["bad"]}, {"replies": ["bad"], "history": "Goodbye?"}),
        (
            "comparison",
            {"replies": ["one", "two"]},
            {"replies": ["one", "two"], "card": {**CARD, "traits": []}},
        ),
    ],
)
def test_labels_of_what_was_shown_before_are_not_joined_to_what_is_shown_now(tmp_path, kind, old, new):
    old, new = made(kind, **old), made(kind, **new)
    write_jsonl([label(old, rewrite=(0, "better") if kind == "rewrite" else None)], tmp_path / "mo.jsonl")
    files = [("mo.jsonl", tmp_path / "mo.jsonl")]
    assert len(read_files(files, [old]).labels) == 1
    reading = read_files(files, [new])
    assert reading.labels == []
    assert [row["rule"] for row in reading.quarantined] == ["unknown_task"]
    ids = [{candidate["candidate_id"] for candidate in of["candidates"]} for of in (old, new)]
    assert not ids[0] & ids[1]


def test_the_same_replies_in_the_same_order_are_the_same_task():
    assert made("comparison", ["one", "two"]) == made("comparison", ["one", "two"])
    assert made("comparison", ["a"])["task_id"] != made("rewrite", ["a"])["task_id"]


def test_a_pool_of_two_shares_the_candidates_out_and_each_records_its_policy(make_io, tiny_models, tmp_path):
    io = workspace(make_io, tmp_path, tiny_models / "base")
    (tmp_path / "inputs/previous").symlink_to(tiny_models / "talker")
    pin(tmp_path, champion=tiny_models / "base", previous=tiny_models / "talker")
    metrics = batch.run(io)
    tasks = list(read_jsonl(io.out("data/annotation/batch.jsonl")))
    assert metrics["candidates_drawn"] == 3 * 9
    for task in tasks:
        names = sorted(candidate["policy"].split("@")[0] for candidate in task["candidates"])
        assert set(names) <= {"champion", "previous"}
        assert names.count("previous") <= 1
    assert {key.split("@")[0] for key in metrics["candidates_by_policy"]} == {"champion", "previous"}


def test_a_policy_that_is_not_what_was_pinned_stops_the_stage(make_io, tiny_models, tmp_path):
    io = workspace(make_io, tmp_path, tiny_models / "base")
    pin(tmp_path, champion=tiny_models / "talker")
    with pytest.raises(PoolError, match=r"policy champion: .* pinned is"):
        batch.run(io)


def test_kinds_reviews_and_rewrite_tasks(make_io, tiny_models, tmp_path):
    overrides = {
        "annotation_batch.max_rewrite": 2,
        "annotation_batch.overlap": {"share": 1.0, "reviews": 2},
        "annotation_batch.questions": [{"name": "tone", "text": "Tone?", "choices": ["warm", "cold"]}],
    }
    io = workspace(make_io, tmp_path, tiny_models / "base", overrides)
    metrics = batch.run(io)
    tasks = list(read_jsonl(io.out("data/annotation/batch.jsonl")))
    assert metrics["kinds"] == {"comparison": 7, "rewrite": 2, "steerability": 2}
    assert {task["reviews"] for task in tasks if task["purpose"] == "reward_heldout"} == {3}
    assert {task["reviews"] for task in tasks if task["purpose"] != "reward_heldout"} == {2}
    assert len({task["task_id"] for task in tasks}) == len(tasks)
    rewrites = [task for task in tasks if task["kind"] == "rewrite"]
    assert all(task["candidates"][0]["text"] == "LOGGED" for task in rewrites)
    assert all(task["purpose"] == "policy" for task in rewrites)
    assert tasks[0]["questions"][-1] == {"name": "tone", "text": "Tone?", "choices": ["warm", "cold"]}
    assert len({interface_id(task) for task in tasks}) <= 5


def test_rewritten_is_what_users_disliked_and_then_what_breaks_the_card():
    cards = {
        "c1": {"card_id": "c1", "name": "Mira", "traits": [], "instructions": ["Always end with a question."]}
    }

    def row(name, reply, *signals):
        return {"prompt_id": name, "card_id": "c1", "reply": reply, "signals": list(signals)}

    rows = [
        row("kept", "Is it?"),
        row("broken", "It is."),
        row("empty", " "),
        row("disliked", "Is it?", "thumb_down"),
        row("both", "It is.", "regenerate"),
        row("liked", "It is.", "love"),
    ]
    found = [one["prompt_id"] for one in batch.to_rewrite(rows, cards, 10, seed=1)]
    assert sorted(found[:2]) == ["both", "disliked"]
    assert sorted(found[2:]) == ["broken", "liked"]
    assert [one["prompt_id"] for one in batch.to_rewrite(rows, cards, 3, seed=1)] == found[:3]


def test_the_share_of_overlap_is_drawn_by_prompt(make_io):
    settings = load_settings(PROJECT / "params.yaml").annotation_batch
    drawn = [batch.reviews_of(settings, "reward_train", f"p{k}", 1) for k in range(4000)]
    share = sum(reviews == settings.overlap.reviews for reviews in drawn) / len(drawn)
    assert abs(share - settings.overlap.share) < 0.02
    assert batch.reviews_of(settings, "reward_heldout", "p1", 1) == 3
