"""A text in which a rule finds something passes the expression that goes before all rules."""

import re
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel_tasks.privacy import contact_patterns, number_patterns, outgoing
from flywheel_tasks.privacy.folding import fold
from flywheel_tasks.privacy.recognisers import NO_MODEL, PREFILTER, recognisers
from tests.privacy.conftest import SETTINGS

# Parts of rules, which find nothing by themselves; the accounts' rule is tried as a whole below.
PARTS = {"_SSN_SAID", "_IBAN_START", "_VERSION", "_PHONE_SAID", "_URL_SECRET", "_DATE", "_NO_AREA"}
RULES = {
    name: rule
    for module in (contact_patterns, number_patterns)
    for name, rule in vars(module).items()
    if isinstance(rule, re.Pattern) and rule.pattern not in (r"\D", r"[\s.\-_/*\u00b7\u2022]")
}
RECOGNISERS = recognisers(SETTINGS.phone_regions)
PRESIDIO = [one for one in RECOGNISERS if one.name.startswith("Presidio")]
LOOSE = settings(
    max_examples=40, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow], deadline=None
)

IDENTIFIERS = [
    "anna@example.com", "anna at example.com", "192.168.2.4", "+1 212 555 0142", "+32-47-12-34-56-78",
    "(212) 555-0142", "call 2125550142", "41-11-11-11-11-11-11-11", "4111 1111 1111 1111", "30-56-93-09-02-59-04",
    "DE89370400440532013000", "MT84MALT011000012345MTLCAST001S", "NO9386011117947", "RO49AAAA1B31007593840000",
    "MT64MALT0MTMALT1MTMALT2MALT4MTM", "AT98INTHEMORNINGWITH", "536-22-8745", "ssn 536228745", "AB123456C",
    "ABCPE1234F", "X1234567L", "12345678Z", "RSSMRA85T10A562S", "RSSMRAURTMLARSNL", "131052-308T", "44051401359",
    "S1234567D", "fe80::1ff:fe23:4567:890a", "::ffff:10.0.0.12", "https://x.org/a", "hxxps://bob:pw@x.org",
    "x.org/?key=abcdef1", "0x52908400098527886E0F7030069857D2E4169EE7", "0xabcdefabcdefabcdefabcdefabcdefabcdefabcd",
    "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "api key: 9f3a7b2c1d8e4f6a", "bearer ab-cd-ef-gh-ij-k1",
    "SG.0123456789abcdef.0123456789abcdef", "eyJhbGciOiJ.eyJzdWIiOiI.c2lnbmF0", "xoxb-0123456789",
    "AKIAIOSFODNN7EXAMPLE", "sk-proj-" + "aB3" * 12, "-----BEGIN RSA PRIVATE KEY-----",
]  # fmt: skip
SAID = {
    ".": [".", " . ", "[.]", " dot ", "( dot )", "  [  .  ]  ", " .\n"],
    "@": ["@", " @ ", "(at)", " at ", "[ @ ]"],
}
GAPS = ["", "", "", " ", "-", ".", " / ", "_", "\n", "..."]


@st.composite
def disguised(draw):
    """Identifiers with signs between their characters, dots and ats said, in any case."""
    parts = []
    for text in draw(st.lists(st.sampled_from(IDENTIFIERS), min_size=1, max_size=2)):
        spoken = {mark: draw(st.sampled_from(forms)) for mark, forms in SAID.items()}
        gap, often = draw(st.sampled_from(GAPS)), draw(st.sampled_from([1, 2, 4, 64]))
        shown = [
            spoken.get(sign, sign) + gap * (at % often == often - 1 and sign in string.hexdigits)
            for at, sign in enumerate(text)
        ]
        parts.append(draw(st.sampled_from([str, str.lower, str.upper]))("".join(shown)))
    return draw(st.sampled_from([" ", "\n", ", "])).join(parts)


def test_every_part_is_one():
    assert set(RULES) > PARTS


@pytest.mark.parametrize("name", sorted(set(RULES) - PARTS))
def test_what_a_rule_matches_passes(name):
    @LOOSE
    @given(st.from_regex(RULES[name]))
    def holds(text):
        plain = fold(text).text
        assert RULES[name].search(plain) is None or PREFILTER.search(plain)

    holds()


@pytest.mark.parametrize("one", PRESIDIO, ids=lambda one: type(one._inner).__name__)
def test_what_a_recogniser_of_presidio_finds_passes(one):
    shapes = [re.compile(shape.regex, re.I | re.S | re.M) for shape in one._inner.patterns]

    @LOOSE
    @given(st.one_of(*map(st.from_regex, shapes)))
    def holds(text):
        plain = fold(text).text
        assert PREFILTER.search(plain) or not one.analyze(plain, one.supported_entities, NO_MODEL)

    holds()


@settings(max_examples=150, deadline=None)
@given(disguised())
def test_what_any_recogniser_finds_passes(text):
    plain = fold(text).text
    if PREFILTER.search(plain) is None:
        assert not [one.name for one in RECOGNISERS if one.analyze(plain, one.supported_entities, NO_MODEL)]


@pytest.mark.parametrize("number", range(len(outgoing._RULES)))
def test_what_a_rule_of_the_outgoing_scan_matches_is_possible(number):
    kind, rule, _ = outgoing._COMPILED[number]

    @LOOSE
    @given(st.from_regex(rule))
    def holds(text):
        plain = outgoing._normal(text)
        assert rule.search(plain) is None or outgoing._POSSIBLE.search(plain), kind

    holds()


@settings(max_examples=150, deadline=None)
@given(disguised())
def test_what_the_outgoing_scan_finds_is_possible(text):
    plain = outgoing._normal(text)
    if outgoing._POSSIBLE.search(plain) is None:
        assert not [
            kind for kind, rule, holds in outgoing._COMPILED for m in rule.finditer(plain) if holds(m[0])
        ]


@pytest.mark.parametrize(
    "text", ["ok 😀 see you at ten", "Room 12 is on the left, at 10 in the morning", "we won 21-14"]
)
def test_most_chat_ends_here(text):
    assert PREFILTER.search(text) is None
