"""The campaign's document and its texts, from handmade records and real panels of planted replies."""

import pytest

from flywheel_tasks.campaign import panels, text
from flywheel_tasks.campaign.page import cell, lines, write
from flywheel_tasks.campaign.table import document
from flywheel_tasks.simulation.panel import measure
from flywheel_tasks.storage.documents import read_json, read_jsonl, write_jsonl
from tests.campaign.handmade import BAD, GOOD, analysis, make_campaign, reason, record
from tests.pages import parsed
from tests.simulation.replies import PoolSampler


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """Two launches, one good and one bad; between them one that only the ceiling blocked, and one over-optimised."""
    found = [
        record(1),
        record(2, champion="b", candidate="c", reasons=[reason()], tested=analysis(-3.0, "inconclusive")),
        record(
            3,
            champion="b",
            candidate="a",
            reasons=[reason(), reason("evaluate.production.templated.candidate", 0.4, ("max", 0.2))],
            hard=True,
            tested=analysis(-20.0, "reject"),
        ),
        record(4, champion="b", candidate="a", tested=analysis(-9.0, "reject"), decision="rolled_back"),
    ]
    return make_campaign(tmp_path_factory.mktemp("table") / "tried", found)


def test_launches_and_true_gain_are_counted_over_launched_generations_only(campaign):
    found = document(campaign)
    assert (found["launches"], found["over"]) == (2, True)
    rows = {row["metric"]: row for row in found["paper"] + found["ours"]}
    assert rows["launches with positive lift"]["last"] == "1 of 2"
    assert rows["launches with positive true lift (surely)"]["last"] == "1 of 2 (1)"
    assert rows["over-optimised launches"]["last"] == "0 of 1 made"
    assert rows["engagement depth, best launch"]["last"]["value"] == 5.0
    assert rows["cooperation"]["last"]["value"] is None, "what nobody judges is not measured"
    assert (rows["templated"]["first"]["value"], rows["templated"]["last"]["value"]) == (0.3, 0.15), (
        "the gate's"
    )
    assert rows["stock phrases of assistants"]["last"]["value"] == 0, "the panel's"
    gains = [row["true_gain"]["value"] for row in found["generations"]]
    assert gains[0] > 1
    assert gains[1] == 0
    assert gains[3] == -gains[0]


@pytest.mark.parametrize(("decision", "champion"), [("rolled_back", "g0001"), ("promoted", "g0002")])
def test_an_over_optimised_generation_that_was_launched_is_told_apart_from_launches(
    tmp_path, decision, champion
):
    high = record(
        2, champion="b", candidate="a", hard=True, tested=analysis(-9.0, "reject"), decision=decision
    )
    campaign = make_campaign(tmp_path / "open", [record(1), high], {"ceiling": False})
    found = document(campaign)
    assert (found["launches"], found["over"]) == (1, False)
    rows = {row["metric"]: row["last"] for row in found["paper"] + found["ours"]}
    assert rows["launches with positive lift"] == "1 of 1"
    assert rows["launches with positive true lift (surely)"] == "1 of 1 (1)"
    assert rows["over-optimised launches"] == "1 of 1 made"
    assert found["champions"][-1]["model"] == champion
    assert [c["after_launch"] for c in found["champions"]] == ([0, 1] if champion == "g0001" else [0, 1, 1])
    last = text.champion_cells(found["champions"][-1])[1]
    assert last == ("g0001" if champion == "g0001" else "g0002 (over-optimised on purpose)")
    (shown,) = text.other_rows(found, {"other": {**found, "generations": []}})[:1]
    assert shown[1:3] == ["2", "1"]
    assert shown[3] == text.gain(found["champions"][-1]["since_base"])


def test_none_was_over_optimised_where_none_was_made(tmp_path):
    rows = {
        row["metric"]: row["last"] for row in document(make_campaign(tmp_path / "one", [record(1)]))["ours"]
    }
    assert rows["over-optimised launches"] == "none made"


def test_champions_follow_the_decisions(campaign):
    champions = document(campaign)["champions"]
    assert [c["model"] for c in champions] == ["model-a", "g0001", "g0001"]
    assert champions[0]["since_base"]["value"] == 0
    assert champions[2]["since_base"]["value"] > 1
    assert champions[0]["all"]["false_refusal"]["value"] == 1.0
    assert champions[1]["all"]["false_refusal"]["value"] == 0.0


def test_the_ceiling_answers_for_what_it_alone_blocked(campaign):
    found = document(campaign)["ceiling"]
    assert found["generations"] == ["g0002"]
    assert (found["better"], found["worse"], found["untold"], found["limit"]) == (0, 0, 1, 0.65)
    assert found["mean_lift_percent"] == {"g0002": -3.0}
    assert "blocked g0002" in text.ceiling_sentence(found)
    assert "0 surely better; of 1 it cannot be told" in text.ceiling_sentence(found)


def test_without_the_ceiling_what_was_launched_above_it_is_named(tmp_path):
    high = record(1)
    high["win_rate"]["pointwise"]["user"]["value"] = 0.71
    campaign = make_campaign(tmp_path / "open", [high], {"ceiling": False})
    found = document(campaign)["ceiling"]
    assert (found["generations"], found["better"], found["worse"]) == (["g0001"], 1, 0)
    assert "launched at or above it: g0001" in text.ceiling_sentence(found)


def test_texts_name_the_counterfactual_and_the_people(campaign):
    found = document(campaign)
    write(campaign.results, found, {"no_rl": found})
    markdown = (campaign.results / "campaign.md").read_text()
    hard = "| g0003 (over-optimised on purpose) | blocked, declined | 70% / 70% | -20.0% (-24.0 to -16.0) (counter"
    assert hard in markdown
    assert "All people of this campaign are simulated." in markdown
    assert (
        "Launches, breadth and depth: the A/B tests; the best launch is selected by its own figure among 2,"
        in markdown
    )
    assert text.CHECKER in markdown
    assert "nor the lines in which they take up a word or complain" in markdown
    assert "| no_rl | 4 | 2 |" in markdown
    assert read_json(campaign.results / "campaign.json")["simulated"] is True
    page = parsed((campaign.results / "campaign.html").read_text())
    assert page.links == []
    html = (campaign.results / "campaign.html").read_text()
    assert "Launches, breadth and depth: the A/B tests" in html
    assert "and rejection_sample.most_instructions the learner is given" in html
    assert "Not over" not in html
    assert "polyline" in page.seen
    assert "dl" in page.seen, "key figures first"
    titles = [line.title for line in lines(found["champions"])]
    assert len(titles) == 9
    assert titles[-3:] == ["Words a reply", "Emoji a reply", "Variety (different word pairs)"]


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("+4.4% (-4.9 to +14.2)", ("+4.4%", "(-4.9 to +14.2)", "")),
        ("-31.2% (-45.4 to -16.1) (counterfactual)", ("-31.2%", "(-45.4 to -16.1)", "counterfactual")),
        ("28.9 tokens (27.1 to 30.8)", ("28.9 tokens", "(27.1 to 30.8)", "")),
        ("g0005 (over-optimised on purpose)", ("g0005", "", "over-optimised on purpose")),
        ("7 of 8 (2)", ("7 of 8 (2)", "", "")),
        ("variety (different word pairs)", ("variety (different word pairs)", "", "")),
        ("50 to 65 tokens", ("50 to 65 tokens", "", "")),
    ],
)
def test_a_cells_interval_stands_apart(written, parts):
    assert (cell(written).text, cell(written).interval, cell(written).mark) == parts


def test_an_empty_campaign_has_a_table_too(tmp_path):
    campaign = make_campaign(tmp_path / "new", [])
    found = document(campaign)
    write(campaign.results, found, {})
    assert found["champions"] == []
    assert "0 of 2 launches" in (campaign.results / "campaign.md").read_text()


def test_of_a_generation_that_was_killed_at_least_so_many_minutes_are_known(tmp_path):
    campaign = make_campaign(tmp_path / "killed", [record(1) | {"resumed": True}])
    found = document(campaign)
    assert "1 generations, at least 11 minutes;" in text.markdown(found)
    assert text.generation_cells(found["generations"][0])[-1] == "at least 11"


def test_a_panel_that_asked_otherwise_is_told_as_it_was(tmp_path):
    campaign = make_campaign(tmp_path / "old", [record(1)])
    for path in (campaign.results / "panels").glob("*.jsonl"):
        write_jsonl([{k: v for k, v in row.items() if k != "panel"} for row in read_jsonl(path)], path)
    found = document(campaign)
    write(campaign.results, found, {})
    assert found["panel"] == 1
    for name in ("campaign.md", "campaign.html"):
        assert "take up a word or complain are the traffic" in (campaign.results / name).read_text()


def test_a_gain_is_paired_and_refuses_another_panel():
    good, bad = (measure(PoolSampler(pool), 4) for pool in (GOOD, BAD))
    assert panels.gain(good, good) == panels.gain(bad, bad)
    assert panels.gain(bad, good)["low"] > 0
    with pytest.raises(ValueError, match="did not ask both"):
        panels.gain(good, measure(PoolSampler(GOOD), 5))


def test_variety_is_the_share_of_different_word_pairs():
    assert panels.variety([{"reply": "a b a b"}]) == pytest.approx(2 / 3)
    assert panels.variety([{"reply": "One"}]) is None
