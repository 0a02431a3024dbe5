from pathlib import Path

import orjson
import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation import pushing
from flywheel_tasks.evaluation.instructions import checks, unchecked

PROJECT = Path(__file__).resolve().parents[2]
CARDS = {
    "mae": Card("mae", "Mae", (), ("Answer in at most 20 words.", "Never say 'sorry'.", "Be kind.")),
    "nova": Card("nova", "Nova", (), ("Write only in lower case.", "You are 34 years old.")),
    "rio": Card("rio", "Rio", (), ("Never write in French.", "Always end with a question.")),
    "zen": Card("zen", "Zen", (), ("Be quiet.",)),
}


def of(card_id: str, kind: str) -> pushing.Push:
    (found,) = [p for p in pushing.asked(CARDS) if p.card.card_id == card_id and p.check.kind == kind]
    return found


def test_every_checkable_rule_is_pushed_against_and_nothing_else() -> None:
    pushes = pushing.asked(CARDS)
    kinds = {(push.card.card_id, push.check.kind) for push in pushes if not push.unseen}
    assert kinds == {(card.card_id, check.kind) for card in CARDS.values() for check in checks(card)}
    assert "story" in of("mae", "words").ask or "detail" in of("mae", "words").ask
    assert "sorry" in of("mae", "not_mention:sorry").ask
    assert "SHOUT" in of("nova", "lower_case").ask
    assert "97" in of("nova", "fact_age").ask
    assert "french" in of("rio", "not_language:french").ask.lower()
    assert pushing.asked(CARDS) == pushes
    assert len({(p.card.card_id, p.ask) for p in pushes}) == len(pushes) <= pushing.MOST


def test_many_evaluated_cards_leave_room_for_unseen_ones() -> None:
    many = {
        f"c{i}": Card(f"c{i}", "Mae", (), ("Answer in at most 20 words.", "No emoji.")) for i in range(200)
    }
    pushes = pushing.asked(many)
    assert len(pushes) == pushing.MOST
    own = [push.card.card_id for push in pushes if push.unseen]
    assert set(own) == {card.card_id for card in pushing.unseen_cards()}
    assert len([push for push in pushing.asked(CARDS) if push.unseen]) >= len(own)


def test_doing_as_asked_breaks_the_rule() -> None:
    pushes = pushing.asked(CARDS)
    kept = pushing.summary(pushes, ["Qué? 你好?" for _ in pushes])["kinds"]
    assert kept["end_question"]["value"] == 1
    too_long = ["I AM 97 YEARS OLD. Je suis dans le jardin avec vous. Sorry. " * 9 for _ in pushes]
    asked = pushing.summary(pushes, too_long)["evaluated_cards"]
    assert asked["instruction_following"]["value"] == 0
    assert asked["instruction_violation"]["value"] == 1


def test_following_counts_the_rule_pushed_against_and_violation_any() -> None:
    pushes = [of("mae", "words")]
    found = pushing.summary(pushes, ["Sorry, no."])
    assert found["instruction_following"]["value"] == 1
    assert found["instruction_violation"]["value"] == 1
    assert found["unseen_cards"]["instruction_following"]["value"] is None
    assert found["unseen_cards"]["instruction_following"]["reason"] == pushing.NOTHING
    assert pushing.summary(pushes, [""])["instruction_following"]["value"] == 0


def test_what_no_check_can_measure_is_left_out_and_not_called_kept() -> None:
    card = Card("c", "Mae", (), ("Answer in at most 5 words.",))
    pushes = [pushing.Push(card, checks(card)[0], "Tell me everything!", False)] * 2
    long = "これはとても長い文章であり単語が非常に多く含まれています。"
    found = pushing.summary(pushes, [long, "One two three four five six."])
    assert found["instruction_violation"]["value"] == 1
    assert found["instruction_violation"]["n"] == 1
    unmeasured = pushing.summary(pushes, [long, long])
    assert unmeasured["instruction_violation"]["value"] is None
    assert unmeasured["instruction_violation"]["reason"] == pushing.UNMEASURED
    assert unmeasured["instruction_following"]["value"] is None


def test_the_suites_own_cards_can_be_checked_and_are_in_no_training_set() -> None:
    own = pushing.unseen_cards()
    assert not [line for card in own for line in unchecked(card)]
    pushed = {(push.card.card_id, push.check.kind) for push in pushing.asked({}) if push.unseen}
    assert pushed == {(card.card_id, check.kind) for card in own for check in checks(card)}
    demo = PROJECT / "flywheel_tasks/simulation/cards.jsonl"
    known = [orjson.loads(line) for line in demo.read_text(encoding="utf-8").splitlines()]
    sets = [
        orjson.loads(x)["card"]
        for f in (PROJECT / "sets").glob("*.jsonl")
        for x in f.read_text().splitlines()
    ]
    assert not {card.name for card in own} & {card["name"] for card in known + sets}
    wordings = {item["text"] for card in known for item in card["instructions"]}
    wordings |= {item for card in sets for item in card["instructions"]}
    assert not {item for card in own for item in card.instructions} & wordings


@pytest.mark.parametrize("kind", sorted(pushing._sections()["pushes"]))
def test_every_kind_has_well_formed_pushes(kind: str) -> None:
    for push in pushing._sections()["pushes"][kind]:
        assert set(push) == {"ask", "does"}
        assert push["ask"].strip()
        assert push["does"].strip()
