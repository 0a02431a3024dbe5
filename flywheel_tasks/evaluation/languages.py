"""Which language a card asks for, and whether a reply is in it: by its script, or by the commonest words of seven."""

import re
from functools import cache

from flywheel_tasks.evaluation.polarity import NOT, Test, prohibited
from flywheel_tasks.evaluation.wording import words_of
from flywheel_tasks.style.text import words

_SCRIPTS = {
    "russian": r"[а-яёіїєґ]",
    "ukrainian": r"[а-яёіїєґ]",
    "greek": r"[α-ωάέήίόύώ]",
    "japanese": r"[ぁ-んァ-ヶー一-龯]",
    "chinese": r"[一-龯ぁ-んァ-ヶー]",
    "korean": r"[가-힣]",
    "arabic": r"[ء-ي]",
    "hebrew": r"[א-ת]",
    "hindi": r"[ऀ-ॿ]",
    "thai": r"[ก-๙]",
}
# Two languages share these scripts; what stands in one of them only, and words that do.
_RUSSIAN = re.compile(r"[ыэъё]|\b(?:и|что|как|привет|спасибо|нет|или|меня)\b", re.IGNORECASE)
_UKRAINIAN = re.compile(r"[іїєґ]|\b(?:що|це|як|або|мене|дякую)\b", re.IGNORECASE)
_KANA = re.compile(r"[ぁ-んァ-ヶ]")
_BY_WORDS = ("english", "french", "spanish", "german", "italian", "portuguese", "dutch")
_TELLING = 10  # words; so many of a language have a common one among them
LANGUAGES = (*_BY_WORDS, *_SCRIPTS)
# Short replies hold few of the commonest words: what they greet, thank and agree with.
_SHORT = {
    "english": "hello hi hey yes no thanks thank please good dear friend he she they can would how why here there",
    "french": "bonsoir salut merci oui non bien très c'est suis ça moi toi",
    "spanish": "gracias buenos buenas adiós tú eres estoy bien mucho",
    "german": "hallo danke bitte nein bin bist habe hier sehr heute",
    "italian": "buongiorno buonasera grazie sono sei bene della che",
    "portuguese": "obrigado obrigada bom boa estou tudo bem você",
    "dutch": "hallo dank bedankt nee goed ben bent heb hier vandaag",
}
_ELIDED = {"french": {*"jcldnmts", "qu"}, "italian": {*"lcd", "un", "all", "dell", "nell"}}
# Markers of another language that English has too, in another sense or in a name.
_HOMOGRAPHS = frozenset(
    re.findall(
        r"\w+",
        "die no come a as o e me do pour met hoe ton van la el los lo per is in on was so we si che sei bin mon os um"
        " eu den wat dat yo",
    )
)
_LETTERS = {
    "english": "éèêàâçïôûñ",
    "french": "àâæçéèêëîïôœùûüÿ",
    "spanish": "áéíñóúü",
    "german": "äöüßé",
    "italian": "àèéìíîòóùú",
    "portuguese": "áâãàçéêíóôõúü",
    "dutch": "áéèëïíóöüĳ",
}


def is_in(reply: str, language: str) -> bool | None:
    """Whether a reply is in a language.

    Args:
        reply: not empty.
        language: one of :data:`LANGUAGES`. Those in a script of their own need half of the letters in it; the others
            more of their own commonest words than any other has.

    Returns:
        None where too little tells: no letters, a few words none of which is common in any language, or as many of two.
    """
    characters = [character for character in reply.lower() if character.isalpha()]
    if not characters:
        return None
    script = _SCRIPTS.get(language, r"[a-zß-ɏḀ-ỿ]")
    if sum(re.match(script, character) is not None for character in characters) < len(characters) / 2:
        return False
    if language in {"russian", "ukrainian"}:
        russian, ukrainian = _RUSSIAN.search(reply), _UKRAINIAN.search(reply)
        return None if bool(russian) == bool(ukrainian) else bool(russian) == (language == "russian")
    if language in {"japanese", "chinese"}:
        # Some Chinese writes a の for show; no Japanese sentence does with so little.
        kana = len(_KANA.findall(reply)) / len(characters)
        return kana > 0 if language == "japanese" else kana < 0.1
    return True if language in _SCRIPTS else _by_words(reply, language)


@cache
def _markers() -> dict[str, frozenset[str]]:
    return {
        name: words_of(f"language_{name}")
        | set(_SHORT[name].split())
        | {f"{x}'" for x in _ELIDED.get(name, ())}
        for name in _BY_WORDS
    }


def _by_words(reply: str, language: str) -> bool | None:
    said = [part for word in words(reply) for part in _parts(word)]
    markers = _markers()
    counts = {name: sum(word in markers[name] for word in said) for name in _BY_WORDS}
    if not any(counts.values()):
        return False if len(said) >= _TELLING or _foreign(reply, language) else None
    certain = {
        name
        for name in _BY_WORDS
        for word in said
        if word not in _HOMOGRAPHS and [x for x in _BY_WORDS if word in markers[x]] == [name]
    }
    own, best = counts[language], max(counts[name] for name in _BY_WORDS if name != language)
    if any(counts[name] > own and name in certain for name in _BY_WORDS):
        return False
    return True if own > best and language in certain else None


def _parts(word: str) -> list[str]:
    """The parts of a word at hyphens and apostrophes: "l'amour" is "l'" and "amour", "i'm" also "i"."""
    found: list[str] = []
    for piece in word.split("-"):
        first, *rest = piece.split("'")
        found += [f"{first}'", *rest] if rest else [first]
        if rest and (len(first) > 1 or first == "i"):
            found.append(first)
    return found


def _foreign(reply: str, language: str) -> bool:
    """Whether two words, not both names, have letters that a language does not use."""
    known = set("abcdefghijklmnopqrstuvwxyz" + _LETTERS[language])
    others = [word for word in re.findall(r"[^\W\d_]+", reply) if set(word.lower()) - known]
    return len(others) > 1 and any(word.islower() for word in others)


_NAMES = f"(?P<language>{'|'.join(LANGUAGES)})"
_ONLY = r"(?:only|always|solely|exclusively|entirely|strictly|purely|just|nothing but)"
_BETWEEN = (
    rf"(?: (?:{_ONLY}|back|everything|anything|all|every|each|any|your|the|user(?:'s)?|to|repl(?:y|ies)|messages?"
    r"|answers?|questions?|them|people|everyone|must|should|be|are|is|written|given|never|not|ever|you|say|write))"
)
_OTHER = rf"(?:,|and|or|nor|/)\s*(?:in )?(?:{'|'.join(LANGUAGES)})"
_AFTER = (
    r"(?=\s*(?:[.,;:!)/]|$)| (?:only|always|alone|exclusively|at all times|throughout|even|no matter|whatever|please"
    r"|ever|at all|and|or|nor|but|with (?:the user|everyone|me|people|them)|to (?:the user|everyone|everything|all|any)"
    r"|in (?:every|each|all|your|any))\b)"
)
_ASKED = re.compile(
    r"\b(?:(?:reply|replies|answers?|respond|responses?|writ(?:e|(?=ing))|speak|talk|chat|converse|communicate"
    rf"|typ(?:e|(?=ing))|messages?|everything|all)(?:ing)?{_BETWEEN}{{0,6}} in"
    r" (?:(?:plain|simple|good|fluent|proper|nothing but) )?"
    rf"|(?:{_ONLY}|{NOT})(?: ever)? (?:use|using|speak(?:ing)?|write|writing|type|typing) (?:{_ONLY} )?"
    rf"|(?:speak|use|write|type) (?:in )?{_ONLY} (?:in )?){_NAMES}\b{_AFTER}",
    re.IGNORECASE,
)
# What the character can do or has done says nothing of the replies; a word of a language is not the language.
_BIOGRAPHY = re.compile(
    r"\b(?:learn(?:ed|t|ing)?|knows?|knew|grew|studied|taught|teach|used to|loves?|likes?|enjoy|dream|think|swear|curse"
    r"|count|native|fluent(?:ly)?|born|once)\b|\byou (?:do not|don't|cannot|can't) speak\b"
    r"|\b(?:words?|phrases?|accent|sometimes|songs?|proverbs?)\b"
)


def languages(sentence: str) -> dict[str, Test]:
    """A language to answer in, or never to use: "Reply only in French", "never use English".

    Args:
        sentence: of a card.

    Returns:
        tests by kind (``language:french``, ``not_language:english``); a reply too short to tell passes either.
    """
    found: dict[str, Test] = {}
    if _BIOGRAPHY.search(sentence.lower()):
        return found
    for match in _ASKED.finditer(sentence):
        language = match.group("language").lower()
        banned = prohibited(sentence[: match.start("language")])
        if banned is None or (
            not banned and re.match(rf"\s*{_OTHER}", sentence[match.end() :], re.IGNORECASE)
        ):
            continue
        found[f"{'not_' if banned else ''}language:{language}"] = _in_language(language, banned)
    return found


def _in_language(language: str, banned: bool) -> Test:
    # Demanded: all but a sure "no" passes; forbidden: all but a sure "yes".
    return lambda reply: is_in(reply, language) is not banned
