import pytest

from flywheel_tasks.annotation import batch
from flywheel_tasks.annotation.tasks import AnnotationError
from flywheel_tasks.curation.tables import CARDS, PROMPTS
from flywheel_tasks.settings import SPLITS
from flywheel_tasks.storage.documents import read_jsonl
from flywheel_tasks.storage.tables import write_rows
from tests.curation.rows import prompt

CARD = {"card_id": "c1", "name": "Mae", "traits": ["dry"], "instructions": ["Never use emoji."]}


def workspace(make_io, root, champion, overrides=None):
    settings = {
        "annotation_batch.candidates": 3,
        "annotation_batch.max_reward_train": 4,
        "annotation_batch.max_reward_heldout": 3,
        "annotation_batch.max_policy": 2,
        "sampling.max_new_tokens": 6,
        "compute.threads": 1,
    }
    io = make_io("annotation_batch", root, {**settings, **(overrides or {})})
    (root / "inputs").mkdir(exist_ok=True)
    (root / "inputs/champion").symlink_to(champion)
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
    """A sampler that gives one reply to each even prompt and two to the others."""

    def __init__(self, *args, **kwargs):
        pass

    def sample(self, prompts, n, seed, progress=None):
        return [["same", " same ", ""] if k % 2 == 0 else ["one", "two", "one"] for k in range(len(prompts))]


def test_prompts_with_too_few_distinct_candidates_are_counted(make_io, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "Sampler", Fixed)
    io = workspace(make_io, tmp_path, tiny_models / "base")
    metrics = batch.run(io)
    tasks = list(read_jsonl(io.out("data/annotation/batch.jsonl")))
    assert all([c["text"] for c in task["candidates"]] == ["one", "two"] for task in tasks)
    for purpose, count in (("reward_train", 4), ("reward_heldout", 3), ("policy", 2)):
        assert metrics[purpose]["prompts"] == count
        assert metrics[purpose]["tasks"] + metrics[purpose]["dropped_too_few_candidates"] == count
    assert (
        sum(metrics[purpose]["tasks"] for purpose in ("reward_train", "reward_heldout", "policy"))
        == len(tasks)
        == 4
    )


def test_a_prompt_without_a_card_is_an_error(make_io, tiny_models, tmp_path):
    io = workspace(make_io, tmp_path, tiny_models / "base")
    write_rows([{**CARD, "card_id": "other"}], CARDS, tmp_path / "data/curated/cards.parquet")
    with pytest.raises(AnnotationError, match="no card for prompt"):
        batch.run(io)
