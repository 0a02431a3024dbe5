import pytest
import spacy

from flywheel_tasks.privacy.said import identifiers_said
from tests.privacy.conftest import SETTINGS


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Text me: 07911 123456", "PHONE"),
        ("My cell is 415.555.2671, call!", "PHONE"),
        ("reach me on +14155552671", "PHONE"),
        ("ssn 123 45 6789", "NATIONAL_ID"),
        ("de89370400440532013000 is my account", "IBAN"),
        ("2001:0db8:85a3:0000:0000:8a2e:0370:7334 is my box", "IP"),
        ("a@example.com", "EMAIL"),
        ("root@server.local", "EMAIL"),  # the outgoing scan alone sees it
    ],
)
def test_what_either_scan_sees_may_not_be_said(text, kind):
    fine = "We won 21-14, and [EMAIL_1] is mine."
    assert identifiers_said([text, fine, " "], SETTINGS) == {text: kind}
    kept = SETTINGS.model_copy(update={"policy": {**SETTINGS.policy, kind: "keep"}})
    assert identifiers_said([text], kept) == {}


def test_without_a_text_nothing_is_loaded():
    assert identifiers_said(["", "  "], SETTINGS.model_copy(update={"model": "xx_no_such_model"})) == {}


def test_characters_may_be_named(tmp_path):
    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns(
        [{"label": "PERSON", "pattern": n} for n in ("Mae", "Anna Berg")]
    )
    pipeline.to_disk(tmp_path / "names")
    settings = SETTINGS.model_copy(update={"model": str(tmp_path / "names")})
    assert identifiers_said(["Mae", "Anna Berg"], settings, ["Mae Winter"]) == {"Anna Berg": "NAME"}
