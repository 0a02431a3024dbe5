from flywheel_tasks.simulation.panel import GROUPS, TURNS, cards_of, measure
from flywheel_tasks.simulation.population import bank, make_population
from tests.simulation.replies import PoolSampler


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


def test_a_better_model_has_more_utility_and_follows_more():
    good = PoolSampler(("I hear you, dear, and my tea is getting cold over it. What happened then?",))
    bad = PoolSampler(("I'm sorry, but as an AI I can't have feelings. I can't have feelings. I can't",))
    means = [
        {key: sum(row[key] for row in measure(sampler, 10)) / 60 for key in ("utility", "false_refusal")}
        for sampler in (good, bad)
    ]
    assert means[0]["utility"] > means[1]["utility"] + 2
    assert (means[0]["false_refusal"], means[1]["false_refusal"]) == (0, 1)
