import socket

import pytest

from flywheel_tasks.curation.privacy import PrivacyFilter
from flywheel_tasks.simulation.population import bank


@pytest.fixture(scope="module")
def identifiers():
    return PrivacyFilter()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("You can write to me at anna7@example.com if this breaks.", "EMAIL_ADDRESS"),
        ("Call me on +1 212 555 0142 when you know more.", "PHONE_NUMBER"),
        ("My number is 0171 1234567.", "PHONE_NUMBER"),
        ("My card is 4111 1111 1111 1111, is that safe here?", "CREDIT_CARD"),
        ("Send it to DE89370400440532013000.", "IBAN_CODE"),
        ("The router is 192.168.2.4.", "IP_ADDRESS"),
        ("My site is https://www.example.org/~u7, have a look.", "URL"),
        ("My number is 536-22-8745.", "US_SSN"),
    ],
)
def test_identifiers_are_found(identifiers, text, kind):
    assert identifiers.identifier(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        "My name is Anna Berg, I live in Paris and was born in 1990.",
        "See you on Monday at 12:30 :: ok?",
        "ok.so what now, I like it.my cat does too",
        "It cost 1,000,000 dollars, or 20 30 40.",
        "Write to anna at example.",
        "Version 1.2.3 came on 2026-11-02.",
    ],
)
def test_ordinary_chat_is_not_private(identifiers, text):
    assert identifiers.identifier(text) is None


def test_nothing_in_the_written_bank_is_an_identifier(identifiers):
    lines = [line for topic in bank()["topics"].values() for kind in topic.values() for line in kind]
    lines += [*bank()["probes"], *bank()["farewells"], *bank()["annoyed"], *bank()["pleased"]]
    assert [line for line in lines if identifiers.identifier(line)] == []


def test_the_network_is_never_asked(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert PrivacyFilter().identifier("a new domain: kit@cafe.example.museum") == "EMAIL_ADDRESS"
