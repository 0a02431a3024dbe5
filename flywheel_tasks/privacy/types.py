"""The types of identifiers, and what a finding is."""

from collections.abc import Iterable
from typing import NamedTuple

# In the order in which they win where findings overlap: what does most harm, and what is surest, first.
TYPES = {
    "SECRET": "API keys, access tokens, private keys",
    "URL_SECRET": "links with a password, token or signature in them",
    "EMAIL": "e-mail addresses",
    "IBAN": "bank accounts (IBAN, by its checksum)",
    "CARD": "payment cards (by prefix, length and Luhn checksum)",
    "NATIONAL_ID": "national ids: US SSN and ITIN, UK NINO, and those of nine more countries",
    "CRYPTO": "addresses of crypto wallets",
    "URL": "other links",
    "IP": "IP addresses, version 4 and 6",
    "PHONE": "phone numbers",
    "ADDRESS": "street addresses; only with a model (privacy.model)",
    "NAME": "names of people; only with a model (privacy.model)",
}


class Finding(NamedTuple):
    """An identifier in a text.

    Attributes:
        start: offset of its first character in the text as it was given.
        end: offset after its last one.
        type: one of :data:`TYPES`.
        value: its canonical form, equal for all spellings of one identifier. Never written anywhere.
    """

    start: int
    end: int
    type: str
    value: str


def fictional(characters: Iterable[str]) -> frozenset[str]:
    """The values of findings that are names of characters, or parts of them."""
    return frozenset(part for name in characters for part in (name.lower(), *name.lower().split()))
