import re
from pathlib import Path

import orjson
import pytest

from flywheel_tasks.simulation.panel import GROUPS, TURNS, cards_of, measure
from flywheel_tasks.simulation.population import answerable, bank, make_population
from flywheel_tasks.simulation.rewriting import said_last
from flywheel_tasks.storage.documents import read_jsonl
from tests.simulation.replies import REPLIES, PoolSampler


def test_everybody_talks_to_every_group_and_nobody_leaves():
    rows = measure(PoolSampler(), 12)
    assert len(rows) == len(GROUPS) * 12 * TURNS
    users = {group: {row["user_id"] for row in rows if row["group"] == group} for group in GROUPS}
    assert users["training"] == users["characters"] == users["wordings"]
    ids = {group: {card.card_id for card in cards_of(group)} for group in GROUPS}
    assert all(row["card_id"] in ids[row["group"]] for row in rows)
    assert rows == measure(PoolSampler(), 12)


def test_first_messages_are_the_same_for_every_model_and_of_topics_that_no_traffic_has():
    good = PoolSampler(("I hear you, and my tea is getting cold. What happened, dear?",))
    one, other = measure(PoolSampler(), 6), measure(good, 6)
    asked = [row["prompt"] for row in one if row["turn"] == 0]
    assert asked == [row["prompt"] for row in other if row["turn"] == 0]
    held, known = bank()["heldout_topics"], bank()["topics"]
    assert not set(held) & set(known)
    lines = {line.lower() for topic in held.values() for kind in ("says", "asks") for line in topic[kind]}
    assert all(any(line in text.lower() for line in lines) for text in asked)
    said = {line.lower() for topic in known.values() for kind in topic.values() for line in kind}
    assert not any(line in text.lower() for line in said for text in asked)
    names = {user.user_id for user in make_population(11, 200, 0.3, cards_of("training"))}
    assert not names & {row["user_id"] for row in one}


@pytest.mark.parametrize("pool", [REPLIES, ("My lantern fell into the harbour again. No matter.",)])
def test_second_messages_have_no_line_to_which_anybody_wrote_a_reply_that_is_learned(pool):
    asked = [row["prompt"] for row in measure(PoolSampler(pool), 40) if row["turn"] == 1]
    assert [text for text in asked if said_last(text) is not None] == []
    for part in ("pick_up", "annoyed"):
        own, known = (set(bank()[name + part]) for name in ("heldout_", ""))
        assert len(own) == len(known)
        assert not {line.casefold() for line in own} & {line.casefold() for line in answerable()}
    words = {word for row in asked for word in ("lantern", "harbour") if word in row}
    assert pool is REPLIES or words == {"lantern", "harbour"}, "they take up words of the reply"


def test_no_set_or_gold_item_knows_a_character_of_the_panel():
    root = Path(__file__).resolve().parents[2]
    unseen = cards_of("characters")
    for path in (*root.glob("sets/*.jsonl"), *root.glob("gold_items/*.jsonl")):
        for row in read_jsonl(path):
            assert row["card"]["name"] not in {card.name for card in unseen}, (path.name, row)
            said = orjson.dumps(row).decode().casefold()
            assert not [card.name for card in unseen if re.search(rf"\b{card.name.casefold()}\b", said)], row


def test_a_better_model_has_more_utility_and_follows_more():
    good = PoolSampler(("I hear you, dear, and my tea is getting cold over it. What happened then?",))
    bad = PoolSampler(("I'm sorry, but as an AI I can't have feelings. I can't have feelings. I can't",))
    means = [
        {key: sum(row[key] for row in measure(sampler, 10)) / 60 for key in ("utility", "false_refusal")}
        for sampler in (good, bad)
    ]
    assert means[0]["utility"] > means[1]["utility"] + 2
    assert (means[0]["false_refusal"], means[1]["false_refusal"]) == (0, 1)
