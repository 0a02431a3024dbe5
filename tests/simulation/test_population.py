import random
from collections import Counter

from flywheel_tasks.simulation.cards import load_cards
from flywheel_tasks.simulation.population import follow_up, make_population, make_user, opener

CARDS = load_cards()


def test_a_user_is_a_function_of_seed_and_id():
    many, few = make_population(5, 200, 0.3, CARDS), make_population(5, 50, 0.3, CARDS)
    by_id = {user.user_id: user for user in many}
    assert all(by_id[user.user_id] == user for user in few)
    assert make_user(6, "sim-user-0000", "user", CARDS) != make_user(5, "sim-user-0000", "user", CARDS)


def test_shares_and_names():
    users = make_population(5, 110, 0.3, CARDS)
    assert Counter(user.source for user in users) == {"internal": 33, "user": 77}
    assert all(user.user_id.startswith("sim-") for user in users)
    assert len({card for user in users for card in user.cards}) == len(CARDS)


def test_openers_are_varied():
    users = make_population(5, 100, 0.3, CARDS)
    said = [opener(user, CARDS[0], random.Random(f"{user.user_id}{k}")) for user in users for k in range(4)]
    assert len(set(said)) > 330
    assert all("{" not in text and text.strip() == text for text in said)


def test_follow_ups_react_to_the_reply():
    user = make_user(5, "sim-user-0001", "user", CARDS)
    rng = random.Random(1)
    history = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "The lighthouse burned."}]
    said = [follow_up(user, history, 0.0, rng).lower() for _ in range(60)]
    assert sum("lighthouse" in text for text in said) > 10
    asking = [*history[:1], {"role": "assistant", "content": "Do you sail?"}]
    answers = [follow_up(user, asking, 0.0, rng).lower() for _ in range(60)]
    assert (
        sum(text.startswith(("yes", "no", "sometimes", "maybe", "only", "i would")) for text in answers) > 20
    )
