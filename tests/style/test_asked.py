import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation.templates import Reply
from flywheel_tasks.style.asked import DEMANDS, asked_for
from flywheel_tasks.style.compare import compare
from flywheel_tasks.style.features import FEATURES, Feature
from flywheel_tasks.style.found import found_features


def asked(instruction: str, **found: Feature) -> set[str]:
    return set(asked_for(Card("c", "Mae", ("loves emoji",), (instruction,)), {**FEATURES, **found}))


@pytest.mark.parametrize(
    ("instruction", "features"),
    [
        ("Always end with an emoji.", {"emoji"}),
        ("Use at least two emoji.", {"emoji"}),
        ("Use plenty of emoji.", {"emoji"}),
        ("If the user is sad, use an emoji.", {"emoji"}),
        ("Use at most one emoji.", set()),
        ("Never use emoji.", set()),
        ("Don't end with an emoji.", set()),
        ("Be kind.", set()),
        ("Use an exclamation mark in every sentence.", {"exclamation"}),
        ("Always say 'Stay sharp!'", {"exclamation"}),
        ("Always start with 'Oh'.", {"interjection"}),
        ("Always end with 'Fair winds to you, friend.'", {"repeats_itself"}),
        ("ALWAYS REPLY IN CAPS.", {"capitals"}),
        ("Always say 'AHOY'.", {"capitals"}),
        ("Describe your actions in *asterisks*.", {"action"}),
        ("Always answer with bullet points.", {"list"}),
        ("Always end with a question.", set()),  # no artifact, so nothing to leave out
        ("Write key words in bold.", {"markdown"}),
        ("Write in capital letters when angry.", {"capitals"}),
        ("You love emoji.", {"emoji"}),
        ("Be bold and playful.", set()),
        ("You live in the capital of Norway.", set()),
        ("You are a man of action.", set()),
        ("Ask before you take any action.", set()),
        ("Connect the dots for the user.", set()),
        ("You have a bucket list.", set()),
        ("Write in plain prose instead of lists.", set()),
        ("Use emoji sparingly.", set()),
        ("Rarely use emoji.", set()),
        ("Use few emoji.", set()),
        ("Keep emoji to a minimum.", set()),
        ("Prefer words over emoji.", set()),
        ("Go easy on exclamation marks.", set()),
        ("Keep replies to one paragraph.", set()),
    ],
)
def test_what_a_card_asks_for(instruction: str, features: set[str]) -> None:
    assert asked(instruction) == features


def test_what_is_found_is_asked_for_by_the_card_that_says_it() -> None:
    said = [f"The {thing} is old. Stay sharp out there, sailor." for thing in "abcdefgh"]
    said += [f"Arr matey, the {thing} is wet." for thing in ("rope", "deck", "mast", "keel", "sail", "oar")]
    found = found_features([Reply(str(i), text) for i, text in enumerate(said)], [])
    (template,) = (name for name in found if "sharp" in name)
    assert "opening: arr matey" in found
    assert asked("Always end with 'Stay sharp out there, sailor.'", **found) == {template, "repeats_itself"}
    assert "opening: arr matey" in asked("Always start with 'Arr'.", **found)
    assert not {template, "opening: arr matey"} & asked("Never say 'arr'.", **found)


def test_every_demand_is_of_an_artifact() -> None:
    assert all(FEATURES[name].artifact for name in DEMANDS)


def test_rows_whose_card_asks_for_a_feature_say_nothing_of_it() -> None:
    rows = [([], "Hi.", "Hi. 🎉")] * 12
    users = list(range(12))
    names = [{"emoji"}] * 6 + [set()] * 6
    found = {item.feature: item for item in compare(rows, users, seed=1, asked=names)}
    assert found["emoji"].p_value == 2 / 2**6
    assert found["words"].before == 1
    every = compare(rows, users, seed=1, asked=[{"emoji"}] * 12)
    assert [item.feature for item in every] == [name for name in FEATURES if name != "emoji"]
