"""Identifiers of people in chat text, by Presidio's pattern recognisers.

Only recognisers of high-risk identifiers are used: those that a pattern or a check digit proves. Names,
places and dates are ordinary chat and no reason to drop a prompt.
"""

import spacy
import tldextract
from presidio_analyzer import AnalyzerEngine, EntityRecognizer, RecognizerRegistry
from presidio_analyzer.nlp_engine import SpacyNlpEngine
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer,
    CryptoRecognizer,
    EmailRecognizer,
    IbanRecognizer,
    IpRecognizer,
    PhoneRecognizer,
    UrlRecognizer,
    UsSsnRecognizer,
)
from spacy.language import Language

REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "IN", "BR", "CA", "AU")
# "::" alone is an IP address of score 0.1, and nine digits in a row a social security number of 0.05.
MIN_SCORE = 0.35


class _Blank(SpacyNlpEngine):
    """A blank tokenizer: the recognisers need no model, and none is downloaded."""

    def __init__(self) -> None:
        super().__init__()
        self.nlp: dict[str, Language] | None = {  # type: ignore[assignment]
            "en": spacy.blank("en")
        }


class _OfflineEmail(EmailRecognizer):
    """Checks the domain against the packaged list of suffixes; the default asks the network for another."""

    def validate_result(self, pattern_text: str) -> bool:
        """Does the address end in a public suffix?"""
        return bool(_SUFFIXES(pattern_text).top_domain_under_public_suffix)


_SUFFIXES = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


def _recognizers() -> list[EntityRecognizer]:
    # Addresses without a scheme are not used: "it.my" is a missing space in most chats, not a site.
    links = [pattern for pattern in UrlRecognizer.PATTERNS if "schema" not in pattern.name.lower()]
    return [
        _OfflineEmail(),
        PhoneRecognizer(supported_regions=REGIONS),
        CreditCardRecognizer(),
        IbanRecognizer(),
        IpRecognizer(),
        UrlRecognizer(patterns=links),
        CryptoRecognizer(),
        UsSsnRecognizer(),
    ]


class PrivacyFilter:
    """Finds identifiers; texts that were seen are remembered."""

    def __init__(self) -> None:
        self._engine = AnalyzerEngine(
            registry=RecognizerRegistry(recognizers=_recognizers()),
            nlp_engine=_Blank(),
            supported_languages=["en"],
            default_score_threshold=MIN_SCORE,
        )
        self._seen: dict[str, str | None] = {}

    def identifier(self, text: str) -> str | None:
        """The kind of the surest identifier in a text (``EMAIL_ADDRESS``, ``PHONE_NUMBER`` ...), or None."""
        if text not in self._seen:
            found = self._engine.analyze(text, language="en")
            best = min(found, key=lambda hit: (-hit.score, hit.entity_type), default=None)
            self._seen[text] = None if best is None else best.entity_type
        return self._seen[text]
