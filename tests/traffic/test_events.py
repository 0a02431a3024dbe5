from datetime import UTC, datetime

import orjson
import pytest

from flywheel_tasks.traffic.events import RULES, TABLE_OF, EventError, parse_line
from flywheel_tasks.traffic.schemas import TABLES
from tests.traffic.sample import card, events, line, message, signal


def without(event: dict, *fields: str) -> dict:
    return {name: value for name, value in event.items() if name not in fields}


@pytest.mark.parametrize("event", events(), ids=lambda event: event["event_id"])
def test_good_events_become_rows_with_exactly_the_tables_columns(event):
    parsed = parse_line(line(event))
    assert parsed.type == event["type"]
    assert list(parsed.row) == TABLES[TABLE_OF[event["type"]]].names
    assert parsed.unknown == ()


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "empty_line"),
        (b"  \r\n", "empty_line"),
        (b"{nonsense", "not_json"),
        (b'{"a": NaN}', "not_json"),
        (b'"\xff"', "not_json"),
        (b'{"text": "\\ud800"}', "not_json"),
        (b"[1, 2]", "not_object"),
        (b"[" * 900 + b"]" * 900, "not_object"),
        (line(without(card(), "type")), "missing_field"),
        (line(without(card(), "name", "traits")), "missing_field"),
        (line(card(type=3)), "wrong_type"),
        (line(card(type="cart")), "unknown_type"),
        (line(card(traits="dry humour")), "wrong_type"),
        (line(card(traits=["a", 1])), "wrong_type"),
        (line(card(traits=None)), "wrong_type"),
        (line(card(card_id="")), "empty_field"),
        (line(card(greeting=["Hi"])), "wrong_type"),
        (line(message(1, "user", None, text=None)), "wrong_type"),
        (line(message(1, "user", None, text=7)), "wrong_type"),
        (line(message(1, "system", None)), "unknown_role"),
        (line(message(1, "user", None, source="staff")), "unknown_source"),
        (line(signal(1, 2, signal="thumbs_up")), "unknown_signal"),
        (line(signal(1, 2, value=True)), "wrong_type"),
        (line(card(time=1762077600)), "wrong_type"),
        (line(card(time="yesterday")), "bad_time"),
        (line(card(time="2026-11-02T10:00:00")), "bad_time"),
        (line(card(time="2026-02-30T10:00:00Z")), "bad_time"),
        (line(card(time="0001-01-01T00:00:00+10:00")), "bad_time"),
    ],
)
def test_a_broken_line_names_its_rule(data, rule):
    with pytest.raises(EventError) as caught:
        parse_line(data)
    assert caught.value.rule == rule
    assert rule in RULES
    assert caught.value.detail


def test_the_detail_names_field_and_value():
    with pytest.raises(EventError, match='signal "thumbs_up" is none of continue, thumb_up'):
        parse_line(line(signal(1, 2, signal="thumbs_up")))


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (line(message(1, "user", None, text=["said it"])), "text must be a string, not an array"),
        (
            line(message(1, "what they said", None)),
            "role a string of 14 characters is none of user, assistant",
        ),
        (line(card(time="said at noon")), "time a string of 12 characters is no ISO 8601 time"),
        (line(card(time="2026-11-02T10:00:00")), 'time "2026-11-02T10:00:00" has no time zone'),
        (b'"said it"', "found a string of 7 characters"),
        (b'{"said": it}', "unexpected character, expected a JSON value at column 10"),
    ],
)
def test_the_detail_quotes_no_sentence_and_no_line_of_the_parser(data, detail):
    with pytest.raises(EventError) as caught:
        parse_line(data)
    assert caught.value.detail == detail


def test_any_time_zone_is_read_as_utc():
    assert parse_line(line(card(time="2026-11-02T12:30:00.25+02:00"))).row["time"] == datetime(
        2026, 11, 2, 10, 30, 0, 250000, UTC
    )


def test_nullable_fields_may_be_absent():
    row = parse_line(line(without(message(1, "user", None), "parent_id", "model"))).row
    assert row["parent_id"] is None
    assert row["model"] is None
    assert parse_line(line(card())).row["greeting"] is None


def test_unknown_fields_are_named_and_left_out():
    parsed = parse_line(orjson.dumps(card(zodiac="libra", colour=None)))
    assert parsed.unknown == ("zodiac",)  # a null says nothing
    assert "zodiac" not in parsed.row
