from collections import Counter

import numpy as np
import pytest
import yaml

from flywheel_tasks.curation.constrained import cap, draw, sample_metrics
from flywheel_tasks.curation.dimensions import cohorts, depth_band, length_band, merge_rare, script
from flywheel_tasks.curation.tables import CurationError
from flywheel_tasks.curation.traffic import Traffic
from flywheel_tasks.settings import Curate
from tests.conftest import PROJECT
from tests.curation.rows import START


def test_bands():
    assert [depth_band(turn) for turn in (1, 2, 3, 4, 5, 8, 9, 100)] == [
        "1", "2", "3-4", "3-4", "5-8", "5-8", "9+", "9+",
    ]  # fmt: skip
    assert [length_band("word " * n) for n in (0, 4, 5, 19, 20, 50)] == [
        "0-4", "0-4", "5-9", "10-19", "20-49", "50+",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Hello, wörld", "Latn"),
        ("Привет OK", "Cyrl"),
        ("今日はいい天気", "Jpan"),
        ("今天天气很好", "Hani"),
        ("안녕", "Hang"),
        ("ሰላም", "Zzzz"),
        ("12 🎉", "Zyyy"),
    ],
)
def test_scripts(text, name):
    assert script(text) == name


def test_who_wrote_on_two_days_returns():
    days = [START, START, START.replace(day=START.day + 1)]
    assert cohorts(["a", "b", "a"], days) == ["returning", "new", "returning"]


def test_rare_values_are_one():
    assert merge_rare(list("aaabbc"), 2, {"c"}) == ["a", "a", "a", "(other)", "(other)", "c"]
    assert merge_rare(list("ab"), 2) == ["a", "b"]


def test_a_prompt_without_a_value_is_in_no_group_of_rare_ones():
    assert merge_rare(["a", "", "b"], 2) == ["a", "", "b"]
    assert merge_rare(["", "", "a", "b", "c"], 2) == ["", "", "a", "(other)", "(other)"]


def test_the_topics_of_prompts_that_were_filtered_out_are_not_counted():
    table = traffic(125)
    table.dimensions["topic"] = [f"{row // 10:02d}" if row < 120 else "" for row in range(125)]
    for row in range(120, 125):
        table.reasons[row] = ("safety", "")
    wanted = settings(max_prompts_per_user=125, sample={"match": ["topic"], "max_values": 10})
    topics = {row.value: row for row in draw(table, wanted, 1)}
    assert len(topics) == 10
    assert (topics["(other)"].raw, topics["(other)"].target, topics["(other)"].achieved) == (30, 25, 25)


def traffic(count=400, order=None):
    """Prompts of 50 users, 3 of 10 internal, five characters of uneven size."""
    random = np.random.default_rng(0)
    users = random.integers(50, size=count)
    ids = [f"p{k}" for k in range(count)]
    dimensions = {
        "source": ["internal" if user % 10 < 3 else "user" for user in users],
        "character": [f"c{int(5 * value**2)}" for value in random.random(count)],
        "depth": [str(value) for value in random.integers(1, 4, count)],
        "length": ["5-9"] * count,
        "script": ["Latn"] * count,
        "cohort": ["new" if user % 2 else "returning" for user in users],
        "topic": [f"{value:02d}" for value in random.integers(6, size=count)],
    }
    columns = {"prompt_id": ids, "conversation_id": ids, "user_id": [f"u{user}" for user in users]}
    places = list(range(count)) if order is None else order

    def moved(values):
        return [values[place] for place in places]

    return Traffic(
        {name: moved(values) for name, values in columns.items()},
        {name: moved(values) for name, values in dimensions.items()},
        np.argsort(places),
        [b""] * count,
        [""] * count,
        [None] * count,
        np.arange(count),
    )


def settings(**changed):
    given = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))["curate"]
    sample = {**given["sample"], **changed.pop("sample", {})}
    return Curate.model_validate(
        {**given, "max_prompts": 100, "max_prompts_per_user": 6, **changed, "sample": sample}
    )


def kept(table):
    return {table.ids["prompt_id"][row] for row in table.alive}


def test_every_marginal_is_near_the_raw_one():
    table = traffic()
    achieved = draw(table, settings(), 1)
    assert len(table.alive) == 100
    assert max(Counter(table.ids["user_id"][row] for row in table.alive).values()) <= 6
    assert all(abs(row.achieved - row.target) <= 2 for row in achieved)
    metrics = sample_metrics(achieved, 100)
    assert set(metrics) == {"source", "character", "depth", "length", "script", "cohort", "topic"}
    source = metrics["source"]["shares"]["internal"]
    raw = traffic().dimensions["source"].count("internal") / 400
    assert source["target"] == pytest.approx(raw, abs=0.01)
    assert sum(row.achieved for row in achieved if row.dimension == "topic") == 100
    counted = Counter(table.dimensions["topic"][row] for row in table.alive)
    assert {row.value: row.achieved for row in achieved if row.dimension == "topic"} == counted


def test_the_order_of_the_rows_does_not_matter():
    shuffled = traffic(order=np.random.default_rng(5).permutation(400).tolist())
    plain = traffic()
    draw(plain, settings(), 1)
    draw(shuffled, settings(), 1)
    assert kept(plain) == kept(shuffled)


def test_targets_bounds_and_caps():
    wanted = {
        "targets": {"source": {"internal": 0.45}},
        "at_least": {"character": {"c4": 25}},
        "at_most": {"depth": {"1": 10}},
    }
    table = traffic()
    draw(table, settings(max_prompts_per_character=40, sample=wanted), 1)
    found = {name: Counter(table.dimensions[name][row] for row in table.alive) for name in table.dimensions}
    assert len(table.alive) == 100
    assert found["source"]["internal"] == pytest.approx(45, abs=1)
    assert found["character"]["c4"] >= 25
    assert max(found["character"].values()) <= 40
    assert found["depth"]["1"] <= 10


def test_what_cannot_be_met_is_named():
    with pytest.raises(CurationError, match=r"curate\.sample: .*character=c9: at least 3 \(3 short\)"):
        draw(traffic(), settings(sample={"at_least": {"character": {"c9": 3}}}), 1)
    far = {"targets": {"source": {"internal": 1.0}}, "max_deviation": 0.02, "match": []}
    with pytest.raises(CurationError, match=r"source=internal: at least 98|source=user: at most 2"):
        draw(traffic(), settings(max_prompts_per_user=2, sample=far), 1)


def test_a_cap_does_not_depend_on_other_owners():
    small, large = traffic(400), traffic(400)
    for row in range(400):
        if small.ids["user_id"][row] != "u7":
            small.reasons[row] = ("other", "")
    for table in (small, large):
        cap(table, table.ids["user_id"], 3, "user_cap", "user", 1)
    u7 = {
        name for name, user in zip(large.ids["prompt_id"], large.ids["user_id"], strict=True) if user == "u7"
    }
    assert kept(small) == kept(large) & u7
    assert len(kept(small)) == 3
