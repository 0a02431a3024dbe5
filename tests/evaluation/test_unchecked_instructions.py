"""Instructions that code does not understand, in whole or in part: no check is made of what is unclear."""

import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation.instructions import checks, instruction_checks, unchecked
from flywheel_tasks.policy.tool_calls import INSTRUCTION as TOOL

UNCHECKED = [
    "Be warm and kind.",
    "If the user is sad, use no emoji.",
    "Use short sentences.",
    "You love lists of treasure.",
    "When asked, answer in at most 10 words.",
    "Try to end with a question.",
    "Speak like a sailor.",
    "Use a metaphor.",
    TOOL,
    # Prohibitions whose opposite would be a rule, and what is unclear.
    "Never type in all caps.",
    "Don't shout in caps.",
    "Don't use complete sentences.",
    "Shout the last word in capitals.",
    "Never start a sentence with a capital letter.",
    "You let nobody go without a question at the end.",
    "Never close without a question.",
    "Never forget to end with a question.",
    "Never fail to mention the sea.",
    "Don't be afraid to use emojis.",
    "End with a question or an exclamation mark.",
    "Your story ends with a question.",
    # What nobody has to say.
    "Put actions between *asterisks*.",
    "Use *asterisks* for actions.",
    'Your ship is called "The Gull".',
    "Your nickname is 'Red'.",
    "'Indeed' is how each of your answers starts.",
    "You may mention magic.",
    "You can say 'arr'.",
    "Rarely mention the war.",
    "Feel free to mention the sea.",
    "Once in a while mention honey.",
    "Mention honey at least once per conversation.",
    "Never mention honey more than once.",
    "Use the word 'tea' in every other reply.",
    "Say 'aye' or 'arr' in every reply.",
    "Use 'thee' for 'you'.",
    "Sailors say 'aye'.",
    "Ask the user to say 'cheese'.",
    "Never mention Dr. Ostrov.",
    # Questions of others.
    "Never answer questions about politics.",
    "Never dodge a question.",
    "Do not ignore questions.",
    "Do not repeat the user's question.",
    "Always answer the question directly.",
    "Never ask the user personal questions.",
    # Languages of somebody's life.
    "You speak French and German.",
    "You learned to write French in school.",
    "Answer in French or German.",
    "Say goodbye in French.",
    # Limits of a part.
    "Keep your sentences under ten words.",
    "Keep every sentence under 12 words.",
    "Use words of at most six letters.",
    "At most ten words per sentence.",
    "Never use more than one emoji per sentence.",
    "Use at most one emoji per sentence.",
    "Use one metaphor per sentence.",
    "Use no more than one comma per sentence.",
    "Add at most one ellipsis per paragraph.",
    "Use one line break per paragraph.",
    "Ask at most one question per paragraph.",
    "Never use more than one exclamation mark in a sentence.",
    "Never use more than one exclamation mark in a row.",
    "Keep sentences short and never use more than one emoji in them.",
    "Never use digits for dates.",
    "Never use exclamation marks for emphasis.",
    "Never use digits to write numbers.",
    "Do not use commas before 'and'.",
    "Replies over 40 words bore you.",
    "You may use one emoji.",
    "Invent at most two characters.",
    "At most two million words.",
    # Limits with a qualifier, and of something in the reply.
    "Never use emojis other than 🌸.",
    "Don't overuse emoji.",
    "No emoji spam.",
    "Never use sad emoji.",
    "No heart emoji.",
    "Do not use too many exclamation marks.",
    "Never use double exclamation marks.",
    "Never use more emoji than the user does.",
    "Don't use emoji in serious moments.",
    "Never use emoji in the first sentence.",
    "Never write lists longer than three items.",
    "Do not use links from unknown sites.",
    "Use at most 5 list items.",
    "Use one emoji per conversation.",
    "Ask at least one question per conversation.",
    "Open with one sentence about the sea.",
    "Open with one word, then explain in two sentences.",
    "End with one sentence of advice.",
    "Use two words of Latin.",
    "Use one word from Latin in every reply.",
    "Write up to 50 letters to the king.",
    "Include one exclamation mark in the greeting.",
    "Answer questions about the sea in at most two sentences.",
    "Answer personal questions in one sentence.",
    "Begin with a greeting and one sentence about the sea.",
    "End with a joke and keep it under 10 words.",
    "Explain magic in under 40 words.",
    "Never use these emoji: 😂.",
    "Never use emoji: 😂 and 😭.",
    "Never write dates as digits.",
    "Use two sentences on the topic.",
    "Greet the user in three words.",
    "Tell a story of at most 100 words.",
    "Use 20 words or so.",
    "Use 20 words, more or less.",
    "Narrate in third person, dialogue in first person.",
    "At most 1.000 words.",
    # No facts.
    "You live in a lighthouse.",
    "Your name is a secret.",
    "You are one with the sea.",
    "Never tell anyone that you are 34 years old.",
]


@pytest.mark.parametrize("instruction", UNCHECKED)
def test_what_code_cannot_tell_is_unchecked(instruction: str) -> None:
    card = Card("c", "Mae", (), (instruction, "Never use emoji."))
    assert unchecked(card) == [instruction]
    assert [check.kind for check in checks(card)] == ["emoji"]


@pytest.mark.parametrize(
    ("instruction", "kind", "good", "bad"),
    [
        *(
            (rule, "emoji", "Good day.", "Good day 🙂")
            for rule in (
                "Never use emoji of any kind.",
                "You must not use emoji under any circumstances.",
                "Never use emoji in this chat.",
                "Never use emoji: you are from 1890.",
            )
        ),
        *(
            (rule, "lists", "Bread and milk.", "- bread\n- milk")
            for rule in ("Never include lists of any kind.", "Never format replies as lists.")
        ),
        *(
            (rule, "words", "Good day.", "word " * 41)
            for rule in (
                "Answer questions in at most 20 words.",
                "Explain everything in under 40 words.",
                "Begin with a greeting and use at most 30 words.",
                "Answer in up to 20 words about anything.",
            )
        ),
        ("Answer every question in one sentence.", "sentences", "Yes.", "Yes. No."),
        ("Always reply in two sentences of plain English.", "sentences", "Yes. No.", "Yes."),
        ("Never write over 3 sentences on any topic.", "sentences", "Yes. No.", "A. B. C. D."),
    ],
)
def test_words_that_narrow_nothing_leave_a_rule_checked(
    instruction: str, kind: str, good: str, bad: str
) -> None:
    (check,) = instruction_checks(instruction)
    assert check.kind == kind
    assert check.obeyed(good)
    assert not check.obeyed(bad)


@pytest.mark.parametrize(
    ("instruction", "kinds"),
    [
        ("Say 'aye' instead of 'yes'.", {"not_mention:yes"}),
        ("Replace 'you' with 'thee'.", {"not_mention:you"}),
        ("Never start with 'Well' and end with 'bye'.", {"not_start:well"}),
        ("Never use emoji and write in lower case.", {"emoji"}),
        ("Write two sentences of at most ten words.", {"sentences"}),
        ("You live in Oslo, in a small flat.", {"fact_home"}),
    ],
)
def test_the_part_that_is_unclear_makes_no_check(instruction: str, kinds: set[str]) -> None:
    assert {check.kind for check in instruction_checks(instruction)} == kinds
