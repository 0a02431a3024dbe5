"""Real data of others through the whole data side: persona-chat and RPBench as logs, hh-rlhf as people's labels.

The policy is a random tiny model and the labels of the first two are simulated; texts, cards and choices are real.
"""

import json
from datetime import date

import pytest

from flywheel_tasks.annotation import pairs as annotate
from flywheel_tasks.annotation.delivery import pin_labels
from flywheel_tasks.annotation.interface import better
from flywheel_tasks.annotation.label import run as label
from flywheel_tasks.annotation.label_studio import task_data
from flywheel_tasks.annotation.schemas import PAIRS
from flywheel_tasks.annotation.tasks import texts_of
from flywheel_tasks.contracts.enforce import contract_of
from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.pipeline.pinned_data import accepted_profile, launched_splits
from flywheel_tasks.pipeline.stage import run_stage
from flywheel_tasks.rewards.pairs import load_pairs
from flywheel_tasks.settings import SPLITS, load_settings
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json, read_jsonl, write_json, write_jsonl
from flywheel_tasks.storage.registry import open_registry
from flywheel_tasks.storage.tables import read_rows, write_rows
from flywheel_tasks.traffic.identity import DEMO_KEY, UserKey, pin_users
from flywheel_tasks.traffic.importers import read_hh_rlhf, read_persona_chat, read_rpbench, write_partitions
from flywheel_tasks.traffic.logs import pin_logs
from tests.annotation.exports import annotation, exported, filled
from tests.annotation.tasks_of_tests import task
from tests.conftest import build_workspace

START = date(2026, 3, 2)
CONVERSATIONS = 36
STAGES = ("ingest", "validate", "assemble", "curate", "split", "annotation_batch", "label", "annotate")
SMALL = {
    "curate.duplicate_cosine": 1.0,  # the tiny embedder finds everything alike
    "split.max_evaluation_cosine": 1.0,
    "prompt.max_tokens": 120,
    "sampling.max_new_tokens": 8,
    "rl.length_limit": 8,
    "annotation_batch.max_reward_train": 10,
    "annotation_batch.max_reward_heldout": 6,
    "annotation_batch.max_policy": 6,
    "annotation_batch.overlap": {"share": 0.5, "reviews": 3},
    "annotate.max_length_ratio": 20.0,
}


def events_of(shared_data):
    """Card and message events: the first conversations of persona-chat, a third of them as internal traffic."""
    chat = read_persona_chat(shared_data / "synthetic-persona-chat/valid.csv", start=START, source="user")
    names = sorted({row["conversation_id"] for row in chat.rows if row["type"] == "message"})[:CONVERSATIONS]
    source = {name: "internal" if k % 3 == 0 else "user" for k, name in enumerate(names)}
    messages = [
        row | {"source": source[row["conversation_id"]]}
        for row in chat.rows
        if row["type"] == "message" and row["conversation_id"] in source
    ]
    cards = {row["card_id"] for row in messages}
    people = [row for row in chat.rows if row["type"] == "card" and row["card_id"] in cards]
    characters = read_rpbench(shared_data / "rpbench/characters.jsonl", start=START, source="internal")
    return people + characters.rows + messages, messages, characters


@pytest.fixture(scope="module")
def data_side(shared_data, tiny_models, tmp_path_factory):
    """A workspace after all data stages, with each stage's metrics."""
    root = build_workspace(tmp_path_factory.mktemp("real"), SMALL)
    events, messages, characters = events_of(shared_data)
    write_partitions(events, root / "data/logs", "real")
    write_json(pin_logs("data/logs", root), root / "inputs/logs.json")
    write_json(pin_users(UserKey(DEMO_KEY).fingerprint, set()), root / "inputs/users.json")
    registry = open_registry("registry", root)
    write_json(accepted_profile(registry, "g0001"), root / "inputs/profile.json")
    write_json(launched_splits(registry, "g0001"), root / "inputs/splits.json")
    pin_labels(load_settings(root / "params.yaml").label, "g0001", root)
    (root / "models").mkdir()
    (root / "models/embedder").symlink_to(tiny_models / "embedder")
    (root / "inputs/champion").symlink_to(tiny_models / "talker")
    place = {"path": "inputs/champion", "digest": tree_digest(tiny_models / "talker"), "model": "base"}
    write_json({"policies": [{"name": "champion", **place}]}, root / "inputs/pool.json")
    for name in STAGES:
        run_stage(name, root)
    metrics = {name: read_json(root / f"metrics/{name}.json") for name in STAGES}
    return root, metrics, events, messages, characters


# Vectors, places of lines, and what was refused: these have rows of no contract.
_NO_CONTRACT = {"vectors", "origins", "quarantine"}


def test_every_table_has_a_contract_that_it_keeps(data_side):
    root, *_ = data_side
    contracts = load_contracts(root / "data_contracts")
    tables = [path for path in (root / "data").rglob("*") if path.suffix in (".parquet", ".jsonl")]
    found = {path.relative_to(root).as_posix() for path in tables if "logs" not in path.parts}
    without = {path for path in found if contract_of(path, contracts) is None}
    assert {path.rpartition("/")[2].partition(".")[0] for path in without} <= _NO_CONTRACT
    assert len(found - without) > 20


def test_every_event_is_accounted_for(data_side):
    _, metrics, events, messages, _ = data_side
    ingested = metrics["ingest"]
    assert ingested["read"] == len(events)
    assert ingested["accepted"]["total"] + ingested["quarantined"]["total"] + ingested["duplicates"] == len(
        events
    )
    assert ingested["accepted"]["message"] == len(messages)


def test_the_chats_of_persona_chat_are_prompts_with_their_own_words(data_side):
    root, _, _, messages, _ = data_side
    prompts = [row for split in SPLITS for row in read_rows(root / f"data/split/{split}.parquet")]
    curated = read_rows(root / "data/curated/prompts.parquet")
    assert sorted(row["prompt_id"] for row in prompts) == sorted(row["prompt_id"] for row in curated)
    assert len(prompts) > 60
    said = {row["text"].strip() for row in messages}
    own = [row for row in prompts if row["history"][-1]["content"].strip() in said]
    assert len(own) / len(prompts) > 0.8  # the others had something private replaced
    users = {}
    for split in SPLITS:
        for row in read_rows(root / f"data/split/{split}.parquet"):
            users.setdefault(row["user_id"], set()).add(split)
    assert all(len(splits) == 1 for splits in users.values())


def test_the_characters_of_rpbench_are_cards(data_side):
    root, _, _, _, characters = data_side
    cards = {row["card_id"] for row in read_rows(root / "data/ingested/cards.parquet")}
    assert len(characters.rows) > 70
    assert {row["card_id"] for row in characters.rows} <= cards


def test_they_reach_annotators_and_become_pairs(data_side):
    root, metrics, _, _, _ = data_side
    tasks = list(read_jsonl(root / "data/annotation/batch.jsonl"))
    assert metrics["annotation_batch"]["candidates_drawn"] == 3 * sum(
        metrics["annotation_batch"][purpose]["prompts"]
        for purpose in ("reward_train", "reward_heldout", "policy")
    )
    assert len(tasks) > 10
    assert metrics["label"]["labels"] == metrics["label"]["simulated"] == sum(row["reviews"] for row in tasks)
    found = load_pairs(root / "data/preferences/pairs.parquet")
    assert sum(map(len, found.values())) == metrics["annotate"]["pairs_total"] > 0
    assert metrics["annotate"]["considered"] == metrics["annotate"]["removed_total"] + metrics["annotate"][
        "spare"
    ] + sum(row["ranking"] for row in metrics["annotate"]["pairs"].values())


def people_of(rows):
    """hh-rlhf pairs as comparison tasks, and its choices as an export of Label Studio."""
    tasks, export = [], []
    for number, row in enumerate(rows):
        swapped = number % 2 == 1
        texts = (row["rejected"], row["chosen"]) if swapped else (row["chosen"], row["rejected"])
        card = {
            "card_id": row["card_id"],
            "name": row["card_name"],
            "traits": row["traits"],
            "instructions": row["instructions"],
        }
        purpose = ("reward_train", "reward_heldout")[int(row["user_id"][-1], 16) % 2]
        of = task(row["pair_id"], purpose, texts=texts, user=row["user_id"], card=card)
        of |= {"prompt_id": row["prompt_id"], "history": row["history"]}
        values = filled(of) | {"preference": [better("B" if swapped else "A")]}
        tasks.append(of)
        export.append(exported(of, annotation(of, values, number=number), number=number))
    return tasks, export


def test_the_choices_of_hh_rlhf_survive_the_round_trip(shared_data, make_io, tmp_path):
    imported = read_hh_rlhf(shared_data / "hh-rlhf/harmless-base-sample.jsonl.gz")
    assert len(imported.rows) + len(imported.skipped) == 1156
    write_rows(imported.rows, PAIRS, tmp_path / "all.parquet")
    assert sum(map(len, load_pairs(tmp_path / "all.parquet").values())) == len(imported.rows)
    rows = imported.rows[:150]
    tasks, export = people_of(rows)
    overrides = {"label.annotator": "files", "annotate.max_length_ratio": 3.0}
    io = make_io("label", tmp_path, overrides)
    write_jsonl(tasks, tmp_path / "data/annotation/batch.jsonl")
    (tmp_path / "data/labels/g0001").mkdir(parents=True)
    (tmp_path / "data/labels/g0001/people.json").write_text(json.dumps(export))
    pin_labels(io.settings.label, "g0001", tmp_path)
    metrics = label(io)
    assert (metrics["labels"], metrics["quarantined_total"], metrics["simulated"]) == (150, 0, 0)
    write_json(metrics, io.out("metrics/label.json"))
    io.commit()
    stage = make_io("annotate", tmp_path, overrides)
    made = annotate.run(stage)
    pairs = read_rows(stage.out("data/preferences") / "pairs.parquet")
    wanted = {(row["chosen"], row["rejected"]) for row in rows}
    assert all((pair["chosen"], pair["rejected"]) in wanted for pair in pairs)
    assert len(pairs) + made["removed_total"] == made["considered"] == 150
    assert set(made["removed"]) <= {"length_ratio", "emoji_difference"}
    assert made["removed"]["length_ratio"] > 5
    assert read_json(tmp_path / "metrics/label.json")["read"] == 150
    assert len(texts_of(tasks[0])) == 2
    assert task_data(tasks[0])["reply_0"] in (rows[0]["chosen"], rows[0]["rejected"])
