"""Words, sentences and content words of chat text, as the simulated people see them."""

import re

import emoji

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE = re.compile(r"[^.!?…\n]+[.!?…]*")
_ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|St)\.")
_FUNCTION_WORDS = """
a about above after again all almost alone also always am an and another any anyone anything are around as
at away back be became because become been before being best better between bit both but by came can cannot
come could day did do does doing done down each else enough even ever every everyone everything few first
for found from get getting give go goes going gone good got great had has have having he hello help her here
hey hi him his how i if in into is it its just keep kind know last least less let like little look lot made
make many may maybe me mean might more most much must my myself need never new next no nobody none not
nothing now of off often oh ok okay old on once one only or other our out over own people perhaps please put
quite rather really right said same say see seem seems seen she should since so some someone something
sometimes soon still such sure take tell than thank thanks that the their them then there these they thing
things think this those though thought through time to today together told too took two under until up us
use used very want was way we well went were what when where which while who whole why will with without won
would yes yet you your yours yourself
"""
STOPWORDS = frozenset(_FUNCTION_WORDS.split())


def words(text: str) -> list[str]:
    """Lower-case words, with straight apostrophes."""
    return [match.replace("’", "'").lower() for match in _WORD.findall(text)]


def sentences(text: str) -> list[str]:
    """Sentences with their end marks; a part without any word is none."""
    found = (part.strip() for part in _SENTENCE.findall(_ABBREVIATION.sub(r"\1", text)))
    return [part for part in found if words(part)]


def stem(word: str) -> str:
    """A crude common form, enough to see that "gardens" answers "garden"."""
    base = word.split("'")[0]
    for ending in ("ing", "ies", "ed", "es", "s"):
        if base.endswith(ending) and len(base) - len(ending) >= 3:
            return base[: -len(ending)]
    return base


def content_words(text: str) -> list[str]:
    """Words that say what a text is about: in order, without repeats."""
    found: dict[str, None] = {}
    for word in words(text):
        if len(word) > 2 and word.split("'")[0] not in STOPWORDS and not word.isdigit():
            found.setdefault(word)
    return list(found)


def emoji_count(text: str) -> int:
    """Number of emoji (a joined sequence is one)."""
    return emoji.emoji_count(text)


def ends_sentence(text: str) -> bool:
    """Does the text end with a sentence mark, perhaps in quotes or before an emoji?"""
    bare = emoji.replace_emoji(text, "").rstrip().rstrip("\"'”’)*~")
    if not bare:
        return emoji_count(text) > 0
    return bare[-1] in ".!?…" or (emoji_count(text) > 0 and not text.rstrip()[-1].isalnum())
