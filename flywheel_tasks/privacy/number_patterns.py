"""Numbers that somebody was given: cards, accounts, national ids, wallets, keys, in folded text."""

import re
from collections.abc import Iterator

from flywheel_tasks.privacy.checksums import IBAN_LENGTHS, card, iban, ssn
from flywheel_tasks.privacy.spelling import GAP, NOT_DIGITS, SEPARATORS, canonical

Spans = Iterator[tuple[int, int]]

_DIGIT_RUN = re.compile(rf"(?<![\w])\d(?:{GAP}\d){{8,40}}(?!\w)")
_IBAN_START = re.compile(rf"(?<![a-z0-9])[a-z]{{2}}{GAP}\d{GAP}\d", re.IGNORECASE)
_NINO = re.compile(
    rf"(?<![a-z0-9])[a-ceghj-pr-tw-z]{GAP}[a-ceghj-npr-tw-z](?:{GAP}\d){{6}}{GAP}[a-d](?![a-z0-9])",
    re.IGNORECASE,
)
_SSN_SAID = re.compile(r"\b(?:ssn|social\s+security|itin)\b", re.IGNORECASE)
# What a start may look through in vain is bounded, so that many starts in one long word are no square.
_SECRET = re.compile(
    r"\b(?:sk|pk|rk)[-_](?:live|test|proj|ant|or)?[-_]?[A-Za-z0-9_-]{20,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{40,}"
    r"|\bglpat-[A-Za-z0-9_-]{20,}|\bxox[abprs]-[\w-]{10,}|\bAIza[A-Za-z0-9_-]{35}|\bhf_[A-Za-z0-9]{30,}"
    r"|\bnpm_[A-Za-z0-9]{36}|\beyJ[\w-]{8,4000}\.eyJ[\w-]{8,}\.[\w-]{8,}|\bSG\.[\w-]{16,}\.[\w-]{16,}"
    # With its body, which is the secret; a cut one goes on to the end of the text.
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*-----|\Z)"
)
NAMED_SECRET = re.compile(
    r"\b(?:api[ _-]?key|access[ _-]?token|secret[ _-]?key|bearer)\b[\s:=]*(?:is\s+)?((?=[\w-]{0,400}\d)[\w-]{16,})",
    re.IGNORECASE,
)
_ETHEREUM = re.compile(r"\b0x[0-9a-fA-F]{40}\b")


def cards(text: str) -> Spans:
    """The stretches of runs of digits that are cards, from the start of a group to the end of one."""
    for run in _DIGIT_RUN.finditer(text):
        groups = [match.span() for match in re.finditer(r"\d+", run[0])]
        first = 0
        while first < len(groups):
            for last in range(len(groups) - 1, first - 1, -1):
                start, end = run.start() + groups[first][0], run.start() + groups[last][1]
                digits = NOT_DIGITS.sub("", text[start:end])
                if 13 <= len(digits) <= 19 and card(digits):
                    yield start, end
                    first = last
                    break
            first += 1


def us_numbers(text: str) -> Spans:
    """Social security and taxpayer numbers of the United States."""
    for run in _DIGIT_RUN.finditer(text):
        digits = NOT_DIGITS.sub("", run[0])
        shape = re.fullmatch(r"(?:\d\W?){3}[\W_]+(?:\d\W?){2}[\W_]*(?:\d\W?){4}", run[0])
        grouped = [len(group) for group in re.findall(r"\d+", run[0])] == [3, 2, 4]
        dashed = shape is not None and [
            len(re.sub(r"\D", "", part)) for part in re.split(r"\s*[-_/]\s*", run[0])
        ] == [3, 2, 4]
        said = _SSN_SAID.search(text, max(0, run.start() - 60), run.start())
        if len(digits) == 9 and (grouped or dashed or said) and ssn(digits):
            yield run.span()


def uk_numbers(text: str) -> Spans:
    """National insurance numbers of the United Kingdom."""
    for match in _NINO.finditer(text):
        if canonical("NATIONAL_ID", match[0])[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ"):
            yield match.span()


def ibans(text: str) -> Spans:
    """Bank accounts (IBAN) with the length of their country and the right remainder."""
    for start in _IBAN_START.finditer(text):
        # From every start as many characters as its country's IBANs have; the next one may follow at once.
        length = IBAN_LENGTHS.get(SEPARATORS.sub("", start[0])[:2].upper(), 0)
        shape = re.compile(rf"[a-z0-9](?:{GAP}[a-z0-9]){{{max(length, 1) - 1}}}", re.IGNORECASE)
        found = shape.match(text, start.start())
        plain = SEPARATORS.sub("", found[0]).upper() if found else ""
        # Every bank numbers its accounts: with fewer digits it is a time among words ("at 10 in the morning").
        if found and len(NOT_DIGITS.sub("", plain)) >= 6 and iban(plain):
            yield found.span()


def secrets(text: str) -> Spans:
    """API keys, tokens and private keys."""
    for match in _SECRET.finditer(text):
        yield match.span()
    for match in NAMED_SECRET.finditer(text):
        yield match.span(1)


def wallets(text: str) -> Spans:
    """Ethereum addresses."""
    for match in _ETHEREUM.finditer(text):
        yield match.span()
