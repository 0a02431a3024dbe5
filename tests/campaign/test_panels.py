"""Intervals of the panel's figures: people share cards, so its rows are not independent."""

import numpy as np
import pytest

from flywheel_tasks.campaign import panels, text
from flywheel_tasks.campaign.folder import CampaignError
from flywheel_tasks.settings import load_settings
from flywheel_tasks.simulation.panel import GROUPS, TURNS, VERSION, cards_of
from tests.campaign.handmade import PROJECT

USERS = load_settings(PROJECT / "params.yaml").campaign.panel_users


def _rows(rng=None, users=USERS):
    """A panel's rows whose figures are of mean 0 (utility) and 1/2 (violation), by card, person and chance."""
    person = rng.normal(0, 0.5, users) if rng else np.zeros(users)
    rows = []
    for group in GROUPS:
        cards = cards_of(group)
        liked = rng.normal(0, 1, len(cards)) if rng else np.zeros(len(cards))
        broken = rng.beta(1.5, 1.5, len(cards)) if rng else np.zeros(len(cards))
        for number in range(users):
            card = number % len(cards)
            for turn in range(TURNS):
                noise = rng.normal(0, 1) if rng else 0.0
                rows.append(
                    {
                        "group": group,
                        "user_id": f"u{number}",
                        "card_id": cards[card].card_id,
                        "turn": turn,
                        "utility": liked[card] + person[number] + noise,
                        "instruction_violation": bool(rng and rng.random() < broken[card]),
                        **dict.fromkeys(("instruction_following", "false_refusal", "templated"), 0.0),
                        **dict.fromkeys(("words", "emoji"), 0),
                        "reply": "Yes.",
                    }
                )
    return rows


def test_rows_of_one_card_are_one_cluster_and_over_all_groups_those_of_one_person_too():
    found = panels.summary(_rows())
    clusters = {group: found[group]["utility"]["clusters"] for group in (*GROUPS, "all")}
    assert clusters == {"training": 20, "characters": 10, "wordings": 10, "all": 10}
    gain = panels.gain(_rows(), _rows())
    assert (gain["n"], gain["clusters"]) == (USERS * len(GROUPS) * TURNS, 10)
    thirty = panels.summary(_rows(users=30))["all"]["utility"]
    assert thirty["clusters"] == 10, "a campaign that was begun with 30 people can still be read"
    assert panels.summary([])["all"]["utility"]["value"] is None


def test_intervals_cover_the_truth_although_cards_differ():
    before, rng = _rows(), np.random.default_rng(1)
    gains = [panels.gain(before, _rows(rng)) for _ in range(250)]
    assert 0.91 < np.mean([gain["low"] < 0 < gain["high"] for gain in gains]) < 0.98
    broken = [panels.summary(_rows(rng))["wordings"]["instruction_violation"] for _ in range(120)]
    assert np.mean([share["low"] < 0.5 < share["high"] for share in broken]) > 0.9


def test_only_an_interval_without_zero_tells_the_sign():
    assert [
        panels.surely({"value": 0.0, "low": low, "high": high, "n": 9, "clusters": 3})
        for low, high in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.2), (0.0, 0.0), (None, None))
    ] == ["better", "worse", "untold", "untold", "untold"]


def test_every_card_of_the_panel_counts_alike():
    assert len(cards_of("training")) == panels.CARDS
    assert all(panels.CARDS % len(cards_of(group)) == 0 for group in GROUPS)
    panels.check_people(USERS)
    with pytest.raises(CampaignError, match=r"campaign\.panel_users is 30: not a multiple of 20"):
        panels.check_people(30)


def test_the_table_says_what_the_panel_of_today_asks():
    assert VERSION in text.PANELS
