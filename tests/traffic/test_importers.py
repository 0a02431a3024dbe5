import gzip
from codecs import BOM_UTF8
from datetime import date

import orjson
import pytest

from flywheel_tasks.annotation.schemas import PAIRS
from flywheel_tasks.storage.tables import write_rows
from flywheel_tasks.traffic.events import parse_event
from flywheel_tasks.traffic.identity import DEMO_KEY, Identity, UserKey
from flywheel_tasks.traffic.importers import (
    ImportFormatError,
    read_hh_rlhf,
    read_persona_chat,
    read_rpbench,
    write_partitions,
)
from flywheel_tasks.traffic.logs import pin_logs
from flywheel_tasks.traffic.schemas import TABLES
from tests.traffic.line_by_line import Ingestion, open_partition

DAY = date(2026, 3, 1)
ASKED = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A joke, please: \nHuman: or two"


def transcripts(path, *rows) -> None:
    path.write_bytes(b"".join(row if isinstance(row, bytes) else orjson.dumps(row) + b"\n" for row in rows))


def pair(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": chosen, "rejected": rejected}


def test_a_transcript_pair_becomes_history_chosen_and_rejected(tmp_path):
    path = tmp_path / "pairs.jsonl"
    transcripts(path, pair(ASKED + "\n\nAssistant: Why?\n\nBecause.", ASKED + "\n\nAssistant: No."))
    imported = read_hh_rlhf(path)
    assert imported.skipped == []
    (row,) = imported.rows
    assert row["history"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "A joke, please: \nHuman: or two"},
    ]
    assert (row["chosen"], row["rejected"]) == ("Why?\n\nBecause.", "No.")
    assert (row["source"], row["kind"], row["traits"]) == ("internal", "ranking", [])
    assert list(row) == PAIRS.names
    write_rows(imported.rows, PAIRS, tmp_path / "pairs.parquet")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = orjson.dumps(pair(ASKED + "\n\nAssistant: Yes.", ASKED + "\n\nAssistant: No.")) + b"\n"
    transcripts(path, BOM_UTF8 + row, BOM_UTF8 + row)
    imported = read_hh_rlhf(path)
    assert len(imported.rows) == 1
    assert [(skipped.line, skipped.rule) for skipped in imported.skipped] == [(2, "not_json")]


def test_a_broken_pair_is_listed_with_file_line_and_rule(tmp_path):
    path = tmp_path / "pairs.jsonl"
    good = pair(ASKED + "\n\nAssistant: a", ASKED + "\n\nAssistant: b")
    transcripts(
        path,
        good,
        b"{no json\n",
        b"[]\n",
        {"rejected": "x"},
        pair("hello", "hello"),
        pair(ASKED, ASKED),
        pair("\n\nAssistant: Hi", "\n\nAssistant: Hi"),
        pair(ASKED + "\n\nHuman: again\n\nAssistant: a", ASKED + "\n\nAssistant: b"),
        pair(ASKED + "\n\nAssistant:  ", ASKED + "\n\nAssistant: b"),
        pair("\n\nHuman: other\n\nAssistant: a", ASKED + "\n\nAssistant: b"),
        pair(ASKED + "\n\nAssistant: a", ASKED + "\n\nAssistant: a "),
        good,
    )
    imported = read_hh_rlhf(path)
    assert len(imported.rows) == 1
    assert [(row.line, row.rule) for row in imported.skipped] == [
        (2, "not_json"),
        (3, "not_object"),
        (4, "missing_field"),
        (5, "no_transcript"),
        (6, "no_reply"),
        (7, "not_alternating"),
        (8, "not_alternating"),
        (9, "empty_turn"),
        (10, "histories_differ"),
        (11, "equal_replies"),
        (12, "repeated_pair"),
    ]
    assert str(imported.skipped[0]).startswith(f"{path}:2: not_json: ")
    assert imported.skipped[0].detail.endswith(" at column 2")  # the parser's own line is always the first


def test_a_cut_gzip_of_pairs_is_listed_and_a_damaged_one_refused(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    data = orjson.dumps(pair(ASKED + "\n\nAssistant: a", ASKED + "\n\nAssistant: b")) + b"\n"
    path.write_bytes(gzip.compress(data)[:-4])
    imported = read_hh_rlhf(path)
    assert len(imported.rows) == 1
    assert [(row.line, row.rule) for row in imported.skipped] == [(2, "truncated_gzip")]
    path.write_bytes(data)
    with pytest.raises(ImportFormatError, match=r"pairs\.jsonl\.gz: damaged gzip"):
        read_hh_rlhf(path)


HEADER = "user 1 personas,user 2 personas,Best Generated Conversation\n"


def test_a_persona_conversation_becomes_a_card_and_messages(tmp_path):
    path = tmp_path / "valid.csv"
    talk = "User 1: Hi!\nUser 2: Hello.\nUser 2: A list:\n\none\nUser 1: Bye: now"
    rows = f'{HEADER}"I bake.","I row.\n I sing. ","{talk}"\n"I nap.","I row.\nI sing.","{talk}"\n'
    path.write_text(rows, encoding="utf-8-sig")  # as Excel saves it
    events = read_persona_chat(path, start=DAY, source="user").rows
    assert [event["type"] for event in events] == ["card", *["message"] * 3, *["message"] * 3]
    card, first, reply, last, *others = events
    assert card["traits"] == ["I row.", "I sing."]
    assert [event["role"] for event in (first, reply, last)] == ["user", "assistant", "user"]
    assert reply["text"] == "Hello.\nA list:\none"
    assert last["text"] == "Bye: now"
    assert (first["parent_id"], reply["parent_id"]) == (None, first["message_id"])
    assert first["time"] == "2026-03-01T00:00:10Z"
    assert {event["card_id"] for event in events} == {card["card_id"]}
    assert {event["user_id"] for event in others}.isdisjoint({first["user_id"]})


def test_whoever_speaks_first_is_the_user(tmp_path):
    path = tmp_path / "valid.csv"
    path.write_text(f'{HEADER}"I bake.","I row.","User 2: Hi!\nUser 1: Hello."\n')
    card, first, _ = read_persona_chat(path, start=DAY, source="user").rows
    assert card["traits"] == ["I bake."]
    assert (first["role"], first["text"]) == ("user", "Hi!")


def test_a_broken_conversation_is_listed_with_the_line_it_begins_on(tmp_path):
    path = tmp_path / "valid.csv"
    path.write_text(
        f'{HEADER}a,b,"User 1: Hi!\nUser 2: Hello."\n'
        'a,b,"* * *\nUser 1: Hi!"\n'
        "a,b,User 1: Hi!\n"
        'a,,"User 1: Hi!\nUser 2: Hello."\n'
        'a,b,"User 1:\nUser 2: Hello."\n'
        "a,b\n"
    )
    imported = read_persona_chat(path, start=DAY, source="user")
    assert len(imported.rows) == 3
    assert [(row.line, row.rule) for row in imported.skipped] == [
        (4, "no_speaker"),
        (6, "no_dialogue"),
        (7, "no_persona"),
        (9, "empty_turn"),
        (11, "missing_field"),
    ]


@pytest.mark.parametrize(
    "data", [b"", b"a,b\n1,2\n", HEADER.encode() + b"\xff,b,c\n", HEADER.encode() + b'"a']
)
def test_what_is_no_persona_csv_is_refused_by_name(tmp_path, data):
    path = tmp_path / "valid.csv"
    path.write_bytes(data)
    with pytest.raises(ImportFormatError, match=r"valid\.csv: "):
        read_persona_chat(path, start=DAY, source="user")


def character(**changes) -> dict:
    profile = {
        "name_text": "Marco",
        "title": "",
        "short_definition_text": "Envious, protective",
        "description": "{{char}} dislikes {{user}} since school, and says so.",
        "long_definition_text": "Rival.",
    }
    background = "You are role-playing a character. Be brief. Do not swear!"
    return {"id": 7, "background": background, "npc_profile": {**profile, **changes}}


def test_a_character_becomes_a_card(tmp_path):
    path = tmp_path / "characters.jsonl"
    transcripts(path, character())
    (card,) = read_rpbench(path, start=DAY, source="internal").rows
    assert card["card_id"].startswith("rpbench-")
    assert card["card_id"].endswith("-0007")
    assert card["name"] == "Marco"
    assert card["traits"] == ["Envious", "protective", "Rival."]
    assert card["instructions"] == ["Be brief.", "Do not swear!"]
    transcripts(path, character(long_definition_text=""))
    (card,) = read_rpbench(path, start=DAY, source="internal").rows
    assert card["traits"][-1] == "Marco dislikes the user since school, and says so."


def test_a_broken_character_is_listed(tmp_path):
    path = tmp_path / "characters.jsonl"
    undefined = character(short_definition_text=None, description="", long_definition_text="")
    wrong = character(title=[1], short_definition_text=None)
    transcripts(path, character(), character(), character(name_text=""), {"id": 1}, undefined, wrong)
    imported = read_rpbench(path, start=DAY, source="internal")
    assert len(imported.rows) == 1
    assert [(row.line, row.rule) for row in imported.skipped] == [
        (2, "repeated_id"),
        (3, "no_name"),
        (4, "missing_field"),
        (5, "no_definition"),
        (6, "wrong_type"),
    ]
    assert "title" in str(imported.skipped[-1])


def test_partitions_are_by_day_and_written_again_the_same(tmp_path):
    events = [{"time": "2026-03-02T00:00:00Z"}, {"time": "2026-03-01T10:00:00Z"}]
    for _ in range(2):
        paths = write_partitions(events, tmp_path, "set")
        assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
            "date=2026-03-01/set.jsonl",
            "date=2026-03-02/set.jsonl",
        ]
        assert paths[0].read_bytes() == b'{"time":"2026-03-01T10:00:00Z"}\n'


def test_real_preference_transcripts(shared_data):
    path = shared_data / "hh-rlhf/harmless-base-sample.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines()
    imported = read_hh_rlhf(path)
    assert len(imported.rows) + len(imported.skipped) == len(lines)
    assert len(imported.skipped) < 0.01 * len(lines)
    for row in imported.rows:
        assert row["history"][-1]["role"] == "user"
        assert row["chosen"] != row["rejected"]


def test_real_logs_of_personas_and_characters_are_ingested_whole(shared_data, tmp_path):
    personas = shared_data / "synthetic-persona-chat/valid.csv"
    chats = read_persona_chat(personas, start=DAY, source="user")
    cards = read_rpbench(shared_data / "rpbench/characters.jsonl", start=DAY, source="internal")
    assert len(cards.rows) == 80
    assert cards.skipped == []
    assert len(
        {event["conversation_id"] for event in chats.rows if event["type"] == "message"}
    ) == 1000 - len(chats.skipped)
    assert len(chats.skipped) < 10
    for event in [*cards.rows, *chats.rows[:500]]:
        assert parse_event(event).unknown == ()
    write_partitions(chats.rows, tmp_path / "logs", "persona-chat")
    write_partitions(cards.rows, tmp_path / "logs", "rpbench")
    ingestion = Ingestion(Identity(UserKey(DEMO_KEY), frozenset()))
    for partition in pin_logs("logs", tmp_path)["partitions"]:
        for line in open_partition("logs", tmp_path, partition, max_line_bytes=100_000):
            ingestion.take(partition["path"], line)
    metrics = ingestion.metrics()
    assert metrics["accepted"]["total"] == metrics["read"] == len(chats.rows) + len(cards.rows)
    assert sum(ingestion.tables()[name].num_rows for name in TABLES) == metrics["read"]
