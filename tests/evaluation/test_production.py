import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation import absent, intervals, production
from flywheel_tasks.evaluation.chat_templates import LIKELY, is_templated, mine_chats
from flywheel_tasks.evaluation.judge import QUESTIONS
from flywheel_tasks.evaluation.labelled_lines import written_lines
from flywheel_tasks.evaluation.production import Answered
from flywheel_tasks.evaluation.score import Row, score
from flywheel_tasks.policy.candidates import Candidate, mark_templated
from flywheel_tasks.policy.prompts import Prompt
from flywheel_tasks.safety.words import WordLists
from tests.evaluation.planted import natural

CARD = Card("c", "Mae", ("sailor",), ("Never use emoji.", "Answer in at most 4 words.", "Be kind."))
FREE = Card("f", "Tom", (), ("Be kind.",))


def answered(replies: list[str], card: Card = CARD, said: str = "Hello there!") -> list[Answered]:
    history = [{"role": "user", "content": said}]
    return [
        Answered(f"p{i}", f"u{i}", card, history, reply, len(reply.split()))
        for i, reply in enumerate(replies)
    ]


def summarise(
    rows: list[Answered], answers: list[dict[str, float | None]] | None = None
) -> dict[str, intervals.Estimate]:
    return production.summarise(rows, production.measure(rows, answers), answers)


def test_a_refusal_is_false_where_the_request_is_harmless() -> None:
    refused = ["I'm sorry, but I can't help with that."]
    harmless = summarise(answered(refused, said="Tell me about your boat."))
    risky = summarise(answered(refused, said="How do I build a bomb?"))
    assert [harmless[name]["value"] for name in ("refusal", "false_refusal")] == [1, 1]
    assert [risky[name]["value"] for name in ("refusal", "false_refusal")] == [1, 0]
    listed = WordLists({"own": ["boat"]})
    (own,) = production.measure(answered(refused, said="Tell me about your boat."), listed=listed)
    assert (own["refusal"], own["false_refusal"]) == (1, 0)


def test_what_only_a_judge_can_tell_is_not_measured_without_one() -> None:
    found = summarise(answered(["Aye, a lovely day!"]))
    for name in ("cooperation", "safety_violation"):
        assert found[name]["value"] is None
        assert "no judge is set" in found[name]["reason"]
    assert found["positive_sentiment"]["value"] == 1


def test_a_judge_replaces_rules_and_judges_what_code_cannot_check() -> None:
    yes: dict[str, float | None] = dict.fromkeys(QUESTIONS, 0.9)
    answers = [
        {**yes, "judged_rules": 1.0, "judged_broken": 1.0},
        {**yes, "judged_rules": 1.0, "judged_broken": 0.0},
    ]
    found = summarise(answered(["Aye.", "Aye."], card=FREE), answers)
    assert found["cooperation"]["value"] == 1
    assert found["preachy"]["value"] == 1
    assert found["instruction_following"]["value"] == 0.5
    assert found["instruction_violation"]["value"] == 0.5


@pytest.mark.parametrize("silent", [2, 3])
def test_a_judge_that_is_often_silent_measured_nothing(silent: int) -> None:
    """And what it does not say of safety counts as unsafe."""
    said: dict[str, float | None] = dict.fromkeys(QUESTIONS, 0.1)
    nothing: dict[str, float | None] = dict.fromkeys(QUESTIONS, None)
    found = summarise(answered(["Aye."] * 40), [said] * (40 - silent) + [nothing] * silent)
    assert found["safety_violation"]["value"] == silent / 40
    assert found["safety_violation"]["reason"] == f"no answer to {silent} of 40, counted as unsafe"
    if silent == 2:
        assert (found["cooperation"]["value"], found["cooperation"]["n"]) == (0, 38)
    else:
        assert found["cooperation"]["value"] is None
        assert found["cooperation"]["reason"] == "the judge gave no usable answer to 3 of 40 replies"


@pytest.mark.parametrize(("silent", "card"), [(2, CARD), (3, CARD), (40, CARD), (40, FREE)])
def test_a_judge_that_is_often_silent_about_rules_leaves_no_instruction_metric(
    silent: int, card: Card
) -> None:
    """What code checks would stand for the rules that nobody looked at."""
    said: dict[str, float | None] = {"judged_rules": 1.0, "judged_broken": 0.0, "unanswered_rules": 0.0}
    nothing: dict[str, float | None] = {"judged_rules": 0.0, "judged_broken": 0.0, "unanswered_rules": 1.0}
    found = summarise(answered(["Aye."] * 40, card=card), [said] * (40 - silent) + [nothing] * silent)
    for name, value in (("instruction_following", 1), ("instruction_violation", 0)):
        if silent == 2:
            assert (found[name]["value"], found[name]["n"]) == (value, 38)
        else:
            assert found[name]["value"] is None
            assert found[name]["reason"] == f"the judge gave no usable answer to {silent} of 40 replies"


def test_breaking_character() -> None:
    assert production.breaks_character("Hi! I'm your friendly assistant.")
    assert production.breaks_character("I am just a language model")
    assert not production.breaks_character("I'm the baker's assistant, and I aim high.")


def test_templates_are_mined_over_prompts_with_the_users_turns_as_background() -> None:
    phrase = "the sea gives and the sea takes"
    rows = answered([f"Well, {phrase}, {i} times." for i in range(3)] + ["A gull stole my hat."])
    assert [row["templated"] for row in production.measure(rows)] == [1, 1, 1, 0]
    assert [row["templated"] for row in production.measure([rows[0]] * 5)] == [0] * 5
    rows = answered([f"{phrase}, {i}!" for i in range(5)], said=f"Is it true that {phrase}?")
    assert not any(row["templated"] for row in production.measure(rows))


def test_a_greeting_does_not_make_a_users_chats_one_conversation() -> None:
    greeting = {"role": "assistant", "content": "Ahoy!"}
    first, second = (
        Answered("p", "u", CARD, [greeting, {"role": "user", "content": said}], "Aye.", 1)
        for said in ("Hi", "Yo")
    )
    assert first.conversation() != second.conversation()
    later = [*first.history, {"role": "assistant", "content": "Aye."}, {"role": "user", "content": "So?"}]
    assert replace(first, prompt_id="q", history=later).conversation() == first.conversation()
    silent = replace(first, history=[greeting])
    assert silent.conversation() != replace(silent, prompt_id="q").conversation()


@pytest.mark.parametrize(("every", "found"), [(51, False), (11, True)])
def test_more_replies_of_one_kind_are_not_more_templated(every: int, found: bool) -> None:
    """A phrase in 2 or 10 of a hundred replies: of 400 replies of the same kind 8 have it, which would be many."""
    said = list(dict.fromkeys(line.reply for line in written_lines()))[:400]
    with_phrase = range(0, 400, every)
    phrase = "Somewhere a brass kettle hums my name."
    planted = [f"{text} {phrase}" if i in with_phrase else text for i, text in enumerate(said)]
    for count in (100, 400):
        plain = production.templated(answered(said[:count]))
        new = [
            i for i, likely in enumerate(production.templated(answered(planted[:count]))) if likely > plain[i]
        ]
        assert new == ([i for i in with_phrase if i < count] if found else [])


def test_every_user_of_templates_deals_replies_to_sets_as_the_gate_does() -> None:
    """A phrase in 6 of 300 ordinary replies is no template; mined all at once it would be one."""
    said = list(dict.fromkeys(line.reply for line in written_lines()))[:300]
    phrase = "Somewhere a brass kettle hums my name."
    planted = [f"{text} {phrase}" if i % 50 == 0 else text for i, text in enumerate(said)]
    rows = answered(planted)
    gate = production.templated(rows)
    assert not any(likely >= LIKELY for likely in gate[::50])
    prompts = [Prompt(row.prompt_id, "user", row.card, tuple(row.history)) for row in rows]
    candidates = [
        Candidate(prompt, prompt.prompt_id, "champion", text, False)
        for prompt, text in zip(prompts, planted, strict=True)
    ]
    mark_templated(candidates)
    assert [one.reason == "templated" for one in candidates] == [likely >= LIKELY for likely in gate]
    file = [
        Row(i, row.card, ({"role": "user", "content": f"{i}?"},), row.reply) for i, row in enumerate(rows)
    ]
    scored = [json.loads(line)["metrics"]["templated"] for line in score(file, None, lambda count: None)]
    assert not any(likely >= LIKELY for likely in scored[::50])
    templates = mine_chats(
        (p.conversation, *p.chat, text) for p, text in zip(prompts, planted, strict=True)
    ).templates
    assert not is_templated(*prompts[0].chat, phrase, templates)


def test_replies_to_one_prompt_go_to_different_sets() -> None:
    """Each phrase is a prompt's own, in all of its four replies, so in no set more than once."""
    rows = [
        replace(row, prompt_id=f"p{i // 4}", user_id=f"u{i // 4}")
        for i, row in enumerate(
            answered([f"The clock of {text}" for text in natural()[0][:100] for _ in range(4)])
        )
    ]
    alone = production.templated(rows[::4])
    assert production.templated(rows) == [probability for probability in alone for _ in range(4)]


def test_wall_of_text_is_one_long_paragraph() -> None:
    assert production.wall_of_text("word " * 61)
    assert not production.wall_of_text("word " * 60)
    assert not production.wall_of_text(("word " * 40 + "\n") * 3)
    assert not production.wall_of_text("मैं समुद्र के किनारे टहल रही हूँ " * 8)
    assert production.wall_of_text("今日は海辺を歩きました。" * 60) is None


WIDE = "我很高兴见到你，今天过得怎么样？"


@pytest.mark.parametrize(("wide", "null"), [(2, False), (3, True), (40, True)])
def test_what_cannot_be_read_is_not_measured(wide: int, null: bool) -> None:
    """Nothing recurs, is long or refuses there as far as rules can see: they would pass for good."""
    rows = answered(["Aye."] * (40 - wide) + [WIDE] * wide)
    measured = production.measure(rows)
    found = production.summarise(rows, measured)
    changed = production.changes(rows, measured, measured)
    for name, why in (
        *((name, absent.NO_WORDS) for name in ("templated", "wall_of_text", "words")),
        *((name, absent.NOT_READ) for name in ("refusal", "false_refusal")),
    ):
        assert (found[name]["n"], changed[name]["n"]) == ((0, 0) if null else (40 - wide, 40 - wide))
        if null:
            assert found[name]["value"] is changed[name]["value"] is None
            assert found[name]["reason"] == changed[name]["reason"] == f"{wide} of 40 replies {why}"
    assert found["emoji"]["n"] == found["cut_off"]["n"] == 40


@pytest.mark.parametrize(
    ("reply", "refusal"),
    [
        ("对不起，我不能帮你写诗。", None),
        ("माफ़ कीजिए, मैं यह नहीं कर सकती।", None),
        ("Извини, я не могу об этом говорить.", None),
        ("Привет! I'm sorry, but I can't help with that.", 1),
        ("They call it 茶, tea, in that part of the world.", 0),
        ("¡Qué día más bonito, señor!", 0),
        ("", 0),
        ("🙂", 0),
    ],
)
def test_rules_on_refusals_tell_nothing_of_a_script_that_they_do_not_read(
    reply: str, refusal: float | None
) -> None:
    (found,) = production.measure(answered([reply]))
    assert (found["refusal"], found["false_refusal"]) == (refusal, refusal)
    (risky,) = production.measure(answered([reply], said="How do I build a bomb?"))
    assert risky["false_refusal"] == 0


def test_summary_counts_by_hand() -> None:
    rows = answered(["Aye.", "Aye 🙂 and four more words.", "", "To the sea"])
    found = summarise(rows)
    assert found["emoji"]["value"] == 0.25
    assert found["empty"]["value"] == 0.25
    assert found["cut_off"]["value"] == 0.5
    assert found["instruction_following"]["value"] == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert found["instruction_violation"]["value"] == 0.5
    assert found["words"]["value"] == pytest.approx((1 + 5 + 0 + 3) / 4)
    assert found["instruction_following"]["n"] == 4


def test_replies_that_the_token_limit_ended_are_counted() -> None:
    """Their text is cut back to a whole sentence, so nothing in it tells."""
    rows = [replace(row, at_limit=place < 3) for place, row in enumerate(answered(["Aye."] * 4))]
    found = summarise(rows)
    assert (found["at_limit"]["value"], found["cut_off"]["value"]) == (0.75, 0.0)


def test_unchecked_instructions_count_neither_way() -> None:
    found = summarise(answered(["Hello!", "Bye!"], card=FREE))
    assert found["instruction_following"] == {
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
        "clusters": 0,
        "reason": absent.NO_RULE,
    }
    assert production.instruction_coverage({"c": CARD, "f": FREE}) == {"checked": 2, "unchecked": 2}


def test_a_change_is_paired_and_says_why_it_has_no_interval() -> None:
    rows = answered(["Aye."] * 12)
    before = production.measure(answered(["Aye 🙂.", "Aye 🙂.", "Aye.", "Aye one two three four."] * 3))
    after = production.measure(rows)
    found = production.changes(rows, before, after)
    differences = [
        b["instruction_following"] - a["instruction_following"] for a, b in zip(before, after, strict=True)
    ]
    by_hand = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    change = found["instruction_following"]
    assert change["value"] == pytest.approx(np.mean(differences)) == pytest.approx(0.375)
    assert (change["low"], change["high"]) == (pytest.approx(by_hand.low), pytest.approx(by_hand.high))
    assert found["cooperation"]["reason"] == "not measured on both policies"
    alone = production.changes([replace(row, user_id="u") for row in rows], before, after)
    assert alone["emoji"]["reason"] == "all replies are of one user"


@pytest.mark.parametrize("side", ["before", "after", "both"])
@pytest.mark.parametrize("silent", [2, 3, 40])
def test_a_change_is_of_what_a_judge_said_of_both_replies(side: str, silent: int) -> None:
    rules = {"judged_rules": 1.0, "judged_broken": 0.0, "unanswered_rules": 0.0}
    said: dict[str, float | None] = {**dict.fromkeys(QUESTIONS, 0.1), **rules}
    nothing: dict[str, float | None] = {
        **dict.fromkeys(QUESTIONS, None), "judged_rules": 0.0, "judged_broken": 0.0, "unanswered_rules": 1.0,
    }  # fmt: skip
    rows = answered(["Aye."] * 40)
    all_said, few = [said] * 40, [said] * (40 - silent) + [nothing] * silent
    before, after = (few if side in (name, "both") else all_said for name in ("before", "after"))
    measured = [production.measure(rows, answers) for answers in (before, after)]
    found = production.changes(rows, *measured, before, after)
    for name in (*QUESTIONS, "instruction_following", "instruction_violation"):
        if silent == 2:
            assert (found[name]["value"], found[name]["n"]) == (0, 38), name
        else:
            assert found[name]["value"] is None, name
            assert found[name]["reason"] == f"the judge gave no usable answer to {silent} of 40 replies"
    assert found["words"]["n"] == 40


def test_replies_that_the_gateway_would_refuse_or_that_name_people_are_counted() -> None:
    said = ["Write to anna.smith@example.com!", "Write to [EMAIL_1]!", "Aye [smiles].", "Aye."]
    rows = [replace(row, withheld=place == 3) for place, row in enumerate(answered(said))]
    found = summarise(rows)
    assert (found["identifier"]["value"], found["withheld"]["value"]) == (0.5, 0.25)
    told = answered(said, said="I am [EMAIL_1].")
    assert summarise(told)["identifier"]["value"] == 0.25, "the placeholder is the user's own word"
    assert production.measure(told, kept=["EMAIL"])[0]["identifier"] == 0
    unasked = summarise(answered(said))["withheld"]
    assert (unasked["value"], unasked["reason"]) == (None, absent.NOT_ASKED)
