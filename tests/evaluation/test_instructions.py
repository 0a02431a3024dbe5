"""Instructions that code understands, each with a reply that obeys it and one that does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.evaluation.instructions import instruction_checks

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


def test_one_instruction_with_several_rules() -> None:
    kinds = {
        c.kind
        for c in instruction_checks("Keep it under 30 words, never use emoji, and end with a question.")
    }
    assert kinds == {"words", "emoji", "end_question"}


def test_an_empty_reply_obeys_nothing() -> None:
    for instruction, *_ in CASES:
        assert not any(check.obeyed("  \n") for check in instruction_checks(instruction)), instruction


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for check in instruction_checks(text):
        check.obeyed(text + "?")
