"""Presidio recognisers: its own for ids with fixed shapes, and ours for numbers and addresses written to be missed.

All see folded text (:mod:`flywheel_tasks.privacy.folding`). What ours add to Presidio's: separators between digits
(spaces, dots, dashes, slashes), ``(at)`` and ``[dot]``, lower-case IBANs, secrets, and links that carry one.
"""

import re
from collections.abc import Callable, Iterator
from typing import cast

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

from flywheel_tasks.privacy.contact_patterns import emails, ip_addresses, links, phones
from flywheel_tasks.privacy.number_patterns import (
    NAMED_SECRET,
    cards,
    ibans,
    secrets,
    uk_numbers,
    us_numbers,
    wallets,
)
from flywheel_tasks.privacy.spelling import GAP

# What Presidio's recognisers are given besides the text; patterns do not read it.
NO_MODEL = cast(NlpArtifacts, None)
# Presidio's score of a finding must be above this: "::" alone is an IP address of 0.1, nine digits an SSN of 0.05.
_LEAST = {"NATIONAL_ID": 0.45, "CRYPTO": 0.9, "IP": 0.5}

# One pass in which most chat ends; a text with a match is looked at by all recognisers. What one of them could find
# must match here, so each part is the loosest form of some rules, or a rule as it is.
PREFILTER = re.compile(
    # links and addresses, as they are and said: "anna at example[.]com", "1 dot 2 dot 3 dot 4"
    r"@|[:/]\s?/|=|[(\[{<]\s*(?:at|dot|\.)\s*[)\]}>]|\bdot\s+[\w-]"
    r"|\d(?:\s{0,2}\.\s{0,2}\d{1,3}){3}|[0-9a-f]{0,4}:[0-9a-f]{0,4}:"
    # six digits: phones, cards, most national ids
    r"|\d(?:[^a-z0-9\n]{0,6}\d){5}"
    # accounts, whose digits may have letters between them
    rf"|(?<![a-z0-9])[a-z]{{2}}{GAP}\d{GAP}\d(?:(?:{GAP}[a-z]){{0,28}}{GAP}\d){{4}}"
    # India's tax numbers and Italy's, in which letters may stand for digits
    r"|[a-z]{5}\d{4}[a-z]|[a-z]{6}[\dl-np-v]{2}[a-eh-mpr-t][\dl-np-v]{2}[a-z][\dl-np-v]{3}[a-z]"
    # wallets and keys
    r"|[A-Za-z0-9+/_-]{20}|xox|-----BEGIN|\beyj[\w-]{8,}\.eyj|\bsg\.[\w-]{16}|" + NAMED_SECRET.pattern,
    re.IGNORECASE,
)


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
        _Ours("SECRET", secrets),
        _Ours("URL_SECRET", links(True)),
        _Ours("URL", links(False)),
        _Ours("EMAIL", emails),
        _Ours("IBAN", ibans),
        _Ours("CARD", cards),
        _Ours("NATIONAL_ID", us_numbers),
        _Ours("NATIONAL_ID", uk_numbers),
        *(_Presidio("NATIONAL_ID", one(supported_language="en")) for one in national),
        _Ours("CRYPTO", wallets),
        _Presidio("CRYPTO", CryptoRecognizer()),
        _Ours("IP", ip_addresses),
        _Presidio("IP", IpRecognizer()),
        _Ours("PHONE", phones(regions)),
    ]
