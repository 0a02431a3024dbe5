"""Where a person can be reached: e-mail addresses, IP addresses, links, phone numbers, in folded text."""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise

import phonenumbers
import tldextract

from flywheel_tasks.privacy.folding import fold
from flywheel_tasks.privacy.spelling import AT, DOT, IP_DOT, NOT_DIGITS, SAID_DOT, canonical

Spans = Iterator[tuple[int, int]]

_LOCAL = rf"[\w+%-](?:[\w.+%-]|{SAID_DOT}(?=\w)){{0,63}}"
# With "at" as a word, a dot must be said too: "look at this.my" is a missing space.
_EMAIL = re.compile(
    rf"(?<![\w@]){_LOCAL}(?:{AT}[\w-]+(?:{DOT}[\w-]+)+|\s+at\s+[\w-]+(?:{SAID_DOT}[\w-]+)+)", re.IGNORECASE
)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IP = re.compile(rf"(?<![\w.]){_OCTET}(?:{IP_DOT}{_OCTET}){{3}}(?![\w]|\.\d)", re.IGNORECASE)
_VERSION = re.compile(r"(?:\bv|version|release|build|firmware|section|chapter|patch)[\s:#]*$", re.IGNORECASE)
# "me...555", "Tel.555": a dot before a number is no decimal point behind a letter or another dot.
_PHONE_RUN = re.compile(
    r"(?:(?<![\w.,$€£])|(?<=[^\W\d_]\.)|(?<=\.\.))"
    r"(?:\+|\()?[ ]?\(?\d(?:[ .\-_/()*\u00b7\u2022]{0,3}\d){6,17}(?![\w%]|,\d)"
)
_PHONE_SHAPE = re.compile(
    r"(?<![\w+])\+\d{1,3}[ .-]{1,2}\(?\d{2,4}\)?(?:[ .-]{1,2}\d{2,4}){2,4}(?!\w)"
    r"|\(\d{3}\)[ .-]{0,2}\d{3}[ .-]\d{4}(?!\w)|(?<![\w-])(?<!\d\.)\d{3}[.-]\d{3}[.-]\d{4}(?![\w-])"
)
_PHONE_SAID = re.compile(
    r"\b(?:call|phone|tele?phone|tel|cell|mobile|whats\s?app|text\s+me|reach\s+me|ring|number|fax|sms|signal)\b",
    re.IGNORECASE,
)
_TELLING = (
    r"(?:access_?token|auth|api_?key|apikey|key|password|passwd|pwd|secret|session(?:_?id)?|sid|sig|signature|token|jwt"
    r"|x-amz-signature|code|refresh_?token)"
)
# All parts are bounded, so that every start costs a limited number of steps: a name's labels have 63 characters.
_URL = re.compile(
    r"\bh(?:tt|xx)ps?\s{0,2}:\s{0,2}//\s{0,2}[^\s<>\"]+|\bftp://[^\s<>\"]+"
    r"|(?<![\w@])(?:[\w-]{1,63}\.){1,20}[a-z]{2,63}(?::\d+)?/[^\s<>\"]{0,2000}"
    rf"[?&#]{_TELLING}=[^\s<>\"]{{6,}}",
    re.IGNORECASE,
)
_URL_SECRET = re.compile(rf"//[^/\s@][^/\s@:]*:[^/\s@]+@|[?&#]{_TELLING}=[^\s&]{{6,}}", re.IGNORECASE)
_DATE = re.compile(
    r"(?:19|20)\d\d[-./ ]\d{1,2}[-./ ]\d{1,2}(?:[ -]+\d{1,4})*|\d{1,2}[-./]\d{1,2}[-./](?:19|20)\d\d(?: \d{1,4})*"
)
# What begins with 0 and is no area: a decimal number, a date (or month and year) with more behind it.
_NO_AREA = re.compile(r"\(?(?:0\.|\d{1,2}[-./](?:\d{1,2}[-./])?(?:19|20)\d\d(?!\d))")
_LONGEST_NUMBER = 11  # digits, with neither a country's prefix nor the 0 before an area
_LONGEST_DOMAIN = 253  # characters (RFC 1035)


def _public_suffixes() -> tldextract.TLDExtract:
    """The packaged list (never the network), with suffixes also as folded text has them: the р of рф is Latin then."""
    listed = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    foreign = [suffix for suffix in listed.tlds if not suffix.isascii()]
    forms = {fold(form).text.lower() for suffix in foreign for form in (suffix, suffix.upper())}
    return tldextract.TLDExtract(
        suffix_list_urls=(), cache_dir=None, extra_suffixes=sorted(forms.difference(listed.tlds))
    )


_SUFFIXES = _public_suffixes()


def emails(text: str) -> Spans:
    """E-mail addresses whose domain exists as a kind of domain."""
    for match in _EMAIL.finditer(text):
        name, _, domain = canonical("EMAIL", match[0]).partition("@")
        end = match.end()
        dots = [dot.start() for dot in re.finditer(DOT, match[0], re.IGNORECASE)]
        # "anna@example.com dot" or "...com.Then": words that are no part of the domain are cut off.
        while "." in domain and (
            len(domain) > _LONGEST_DOMAIN or not _SUFFIXES(domain).top_domain_under_public_suffix
        ):
            domain = domain.rpartition(".")[0]
            end = match.start() + dots.pop()
        if name and "." in domain and _SUFFIXES(domain).top_domain_under_public_suffix:
            yield match.start(), end


def ip_addresses(text: str) -> Spans:
    """IP (4) addresses that are no version numbers."""
    for match in _IP.finditer(text):
        if not _VERSION.search(text, max(0, match.start() - 20), match.start()):
            yield match.span()


def links(secret: bool) -> Callable[[str], Spans]:
    """Finds links, those that carry a secret or the others."""

    def find(text: str) -> Spans:
        for match in _URL.finditer(text):
            end = match.start() + len(match[0].rstrip(".,;:!?)'*~]"))
            if (_URL_SECRET.search(match[0]) is not None) == secret:
                yield match.start(), end

    return find


def _counts(run: str) -> bool:
    """Whether numbers follow one another in steps of one: people count, phones do not."""
    numbers = [int(group) for group in re.findall(r"\d+", run)]
    return len(numbers) > 3 and all(b - a == 1 for a, b in pairwise(numbers))


def _likely(run: str, said: bool) -> bool:
    """Whether digits are written as those of a phone are.

    Args:
        run: digits and what separates them, from the first sign to the last digit.
        said: whether a phone was spoken of before.
    """
    if run.lstrip(" (").startswith("+"):
        return not _counts(run)
    digits, groups = NOT_DIGITS.sub("", run), re.findall(r"\d+", run)
    # Ten digits in one piece are an order number as well; in pieces, or said to be one, a phone's.
    likely = said or (len(groups) > 1 and len(digits) >= 9) or (digits[0] == "0" and len(digits) >= 10)
    if len(digits) > _LONGEST_NUMBER and not digits.startswith("00"):
        # "0151 23456789" is one, pairs ("05 10 15 20 25 30") are draws and scores.
        area = digits[0] == "0" and len(digits) == _LONGEST_NUMBER + 1 and not _NO_AREA.match(run)
        likely = likely and area and (said or max(map(len, groups)) > 2)
    return likely and not _counts(run) and not _DATE.fullmatch(run)


def phones(regions: tuple[str, ...]) -> Callable[[str], Spans]:
    """Finds phone numbers.

    Args:
        regions: countries (ISO 3166) whose numbers are recognised without their prefix.
    """

    def valid(number: str, mobile: bool) -> bool:
        for region in regions if not number.startswith("+") else (None,):
            try:
                parsed = phonenumbers.parse(number, region)
            except phonenumbers.NumberParseException:
                continue
            if phonenumbers.is_valid_number(parsed) and (
                not mobile or phonenumbers.number_type(parsed) == phonenumbers.PhoneNumberType.MOBILE
            ):
                return True
        return False

    def find(text: str) -> Spans:
        # Numbers that nobody has, such as those of fiction, have the shape all the same.
        yield from (match.span() for match in _PHONE_SHAPE.finditer(text))
        for match in _PHONE_RUN.finditer(text):
            run = match[0].lstrip()
            said = _PHONE_SAID.search(text, max(0, match.start() - 40), match.start()) is not None
            if not _likely(run, said):
                continue
            number = "+" * run.lstrip(" (").startswith("+") + NOT_DIGITS.sub("", run)
            # Twelve digits are a bar code or dates as well, and nearly all of them a number in some German town.
            mobile = not said and number[0] == "0" and number[1] != "0"
            if valid(number, mobile=mobile and len(number) > _LONGEST_NUMBER):
                yield match.end() - len(run), match.end()

    return find
