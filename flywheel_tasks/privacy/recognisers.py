"""Presidio recognisers: its own for ids with fixed shapes, and ours for numbers and addresses written to be missed.

All see folded text (:mod:`flywheel_tasks.privacy.folding`). What ours add to Presidio's: separators between digits
(spaces, dots, dashes, slashes), ``(at)`` and ``[dot]``, lower-case IBANs, secrets, and links that carry one.
"""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import cast

import phonenumbers
import tldextract
from presidio_analyzer import EntityRecognizer, LocalRecognizer, RecognizerResult
from presidio_analyzer.nlp_engine import NlpArtifacts
from presidio_analyzer.predefined_recognizers import (
    CryptoRecognizer,
    EsNieRecognizer,
    EsNifRecognizer,
    FiPersonalIdentityCodeRecognizer,
    InAadhaarRecognizer,
    InPanRecognizer,
    IpRecognizer,
    ItFiscalCodeRecognizer,
    KrRrnRecognizer,
    PlPeselRecognizer,
    SgFinRecognizer,
    UkNinoRecognizer,
    UsItinRecognizer,
    UsSsnRecognizer,
)

from flywheel_tasks.privacy.checksums import IBAN_LENGTHS, card, iban, ssn

# What Presidio's recognisers are given besides the text; patterns do not read it.
NO_MODEL = cast(NlpArtifacts, None)
# Presidio's score of a finding must be above this: "::" alone is an IP address of 0.1, nine digits an SSN of 0.05.
_LEAST = {"NATIONAL_ID": 0.45, "CRYPTO": 0.9, "IP": 0.5}
_GAP = r"[ .\-_/*\u00b7\u2022]{0,3}"
_OPEN, _CLOSE = r"[(\[{<]\s*", r"\s*[)\]}>]"
_AT = rf"(?:\s{{0,2}}@\s{{0,2}}|\s*{_OPEN}(?:at|@){_CLOSE}\s*)"
_DOT = rf"(?:\.|\s+\.\s+|\s*{_OPEN}(?:dot|\.){_CLOSE}\s*|\s+dot\s+)"
_SAID_DOT = rf"(?:\s*{_OPEN}(?:dot|\.){_CLOSE}\s*|\s+dot\s+)"
_LOCAL = rf"[\w+%-](?:[\w.+%-]|{_SAID_DOT}(?=\w)){{0,63}}"
# With "at" as a word, a dot must be said too: "look at this.my" is a missing space.
_EMAIL = re.compile(
    rf"(?<![\w@]){_LOCAL}(?:{_AT}[\w-]+(?:{_DOT}[\w-]+)+|\s+at\s+[\w-]+(?:{_SAID_DOT}[\w-]+)+)", re.IGNORECASE
)
_DIGIT_RUN = re.compile(rf"(?<![\w])\d(?:{_GAP}\d){{8,40}}(?!\w)")
_IBAN_START = re.compile(rf"(?<![a-z0-9])[a-z]{{2}}{_GAP}\d{_GAP}\d", re.IGNORECASE)
_NINO = re.compile(
    rf"(?<![a-z0-9])[a-ceghj-pr-tw-z]{_GAP}[a-ceghj-npr-tw-z](?:{_GAP}\d){{6}}{_GAP}[a-d](?![a-z0-9])",
    re.IGNORECASE,
)
_IP_DOT = rf"(?:\s{{0,2}}\.\s{{0,2}}|\s*{_OPEN}(?:dot|\.){_CLOSE}\s*|\s+dot\s+)"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IP = re.compile(rf"(?<![\w.]){_OCTET}(?:{_IP_DOT}{_OCTET}){{3}}(?![\w]|\.\d)", re.IGNORECASE)
_VERSION = re.compile(r"(?:\bv|version|release|build|firmware|section|chapter|patch)[\s:#]*$", re.IGNORECASE)
_SSN_SAID = re.compile(r"\b(?:ssn|social\s+security|itin)\b", re.IGNORECASE)
_PHONE_RUN = re.compile(
    r"(?<![\w.,$€£])(?:\+|\()?[ ]?\(?\d(?:[ .\-_/()*\u00b7\u2022]{0,3}\d){6,17}(?![\w%]|,\d)"
)
_PHONE_SHAPE = re.compile(
    r"(?<![\w+])\+\d{1,3}[ .-]{1,2}\(?\d{2,4}\)?(?:[ .-]{1,2}\d{2,4}){2,4}(?!\w)"
    r"|\(\d{3}\)[ .-]{0,2}\d{3}[ .-]\d{4}(?!\w)|(?<![\w.-])\d{3}[.-]\d{3}[.-]\d{4}(?![\w-])"
)
_PHONE_SAID = re.compile(
    r"\b(?:call|phone|tele?phone|tel|cell|mobile|whats\s?app|text\s+me|reach\s+me|ring|number|fax|sms|signal)\b",
    re.IGNORECASE,
)
_TELLING = (
    r"(?:access_?token|auth|api_?key|apikey|key|password|passwd|pwd|secret|session(?:_?id)?|sid|sig|signature|token|jwt"
    r"|x-amz-signature|code|refresh_?token)"
)
_URL = re.compile(
    r"\bh(?:tt|xx)ps?\s{0,2}:\s{0,2}//\s{0,2}[^\s<>\"]+|\bftp://[^\s<>\"]+"
    rf"|(?<![\w@])(?:[\w-]+\.)+[a-z]{{2,}}(?::\d+)?/[^\s<>\"]*[?&#]{_TELLING}=[^\s<>\"]{{6,}}",
    re.IGNORECASE,
)
_URL_SECRET = re.compile(rf"//[^/\s@]+:[^/\s@]+@|[?&#]{_TELLING}=[^\s&]{{6,}}", re.IGNORECASE)
_SECRET = re.compile(
    r"\b(?:sk|pk|rk)[-_](?:live|test|proj|ant|or)?[-_]?[A-Za-z0-9_-]{20,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{40,}|\bglpat-[\w-]{20,}"
    r"|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{35}|\bhf_[A-Za-z0-9]{30,}|\bnpm_[A-Za-z0-9]{36}"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}|\bSG\.[\w-]{16,}\.[\w-]{16,}"
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
)
_NAMED_SECRET = re.compile(
    r"\b(?:api[ _-]?key|access[ _-]?token|secret[ _-]?key|bearer)\b[\s:=]*(?:is\s+)?((?=[\w-]*\d)[\w-]{16,})",
    re.IGNORECASE,
)
_ETHEREUM = re.compile(r"\b0x[0-9a-fA-F]{40}\b")

# One pass that most chat does not survive; whatever it lets go is looked at by all recognisers.
PREFILTER = re.compile(
    r"@|[:/]\s?/|\d(?:[^a-z0-9\n]{0,6}\d){5}|\d{1,3}(?:(?:[^a-z0-9\n]{1,6}|\s*\W?\s*dot\s*\W?\s*)\d{1,3}){3}"
    r"|[A-Za-z0-9+/_-]{20}|[(\[{<]\s*(?:at|dot)\s*[)\]}>]|\bdot\s+\w|[0-9a-f]{0,4}:[0-9a-f]{0,4}:"
    r"|[a-z]{5}\d{4}[a-z]|[a-z]{6}\d\d|[a-z]\w?\W{0,3}\d(?:[^a-z0-9\n]{0,3}\d){5}|xox|=",
    re.IGNORECASE,
)

_DATE = re.compile(
    r"(?:19|20)\d\d[-./ ]\d{1,2}[-./ ]\d{1,2}(?:[ -]+\d{1,4})*|\d{1,2}[-./]\d{1,2}[-./](?:19|20)\d\d(?: \d{1,4})*"
)
_SUFFIXES = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)  # the packaged list; never the network
_NOT_DIGITS = re.compile(r"\D")
_SEPARATORS = re.compile(r"[\s.\-_/*\u00b7\u2022]")


class _Ours(LocalRecognizer):
    """A recogniser made of one function of the folded text.

    Args:
        entity: the type that it finds.
        find: yields spans.
    """

    def __init__(self, entity: str, find: Callable[[str], Iterator[tuple[int, int]]]) -> None:
        self._find = find
        super().__init__(supported_entities=[entity], supported_language="en", name=f"flywheel {entity}")

    def load(self) -> None:
        """Nothing to load."""

    def analyze(
        self, text: str, entities: list[str], nlp_artifacts: NlpArtifacts | None = None
    ) -> list[RecognizerResult]:
        """See presidio_analyzer.EntityRecognizer."""
        entity = self.supported_entities[0]
        return [RecognizerResult(entity, start, end, 1.0) for start, end in self._find(text)]


def canonical(kind: str, text: str) -> str:
    """One form for all spellings of an identifier.

    Args:
        kind: its type.
        text: as found in folded text.
    """
    if kind in ("PHONE", "CARD"):
        return _NOT_DIGITS.sub("", text)
    if kind == "EMAIL":
        plain = re.sub(_SAID_DOT, ".", text, flags=re.IGNORECASE)
        plain = re.sub(rf"{_AT}|\s+at\s+", "@", plain, flags=re.IGNORECASE)
        return re.sub(r"\s", "", plain).lower()
    if kind == "IP":
        return re.sub(r"\s", "", re.sub(_IP_DOT, ".", text, flags=re.IGNORECASE)).lower()
    if kind in ("IBAN", "NATIONAL_ID"):
        return _SEPARATORS.sub("", text).upper()
    return " ".join(text.split()).lower() if kind in ("NAME", "ADDRESS") else text.strip()


def _emails(text: str) -> Iterator[tuple[int, int]]:
    for match in _EMAIL.finditer(text):
        name, _, domain = canonical("EMAIL", match[0]).partition("@")
        end = match.end()
        # "anna@example.com dot" or "...com.Then": words that are no part of the domain are cut off.
        while domain and not _SUFFIXES(domain).top_domain_under_public_suffix and "." in domain:
            domain = domain.rpartition(".")[0]
            cut = list(re.finditer(_DOT, text[match.start() : end], re.IGNORECASE))
            end = match.start() + cut[-1].start()
        if name and "." in domain and _SUFFIXES(domain).top_domain_under_public_suffix:
            yield match.start(), end


def _cards(text: str) -> Iterator[tuple[int, int]]:
    """The stretches of runs of digits that are cards, from the start of a group to the end of one."""
    for run in _DIGIT_RUN.finditer(text):
        groups = [match.span() for match in re.finditer(r"\d+", run[0])]
        first = 0
        while first < len(groups):
            for last in range(len(groups) - 1, first - 1, -1):
                start, end = run.start() + groups[first][0], run.start() + groups[last][1]
                digits = _NOT_DIGITS.sub("", text[start:end])
                if 13 <= len(digits) <= 19 and card(digits):
                    yield start, end
                    first = last
                    break
            first += 1


def _ssns(text: str) -> Iterator[tuple[int, int]]:
    for run in _DIGIT_RUN.finditer(text):
        digits = _NOT_DIGITS.sub("", run[0])
        shape = re.fullmatch(r"(?:\d\W?){3}[\W_]+(?:\d\W?){2}[\W_]*(?:\d\W?){4}", run[0])
        grouped = [len(group) for group in re.findall(r"\d+", run[0])] == [3, 2, 4]
        dashed = shape is not None and [
            len(re.sub(r"\D", "", part)) for part in re.split(r"\s*[-_/]\s*", run[0])
        ] == [3, 2, 4]
        said = _SSN_SAID.search(text, max(0, run.start() - 60), run.start())
        if len(digits) == 9 and (grouped or dashed or said) and ssn(digits):
            yield run.span()


def _ninos(text: str) -> Iterator[tuple[int, int]]:
    for match in _NINO.finditer(text):
        if canonical("NATIONAL_ID", match[0])[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ"):
            yield match.span()


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for start in _IBAN_START.finditer(text):
        # From every start as many characters as its country's IBANs have; the next one may follow at once.
        length = IBAN_LENGTHS.get(_SEPARATORS.sub("", start[0])[:2].upper(), 0)
        shape = re.compile(rf"[a-z0-9](?:{_GAP}[a-z0-9]){{{max(length, 1) - 1}}}", re.IGNORECASE)
        found = shape.match(text, start.start())
        if found and iban(_SEPARATORS.sub("", found[0]).upper()):
            yield found.span()


def _ips(text: str) -> Iterator[tuple[int, int]]:
    for match in _IP.finditer(text):
        if not _VERSION.search(text, max(0, match.start() - 20), match.start()):
            yield match.span()


def _links(secret: bool) -> Callable[[str], Iterator[tuple[int, int]]]:
    def find(text: str) -> Iterator[tuple[int, int]]:
        for match in _URL.finditer(text):
            end = match.start() + len(match[0].rstrip(".,;:!?)'*~]"))
            if (_URL_SECRET.search(match[0]) is not None) == secret:
                yield match.start(), end

    return find


def _secrets(text: str) -> Iterator[tuple[int, int]]:
    for match in _SECRET.finditer(text):
        yield match.span()
    for match in _NAMED_SECRET.finditer(text):
        yield match.span(1)


def _wallets(text: str) -> Iterator[tuple[int, int]]:
    for match in _ETHEREUM.finditer(text):
        yield match.span()


def _counts(run: str) -> bool:
    """Whether numbers follow one another in steps of one: people count, phones do not."""
    numbers = [int(group) for group in re.findall(r"\d+", run)]
    return len(numbers) > 3 and all(b - a == 1 for a, b in pairwise(numbers))


def _phones(regions: tuple[str, ...]) -> Callable[[str], Iterator[tuple[int, int]]]:
    def valid(number: str) -> bool:
        for region in regions if not number.startswith("+") else (None,):
            try:
                if phonenumbers.is_valid_number(phonenumbers.parse(number, region)):
                    return True
            except phonenumbers.NumberParseException:
                continue
        return False

    def find(text: str) -> Iterator[tuple[int, int]]:
        # Numbers that nobody has, such as those of fiction, have the shape all the same.
        yield from (match.span() for match in _PHONE_SHAPE.finditer(text))
        for match in _PHONE_RUN.finditer(text):
            digits = _NOT_DIGITS.sub("", match[0])
            plus = match[0].lstrip(" (").startswith("+")
            said = _PHONE_SAID.search(text, max(0, match.start() - 40), match.start()) is not None
            separated = bool(re.search(r"\d[^\d]+\d", match[0]))
            # Ten digits in one piece are an order number as well; in pieces, or said to be one, a phone's.
            likely = (
                plus or said or (separated and len(digits) >= 9) or (digits[0] == "0" and len(digits) >= 10)
            )
            likely = (
                likely and (plus or len(digits) <= 11 or digits.startswith("00")) and not _counts(match[0])
            )
            if likely and not _DATE.fullmatch(match[0].strip()) and valid(("+" if plus else "") + digits):
                yield match.start() + len(match[0]) - len(match[0].lstrip()), match.end()

    return find


class _Presidio(LocalRecognizer):
    """One of Presidio's own, under our type, its weak findings left out."""

    def __init__(self, entity: str, inner: EntityRecognizer) -> None:
        self._inner = inner
        super().__init__(supported_entities=[entity], supported_language="en", name=f"Presidio {entity}")

    def load(self) -> None:
        """Nothing to load."""

    def analyze(
        self, text: str, entities: list[str], nlp_artifacts: NlpArtifacts | None = None
    ) -> list[RecognizerResult]:
        """See presidio_analyzer.EntityRecognizer."""
        entity = self.supported_entities[0]
        found = self._inner.analyze(text, self._inner.supported_entities, NO_MODEL)
        return [
            RecognizerResult(entity, hit.start, hit.end, hit.score)
            for hit in found
            if hit.score >= _LEAST[entity] and ":" in text[hit.start : hit.end] + ":" * (entity != "IP")
        ]


def recognisers(regions: tuple[str, ...]) -> list[LocalRecognizer]:
    """All recognisers that need no model.

    Args:
        regions: countries (ISO 3166) whose phone numbers are recognised without their prefix.
    """
    national = (
        UsSsnRecognizer, UsItinRecognizer, UkNinoRecognizer, InAadhaarRecognizer, InPanRecognizer, EsNifRecognizer,
        EsNieRecognizer, ItFiscalCodeRecognizer, FiPersonalIdentityCodeRecognizer, PlPeselRecognizer, SgFinRecognizer,
        KrRrnRecognizer,
    )  # fmt: skip
    return [
        _Ours("SECRET", _secrets),
        _Ours("URL_SECRET", _links(True)),
        _Ours("URL", _links(False)),
        _Ours("EMAIL", _emails),
        _Ours("IBAN", _ibans),
        _Ours("CARD", _cards),
        _Ours("NATIONAL_ID", _ssns),
        _Ours("NATIONAL_ID", _ninos),
        *(_Presidio("NATIONAL_ID", one(supported_language="en")) for one in national),
        _Ours("CRYPTO", _wallets),
        _Presidio("CRYPTO", CryptoRecognizer()),
        _Ours("IP", _ips),
        _Presidio("IP", IpRecognizer()),
        _Ours("PHONE", _phones(regions)),
    ]
