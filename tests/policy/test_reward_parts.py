from typing import Any

import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation.chat_templates import mine_chats
from flywheel_tasks.policy.prompts import Prompt
from flywheel_tasks.policy.reward_parts import RewardError, Rewards, auxiliary_terms, instructions_kept
from flywheel_tasks.settings import Auxiliary, Rl, SettingsError, load_settings
from tests.conftest import PROJECT

TURN = ({"role": "user", "content": "Hi"},)
PROMPT = Prompt("p1", "user", Card("c1", "Mira", (), ()), TURN)
END = frozenset({2})
WORDS = ("moon", "bread", "sea", "robin", "clock", "tea")


def section(**changes: Any) -> Rl:
    settings = load_settings(PROJECT / "params.yaml").rl
    plain = {"length_penalty": 0.5, "length_limit": 3, "cut_off_penalty": 2.0, "template_penalty": 0.0}
    return settings.model_copy(update=plain | changes)


def test_penalties_are_logged_apart() -> None:
    logged: dict[str, float] = {}
    rewards = Rewards(None, [], section(), 10.0, END, lambda ids: [])  # type: ignore[arg-type]
    # Three tokens and the end; five tokens cut off; five and the end.
    completions = [[9, 9, 9, 2], [9, 9, 9, 9, 9], [9, 9, 9, 9, 9, 2]]
    found = rewards.penalties(completions, logged.__setitem__)
    assert found == [0.0, 10 * (-0.5 * 2 - 2.0), 10 * (-0.5 * 2)]
    assert logged == {"penalty_length": pytest.approx(-20 / 3), "penalty_cut_off": pytest.approx(-20 / 3)}


def test_an_artifact_costs_by_its_count() -> None:
    logged: dict[str, float] = {}
    texts = ["Sure!", "Wow! Yes! 😀", "Fine."]
    penalised = section(artifact_penalties={"exclamation": 0.25, "emoji": 1.0})
    rewards = Rewards(None, [PROMPT], penalised, 2.0, END, lambda ids: texts)  # type: ignore[arg-type]
    found = rewards.penalties([[9, 2]] * 3, logged.__setitem__, index=[0, 0, 0])
    assert found == [-0.5, -1.0 - 2.0, 0.0]
    assert logged["penalty_exclamation"] == pytest.approx(-0.5)
    assert logged["penalty_emoji"] == pytest.approx(-2 / 3)
    assert {"penalty_exclamation", "penalty_emoji"} <= set(rewards.columns)


def test_what_the_card_asks_for_costs_nothing() -> None:
    asking = Prompt("p2", "user", Card("c2", "Lum", (), ("Always end with an emoji.",)), TURN)
    penalised = section(artifact_penalties={"exclamation": 0.25, "emoji": 1.0})
    texts = ["Wow! 😀"] * 2
    rewards = Rewards(None, [PROMPT, asking], penalised, 2.0, END, lambda ids: texts)  # type: ignore[arg-type]
    assert rewards.penalties([[9, 2]] * 2, {}.__setitem__, index=[0, 1]) == [-2.5, -0.5]


def test_a_template_of_the_policy_before_rl_costs_once() -> None:
    logged: dict[str, float] = {}
    said = [f"{word} it is. What happens with the {word} next?" for word in WORDS]
    known = mine_chats((f"p{n}", *PROMPT.chat, text) for n, text in enumerate(said)).templates
    texts = ["The storm is near. What happens with the mast next?", "The storm is near. Who mends the mast?"]
    penalised = section(template_penalty=0.5)
    rewards = Rewards(None, [PROMPT], penalised, 2.0, END, lambda ids: texts, templates=known)  # type: ignore[arg-type]
    assert rewards.penalties([[9, 2]] * 2, logged.__setitem__, index=[0, 0]) == [-1.0, 0.0]
    assert logged["penalty_templates"] == -0.5
    assert "penalty_templates" in rewards.columns


@pytest.mark.parametrize("name", ["words", "nonsense"])
def test_only_artifacts_have_a_penalty(name: str) -> None:
    with pytest.raises(RewardError, match=f"{name} is no artifact; there are .*emoji"):
        Rewards(None, [], section(artifact_penalties={name: 1.0}), 1.0, END, lambda ids: [])  # type: ignore[arg-type]


def test_an_auxiliary_term_counts_up_to_its_bound() -> None:
    logged: dict[str, float] = {}
    both = {
        "p_continue": Auxiliary(weight=0.5, bound=0.6),
        "instructions": Auxiliary(weight=0.25, bound=1.0),
    }
    terms = {"p_continue": lambda rows: [0.2, 0.9], "instructions": lambda rows: [1.0, 0.5]}
    rewards = Rewards(
        None,  # type: ignore[arg-type]
        [PROMPT],
        section(auxiliary=both),
        10.0,
        END,
        lambda ids: ["a", "b"],
        terms,
    )
    found = rewards.auxiliary([[9, 2]] * 2, [0, 0], logged.__setitem__)
    assert found == pytest.approx([10 * (0.5 * 0.2 + 0.25), 10 * (0.5 * 0.6 + 0.25 * 0.5)])
    assert logged["auxiliary_p_continue"] == pytest.approx(10 * 0.5 * 0.4)
    assert sum(logged.values()) == pytest.approx(sum(x for x in found if x is not None) / 2)
    assert [function.__name__ for function in rewards.functions] == ["pointwise", "auxiliary", "penalties"]


def test_kept_instructions_are_a_share_and_cards_without_any_do_not_matter() -> None:
    card = Card("c", "Mira", (), ("Never use emoji.", "Use at most 3 words.", "Be kind."))
    rows = [(card, TURN, reply) for reply in ("Fine by me.", "Fine by me too 😀", "Fine by me too")]
    assert instructions_kept(rows) == [1.0, 0.0, 0.5]
    assert instructions_kept([(PROMPT.card, TURN, "x")]) == [1.0]


def test_what_cannot_be_measured_on_a_reply_is_not_kept() -> None:
    """Or a policy would be paid for a script whose words cannot be counted."""
    card = Card("c", "Mira", (), ("Use at most 3 words.", "Always end with a question."))
    rows = [(card, TURN, reply) for reply in ("Is it so?", "月はきれいですか?", "月はきれいです")]
    assert instructions_kept(rows) == [1.0, 0.5, 0.0]


def test_terms_come_from_the_signal_models_and_one_without_a_model_is_left_out(policy_io: Any) -> None:
    terms = {name: {"weight": 0.1, "bound": 1.0} for name in ("p_thumb_up", "instructions", "p_continue")}
    io = policy_io("rl", {"rl.auxiliary": terms})
    found = auxiliary_terms(io)
    assert list(found) == ["instructions", "p_continue"]
    chances = found["p_continue"]([(PROMPT.card, TURN, reply) for reply in ("Yes.", "No, never.")])
    assert len(set(chances)) == 2
    assert all(0 < chance < 1 for chance in chances)


def test_a_signal_that_may_not_be_used_is_no_term(make_workspace: Any, tmp_path: Any) -> None:
    term = {"p_thumb_up": {"weight": 0.1, "bound": 1.0}}
    make_workspace(tmp_path, {"rl.auxiliary": term, "signal_models.used": ["continue"]})
    with pytest.raises(
        SettingsError, match=r"rl\.auxiliary names p_thumb_up, but signal_models.used lacks thumb_up"
    ):
        load_settings(tmp_path / "params.yaml")
