import socket

import phonenumbers
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.privacy.detector import Detector
from flywheel_tasks.privacy.folding import fold
from flywheel_tasks.privacy.model import ModelError
from flywheel_tasks.privacy.types import TYPES
from flywheel_tasks.settings import IDENTIFIERS
from flywheel_tasks.simulation.population import bank
from tests.privacy.conftest import SETTINGS


def test_the_settings_name_the_types_there_are():
    assert set(IDENTIFIERS) == set(TYPES)


PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIICXAIBAAKBgQC7VJTUt9Us8cKj\nMzEfYyjiWA4R4\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("Write to anna7@example.com if this breaks.", "EMAIL", "anna7@example.com"),
        ("anna (at) example [dot] com", "EMAIL", "anna (at) example [dot] com"),
        ("it is anna at example dot co dot uk, ok", "EMAIL", "anna at example dot co dot uk"),
        ("anna at example[.]com", "EMAIL", "anna at example[.]com"),
        ("mail аnnа@ехаmple.com now", "EMAIL", "аnnа@ехаmple.com"),
        ("пиши на ivan@почта.рф.", "EMAIL", "ivan@почта.рф"),
        ("это иван.петров@яндекс.рф, да", "EMAIL", "иван.петров@яндекс.рф"),
        ("ПИШИ НА ИВАН@ПОЧТА.РФ", "EMAIL", "ИВАН@ПОЧТА.РФ"),
        ("A@ΣΠΙΤΙ.ΕΛ", "EMAIL", "A@ΣΠΙΤΙ.ΕΛ"),
        ("用户@例子.公司 ok", "EMAIL", "用户@例子.公司"),
        ("I am at 0151 23456789, ok?", "PHONE", "0151 23456789"),
        ("(0151) 23456789", "PHONE", "(0151) 23456789"),
        ("0151-23456789", "PHONE", "0151-23456789"),
        ("0151/23 45 67 89", "PHONE", "0151/23 45 67 89"),
        ("01511 2345678", "PHONE", "01511 2345678"),
        ("015123456789", "PHONE", "015123456789"),
        ("0 11 91234-5678", "PHONE", "0 11 91234-5678"),
        ("call 0 1 5 1 2 3 4 5 6 7 8 9", "PHONE", "0 1 5 1 2 3 4 5 6 7 8 9"),
        ("Call +1 212 555 0142 when you know more.", "PHONE", "+1 212 555 0142"),
        ("call me...555-123-4567", "PHONE", "555-123-4567"),
        ("ring me..0171 1234567", "PHONE", "0171 1234567"),
        ("Tel.0171 1234567", "PHONE", "0171 1234567"),
        ("My number is 0171 1234567.", "PHONE", "0171 1234567"),
        ("(212) 555-0142 works", "PHONE", "(212) 555-0142"),
        ("call 2 1 2 5 5 5 0 1 4 2", "PHONE", "2 1 2 5 5 5 0 1 4 2"),
        ("since 2024 4111-1111-1111-1111 12/27", "CARD", "4111-1111-1111-1111"),
        ("4.1.1.1-1111 1111/1111", "CARD", "4.1.1.1-1111 1111/1111"),
        ("４１１１ １１１１ １１１１ １１１１", "CARD", "４１１１ １１１１ １１１１ １１１１"),
        ("4111\u200b1111\u200b1111\u200b1111!", "CARD", "4111\u200b1111\u200b1111\u200b1111"),
        ("to de89 3704 0044 0532 0130 00 thanks", "IBAN", "de89 3704 0044 0532 0130 00"),
        ("GB29-NWBK-6016-1331-9268-19", "IBAN", "GB29-NWBK-6016-1331-9268-19"),
        ("The router is 192.168.2.4.", "IP", "192.168.2.4"),
        ("it is 192[.]168[.]2[.]4", "IP", "192[.]168[.]2[.]4"),
        ("at fe80::1ff:fe23:4567:890a ok", "IP", "fe80::1ff:fe23:4567:890a"),
        ("My site is https://www.example.org/~u7, look.", "URL", "https://www.example.org/~u7"),
        ("https://bob:hunter2@host.example/x", "URL_SECRET", "https://bob:hunter2@host.example/x"),
        ("see x.com/?a=1&token=abcdef123456", "URL_SECRET", "x.com/?a=1&token=abcdef123456"),
        ("My number is 536-22-8745.", "NATIONAL_ID", "536-22-8745"),
        ("my ssn: 536228745", "NATIONAL_ID", "536228745"),
        ("ab-12-34-56-c", "NATIONAL_ID", "ab-12-34-56-c"),
        ("pesel 44051401359", "NATIONAL_ID", "44051401359"),
        ("0x52908400098527886E0F7030069857D2E4169EE7", "CRYPTO", "0x52908400098527886E0F7030069857D2E4169EE7"),
        ("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "CRYPTO", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
        (f"mine: {PEM} ok?", "SECRET", PEM),
        (f"mine: {PEM[:60]}", "SECRET", PEM[:60]),
        ("-----BEGIN PRIVATE KEY-----\nMC4C", "SECRET", "-----BEGIN PRIVATE KEY-----\nMC4C"),
        ("AKIAIOSFODNN7EXAMPLE", "SECRET", "AKIAIOSFODNN7EXAMPLE"),
        ("api key is abcd1234efgh5678ijkl", "SECRET", "abcd1234efgh5678ijkl"),
        ("api key: 9f3a7b2c1d8e4f6a", "SECRET", "9f3a7b2c1d8e4f6a"),
        ("SG.0123456789abcdef.0123456789abcdef", "SECRET", "SG.0123456789abcdef.0123456789abcdef"),
        ("eyJhbGciOiJ.eyJzdWIiOiI.c2lnbmF0", "SECRET", "eyJhbGciOiJ.eyJzdWIiOiI.c2lnbmF0"),
        ("it is 192.\n168.2.\n4", "IP", "192.\n168.2.\n4"),
        ("mt 64 malt 0 mt malt 1 mt malt 2 malt 4 mt m", "IBAN", "mt 64 malt 0 mt malt 1 mt malt 2 malt 4 mt m"),
    ],
)  # fmt: skip
def test_identifiers_are_found_where_they_are(detector, text, kind, found):
    assert [(hit.type, text[hit.start : hit.end]) for hit in detector.find(text)] == [(kind, found)]


@pytest.mark.parametrize(
    "text",
    [
        "My name is Anna Berg, I live in Paris and was born in 1990.",
        "See you on Monday at 12:30 :: ok?",
        "ok.so what now, I like it.my cat does too",
        "look at this.my cat is on the table",
        "It cost 1,000,000 dollars, or 20 30 40.",
        "Write to anna at example.",
        "Version 1.2.3 came on 2026-11-02, version 1.2.3.4 after it.",
        "We won 21-14, 28-3 and 17-10.",
        "1 2 3 4 5 6 7 8 9 10, here I come!",
        "1️⃣2️⃣ 👨‍👩‍👧 🎉🎉🎉",
        "pi is 3.14159265358979",
        "x = 1, at 98 in the morning with me",  # the length and the remainder of an Austrian account
        "so 12.555-123-4567 it is, and .0421234567 of it",
        "05 10 15 20 25 30, or 0-1 1-1 2-1 2-2 3-2 3-3",
        "01.02.2026 12.30, and 02/2026 - 03/2026",
        "0.25 0.50 0.75 0.100",
        "bar code 036000291452",
        "05/03/24 120-130",
        "05-03-24 120-130",
        "09.30 - 10.15 / 2024",
        "0800 1200 1600",
    ],
)
def test_ordinary_chat_is_left_alone(detector, text):
    assert detector.find(text) == []


@pytest.mark.parametrize(
    "top",
    [
        "рф",
        "рус",
        "укр",
        "бел",
        "срб",
        "мкд",
        "қаз",
        "бг",
        "ею",
        "мон",
        "орг",
        "ком",
        "москва",
        "дети",
        "ελ",
        "ευ",
        "ไทย",
        "中国",
        "한국",
    ],
)
def test_domains_of_all_scripts_are_known_after_folding(detector, top):
    for address in (f"ab@cd.{top}", f"AB@CD.{top.upper()}"):
        assert [address[hit.start : hit.end] for hit in detector.find(address)] == [address]


@pytest.mark.parametrize("region", SETTINGS.phone_regions)
def test_mobile_numbers_are_found_as_every_region_writes_them(detector, region):
    number = phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE)
    text = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    for shown in (text, text.replace(" ", "-"), text.replace(" ", "/")):
        assert [shown[hit.start : hit.end] for hit in detector.find(shown)] == [shown]


def test_spellings_of_one_identifier_have_one_value(detector):
    spellings = ["Anna@Example.com", "anna (at) example.com", "ANNA at example dot com"]
    assert {hit.value for text in spellings for hit in detector.find(text)} == {"anna@example.com"}


def test_nothing_in_the_written_bank_is_an_identifier(detector):
    lines = [line for topic in bank()["topics"].values() for kind in topic.values() for line in kind]
    lines += [*bank()["probes"], *bank()["farewells"], *bank()["annoyed"], *bank()["pleased"]]
    assert [line for line in lines if detector.find(line)] == []


def test_the_network_is_never_asked(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert Detector(SETTINGS).find("a new domain: kit@cafe.example.museum")[0].type == "EMAIL"


@given(st.text())
def test_folding_keeps_offsets(text):
    folded = fold(text)
    assert folded.origin is None or len(folded.origin) == len(folded.text)
    for offset in range(len(folded.text)):
        start, end = folded.span(offset, offset + 1)
        assert end == start + 1
        assert fold(text[start:end]).text.count(folded.text[offset]) >= 1


PIECES = ["anna@example.com", "4111 1111 1111 1111", "+1 212 555 0142", "ok", "é", "😀", "9", ".", "(at)"]


@given(st.lists(st.sampled_from(PIECES)))
def test_findings_lie_in_the_text_without_overlaps(detector, pieces):
    text = " ".join(pieces)
    hits = detector.find(text)
    edges = [edge for hit in hits for edge in (hit.start, hit.end)]
    assert edges == sorted(edges)
    assert all(0 <= hit.start < hit.end <= len(text) for hit in hits)


def test_a_model_finds_names_and_addresses(tmp_path):
    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns(
        [{"label": "PERSON", "pattern": "Anna Berg"}, {"label": "STREET", "pattern": "7 Elm Road"}]
    )
    pipeline.to_disk(tmp_path / "names")
    detector = Detector(SETTINGS.model_copy(update={"model": str(tmp_path / "names")}))
    text = "Anna Berg lives in 7 Elm Road, anna@example.com"
    assert [(hit.type, text[hit.start : hit.end]) for hit in detector.find(text)] == [
        ("NAME", "Anna Berg"),
        ("ADDRESS", "7 Elm Road"),
        ("EMAIL", "anna@example.com"),
    ]


def test_a_model_that_is_missing_or_of_no_use_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="no spaCy pipeline xx_no_such_model"):
        Detector(SETTINGS.model_copy(update={"model": "xx_no_such_model"}))
    with pytest.raises(ModelError, match="cannot be loaded as a token classifier"):
        Detector(SETTINGS.model_copy(update={"model": "no-one/no-such-model"}))
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ModelError, match="no names and no addresses"):
        Detector(SETTINGS.model_copy(update={"model": str(tmp_path / "blank")}))
