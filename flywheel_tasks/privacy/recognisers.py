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
from flywheel_tasks.privacy.number_patterns import cards, ibans, secrets, uk_numbers, us_numbers, wallets

# What Presidio's recognisers are given besides the text; patterns do not read it.
NO_MODEL = cast(NlpArtifacts, None)
# Presidio's score of a finding must be above this: "::" alone is an IP address of 0.1, nine digits an SSN of 0.05.
_LEAST = {"NATIONAL_ID": 0.45, "CRYPTO": 0.9, "IP": 0.5}

# One pass that most chat does not survive; whatever it lets go is looked at by all recognisers.
PREFILTER = re.compile(
    r"@|[:/]\s?/|\d(?:[^a-z0-9\n]{0,6}\d){5}|\d{1,3}(?:(?:[^a-z0-9\n]{1,6}|\s*\W?\s*dot\s*\W?\s*)\d{1,3}){3}"
    r"|[A-Za-z0-9+/_-]{20}|[(\[{<]\s*(?:at|dot)\s*[)\]}>]|\bdot\s+\w|[0-9a-f]{0,4}:[0-9a-f]{0,4}:"
    r"|[a-z]{5}\d{4}[a-z]|[a-z]{6}\d\d|[a-z]\w?\W{0,3}\d(?:[^a-z0-9\n]{0,3}\d){5}|xox|=|-----BEGIN",
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
