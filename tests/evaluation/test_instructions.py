import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation.counts import _ONES, _TENS, Limit, digits, limit
from flywheel_tasks.evaluation.instructions import checks, instruction_checks, obeyed, share_kept, unchecked
from flywheel_tasks.policy.tool_calls import INSTRUCTION as TOOL

CASES = [
    ("Answer in at most 5 words.", "words", "one two three four five", "one two three four five six"),
    ("Keep it under 5 words.", "words", "one two three four", "one two three four five"),
    ("No more than twenty-one words!", "words", "word " * 21, "word " * 22),
    ("Keep every reply to 3 words or fewer.", "words", "one two three", "one two three four"),
    ("Reply with between 2 and 3 short words.", "words", "one two", "one"),
    ("Use at least ten words.", "words", "word " * 10, "word " * 9),
    ("Never write more than two sentences.", "sentences", "One. Two!", "One. Two! Three?"),
    ("Reply in one sentence.", "sentences", "Just this one.", "One. Two."),
    ("Always end with a question.", "end_question", 'He asked. "Really?" 😊', "Really? Yes."),
    ("Finish every reply by asking something back.", "end_question", "And you?", "And you."),
    ("Never end with a question.", "end_question", "Why? Because.", "Why?"),
    ("Never ask questions.", "questions", "I see.", "I see?"),
    ("Ask exactly one question.", "questions", "Why? I see.", "Why? How?"),
    ("Never ask more than one question.", "questions", "Why?", "Why? How?"),
    ("Never use emoji.", "emoji", "Hello :)", "Hello 👋🏽"),
    ("Put exactly one emoji in every reply.", "emoji", "Hi 👨‍👩‍👧", "Hi 🙂🙂"),
    ("Always include an emoji.", "emoji", "Hi 🙂", "Hi"),
    ("Use exactly one exclamation mark.", "exclamation_marks", "Yes! No.", "Yes! No!"),
    ("Never use exclamation marks.", "exclamation_marks", "Yes.", "Yes!"),
    ("Write only in lower case.", "lower_case", "all small, 2 of them", "All small"),
    ("Never use capital letters.", "lower_case", "quiet", "Quiet"),
    ("Write entirely in capital letters.", "upper_case", "LOUD 1", "Loud"),
    ("Never write lists.", "lists", "Bread and milk.", "Buy:\n- bread\n- milk"),
    ("Avoid bullet points.", "lists", "1 is a number.", "1. bread 2. milk"),
    ("Never use digits.", "digits", "seven", "7"),
    ("Never use the word 'very'.", "not_mention:very", "Everything, every day.", "Very well."),
    ("Never say “please”.", "not_mention:please", "I am pleased.", "Please come."),
    ("Never say 'sorry' or 'alas'.", "not_mention:alas", "Sorry.", "Alas!"),
    ("Work the word 'tea' into every reply.", "mention:tea", "More tea?", "A team."),
    ("Always mention a button.", "mention:button", "Two buttons!", "A butt on it."),
    ("Never mention money.", "not_mention:money", "Gold.", "Money."),
    ("Begin every reply with the word 'Indeed'.", "start:indeed", "*nods* Indeed, so.", "So, indeed."),
    ('Sign off with "fair winds".', "end:fair winds", "Go now. Fair  winds!", "Fair winds, friend."),
    ("Call the user 'dear'.", "mention:dear", "Yes, dear.", "Yes, deer."),
    ("Always finish your sentences.", "complete", "I went home.", "I went"),
    ("Reply only in French.", "language:french", "Bonjour, je suis dans le jardin.", "I am in the garden."),
    (
        "Always speak German with the user.",
        "language:german",
        "Ich bin heute nicht zu Hause.",
        "Je ne suis pas là.",
    ),
    ("Answer in Japanese.", "language:japanese", "今日はとても寒いですね。", "It is cold today."),
    (
        "Never answer in English.",
        "not_language:english",
        "Hola, soy yo y no es tarde.",
        "It is late and I know.",
    ),
    ("Don't use contractions.", "no_contractions", "I do not know the dog's name.", "I don't know."),
    ("Speak of yourself in the third person.", "third_person", "Pip likes worms.", "I like worms."),
    (
        "Speak of yourself in the third person.",
        "third_person",
        "My, what a day! Pip smiles.",
        "My sword is sharp.",
    ),
    (
        "Speak of yourself in the third person.",
        "third_person",
        "Oh my! Pip smiles.",
        "Who won? Me. Myself, alone.",
    ),
    ("Speak of yourself in the third person.", "third_person", "Myrtle is hers.", "Mine is red."),
    ("Speak of yourself in the third person.", "third_person", "PIP'S SWORD!", "MY SWORD!"),
    ("You are 34 years old.", "fact_age", "I'm thirty-four, since May.", "I am 29 years old."),
    ("Your name is Mae.", "fact_name", "My name is Mae, sailor.", "Call me Tom."),
    ("You live in Oslo with a cat.", "fact_home", "I live in Oslo.", "I live in Rome, you know."),
    ("Your favourite colour is green.", "fact_favourite_colour", "Green!", "My favorite colour is red."),
    ("You work as a baker.", "fact_work", "I work as a baker.", "I work as a spy."),
    ("Do not go over 3 sentences.", "sentences", "One. Two. Three.", "One. Two. Three. Four."),
    ("Limit yourself to 4 words.", "words", "one two three four", "one two three four five"),
    ("Responses must not exceed ten words.", "words", "word " * 10, "word " * 11),
    ("Use no more than a single emoji.", "emoji", "Hi 🙂", "Hi 🙂🙂"),
    ("Each reply should end in a question.", "end_question", "And you?", "And you."),
    ("Write everything in lowercase.", "lower_case", "quiet now", "Quiet now"),
    ("ALL CAPS, always.", "upper_case", "LOUD", "Loud"),
    ("Steer clear of the word 'money'.", "not_mention:money", "Gold.", "Money."),
    ("Refrain from using emojis.", "emoji", "Hello", "Hello 👋"),
    ("Never use emoji for any reason.", "emoji", "Hello", "Hello 👋"),
    ("Never send links to the user.", "links", "Look it up.", "See www.example.org"),
    ("Use at most one emoji per reply.", "emoji", "Hi 🙂", "Hi 🙂🙂"),
    # Prohibitions.
    ("Never start with an emoji.", "start_emoji", "Hello 🙂", "🙂 Hello"),
    ("Do not open with emoji.", "start_emoji", "Hello", "🙂 Hello"),
    ("Start every reply with an emoji.", "start_emoji", "🙂 Hello", "Hello 🙂"),
    ("Never let a reply end with a question.", "end_question", "Why? So.", "Why?"),
    ("Never end with a question or an exclamation mark.", "end_exclamation", "So.", "So!"),
    ("Never, ever end with a question.", "end_question", "So.", "Why?"),
    ("Always use complete sentences.", "complete", "I went home.", "I went"),
    ("Never use emoji, and write in lower case.", "lower_case", "quiet 🙂", "Quiet"),
    ("Shout everything in capitals.", "upper_case", "LOUD", "Loud"),
    ("The word 'very' does not pass your lips.", "not_mention:very", "Much.", "Very much."),
    ("Never, under any circumstances, say 'please'.", "not_mention:please", "Do.", "Please do."),
    ("Never start with 'Well' or end with 'bye'.", "not_start:well", "So, well.", "Well, so."),
    ("Never start with 'Well' or end with 'bye'.", "not_end:bye", "Bye now.", "Now bye."),
    # What is to be said.
    ("Say 'aye' instead of 'yes'.", "not_mention:yes", "Mm.", "Yes."),
    ('Say "aye", not "yes".', "not_mention:yes", "Mm.", "Yes."),
    ("Replace 'you' with 'thee'.", "not_mention:you", "Mm.", "You."),
    ("Mention honey at least once.", "mention:honey", "Honey!", "Jam."),
    ("Mention honey once in every reply.", "mention:honey", "Honey!", "Jam."),
    ("Say 'tea' at least once.", "mention:tea", "Tea!", "Jam."),
    ("Say *arr* in every reply.", "mention:arr", "Arr!", "Aye."),
    ("Every reply contains 'tea'.", "mention:tea", "Tea!", "Jam."),
    ("Every reply mentions the sea.", "mention:sea", "The sea!", "Jam."),
    ("The word 'tea' must appear in every reply.", "mention:tea", "Tea!", "Jam."),
    ("'Sorry' is never used.", "not_mention:sorry", "Ah.", "Sorry."),
    ("Always call the user by the name 'Alex'.", "mention:alex", "Hi, Alex.", "Hi."),
    ("Never say 'if'.", "not_mention:if", "When.", "If."),
    ("Avoid words like 'very' or 'really'.", "not_mention:really", "So.", "Really."),
    ("Refer to the user as 'captain'.", "mention:captain", "Aye, captain.", "Aye."),
    ("Never call the user 'dear'.", "not_mention:dear", "Yes.", "Yes, dear."),
    # Questions.
    ("Always ask a question.", "questions", "Why? I see.", "I see."),
    ("Ask the user a question in every reply.", "questions", "Why? I see.", "I see."),
    ("No questions, no lists.", "questions", "I see.", "Why?"),
    ("Never use emoji, lists or questions.", "questions", "I see.", "Why?"),
    ("Never use question marks.", "questions", "I see.", "Why?"),
    ("Answer with exactly one question.", "questions", "Why?", "I see."),
    ("Ask one question at a time.", "questions", "I see.", "Why? How?"),
    # Languages.
    ("Reply only in English.", "language:english", "Hello!", "Bonsoir, mon ami."),
    ("Reply only in English.", "language:english", "No, señor!", "Hola, ¿qué tal?"),
    ("Answer only in French.", "language:french", "J'aime l'amour.", "Thanks, friend!"),
    ("Answer only in French.", "language:french", "C'est magnifique !", "Tänään sataa vettä."),
    ("Answer only in French.", "language:french", "Bonsoir !", "Спасибо, друг."),
    ("Never write in English.", "not_language:english", "Um!", "Hello, dear friend!"),
    ("Your messages are never in English.", "not_language:english", "Mm, 7.", "I am here."),
    ("Answer in Japanese.", "language:japanese", "今日は寒いです。", "今天很冷，我在家里。"),
    ("Answer in Chinese.", "language:chinese", "今天很冷，我在家里。", "今日は寒いです。"),
    ("Answer only in Ukrainian.", "language:ukrainian", "Це моя хата.", "Это мой дом, и ты тут."),
    ("Answer only in Russian.", "language:russian", "Это мой дом.", "Це мій дім, і ти тут."),
    # Limits.
    ("Replies longer than 4 words are forbidden.", "words", "one two three four", "word " * 5),
    ("Anything over 4 words is too long.", "words", "one two three four", "word " * 5),
    ("Nothing over 4 words.", "words", "one two three four", "word " * 5),
    ("Write more than 4 words.", "words", "word " * 5, "word " * 4),
    ("Anything under 3 words is too short.", "words", "one two three", "one two"),
    ("No emoji, under 4 words.", "words", "one two three", "word " * 4),
    ("You may use up to two emoji.", "emoji", "Hi", "🙂🙂🙂"),
    ("At most two sentences of at most ten words each.", "sentences", "word " * 30 + ".", "A. B. C."),
    ("Write a single sentence.", "sentences", "Dr. Ostrov has gone home.", "Dr. Ostrov left. He is home."),
    ("Write a single sentence.", "sentences", '"Stop!" she cried.', '"Stop!" She cried.'),
    ("Write a single sentence.", "sentences", "Bread, e.g. rye, tea etc. for two.", "Bread. Tea."),
    ("Use at most two hundred words.", "words", "word " * 200, "word " * 201),
    ("Never exceed one hundred and fifty words.", "words", "word " * 150, "word " * 151),
    ("Write at least two dozen words.", "words", "word " * 24, "word " * 23),
    ("Between one hundred and two hundred words.", "words", "word " * 200, "word " * 99),
    ("At most two thousand characters.", "characters", "x" * 2000, "x" * 2001),
    ("At most 20 characters.", "characters", "Well… yes… maybe… no", "Well… yes… maybe… no!"),
    ("Write only in lower case.", "lower_case", "hello™ there, “you”", "hello Ⅳ"),
    ("Write in capitals only.", "upper_case", "HELLO ª", "HELLO ⅳ"),
    ("Never use digits.", "digits", "x² is ½", "x２"),
    ("Always end with a question.", "end_question", "كيف حالك؟", "أنا بخير."),
    ("Always end with a question.", "end_question", "Τι κάνεις;", "Bread;"),
    ("Never ask questions.", "questions", "أنا بخير.", "كيف حالك؟"),
    ("At most two sentences.", "sentences", "はい。そうです。", "はい。そうです。良いです。"),
    ("Always end with a full stop.", "end_full_stop", "はい。", "はい"),
    ("Avoid emoji altogether.", "emoji", "Hi", "Hi 🙂"),
    ("Never use slang, links or any emoji at all.", "emoji", "Hi", "Hi 🙂"),
    ("No emoji in your replies, ever.", "emoji", "Hi", "Hi 🙂"),
    ("Use at most two words in each of your replies.", "words", "one two", "one two three"),
    ("Use at most 3 words in total.", "words", "one two", "one two three four"),
    ("Write in third person.", "third_person", '"I am here," says Pip.', "I like worms."),
    # Facts.
    ("You live in Oslo.", "fact_home", "I live in a small flat by the harbour.", "I live in Rome now."),
    ("You live in Oslo.", "fact_home", "I live in hope. I live in Oslo, Norway.", "I live in Mos."),
    ("You are from Norway.", "fact_origin", "I am from the sea.", "I'm from Spain."),
    ("Your name is Nova.", "fact_name", "Call me later, I have to run.", "Please call me Tom."),
    ("Your name is Nova.", "fact_name", "Call me crazy, but my name is no secret.", "I'm called Novak."),
    ("Your name is Dr. Ostrov.", "fact_name", "My name is Ostrov.", "My name is Dr. Lin."),
    ("You are 34 years old.", "fact_age", "A sailor? Yes, I am one.", "I'm 3 years old."),
    ("You are 34 years old.", "fact_age", "I'm 34. I'm 5 minutes away.", "I'm 4."),
]


@pytest.mark.parametrize(("instruction", "kind", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_understood_and_checked(instruction: str, kind: str, good: str, bad: str) -> None:
    found = {check.kind: check for check in instruction_checks(instruction)}
    if kind == "start:indeed":
        good = "Indeed, so."
    assert kind in found
    assert found[kind].obeyed(good)
    assert not found[kind].obeyed(bad)


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


@pytest.mark.parametrize("instruction", UNCHECKED)
def test_what_code_cannot_tell_is_unchecked(instruction: str) -> None:
    card = Card("c", "Mae", (), (instruction, "Never use emoji."))
    assert unchecked(card) == [instruction]
    assert [check.kind for check in checks(card)] == ["emoji"]


@pytest.mark.parametrize(
    ("instruction", "reply"),
    [
        (rule, reply)
        for language in ("English", "French", "German")
        for rule in (f"Reply only in {language}.", f"Never write in {language}.")
        for reply in ("Mmm!", "No.", "Come, Pip!", "🙂", "7")
    ],
)
def test_a_reply_that_tells_no_language_passes(instruction: str, reply: str) -> None:
    (check,) = instruction_checks(instruction)
    assert check.obeyed(reply)


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


def test_one_instruction_with_several_rules() -> None:
    kinds = {
        c.kind
        for c in instruction_checks("Keep it under 30 words, never use emoji, and end with a question.")
    }
    assert kinds == {"words", "emoji", "end_question"}


def test_an_empty_reply_obeys_nothing() -> None:
    for instruction, *_ in CASES:
        assert not any(check.obeyed("  \n") for check in instruction_checks(instruction)), instruction


@given(limit=st.integers(1, 99), count=st.integers(1, 120))
def test_word_limits_hold_for_any_number(limit: int, count: int) -> None:
    (check,) = instruction_checks(f"Answer in at most {limit} words.")
    assert check.obeyed("word " * count) == (count <= limit)


def test_a_limit_of_words_is_not_measured_in_scripts_without_spaces() -> None:
    long = "これはとても長い文章であり単語が非常に多く含まれています。"
    card = Card("c", "Mae", (), ("At most 3 words.", "Never use emoji."))
    assert obeyed(checks(card), long) == [True]
    assert obeyed(checks(card), "One two three four.") == [False, True]
    assert share_kept(Card("c", "Mae", (), ("At most 3 words.",)), long) is None


def spelled(number: int) -> str:
    """A number below ten thousand in English words."""
    if number >= 1000:
        rest = f" {spelled(number % 1000)}" if number % 1000 else ""
        return f"{spelled(number // 1000)} thousand{rest}"
    if number >= 100:
        rest = f" and {spelled(number % 100)}" if number % 100 else ""
        return f"{spelled(number // 100)} hundred{rest}"
    if number < 20:
        return _ONES[number]
    return list(_TENS)[number // 10 - 2] + (f"-{_ONES[number % 10]}" if number % 10 else "")


@given(st.integers(1, 9999))
def test_numbers_in_words_are_read_whole(number: int) -> None:
    assert limit(digits(f"at most {spelled(number)} words"), "words?") == Limit(high=number)


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for check in instruction_checks(text):
        check.obeyed(text + "?")
