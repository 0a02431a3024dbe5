"""Whose lines are whose: ids that are hashed, words that are withheld, users who are forgotten or not sampled."""

import gzip

import orjson

from flywheel_tasks.privacy.forget import Ids
from flywheel_tasks.storage.tables import read_rows
from tests.traffic.ingesting import KEY
from tests.traffic.sample import card, events, line, message, signal, write_log
from tests.traffic.stage import adds_up, ingest


def test_no_table_holds_a_raw_user_id(tmp_path, make_io):
    """Also not the quarantine: broken lines are kept as they were read but for the ids."""
    person = "maria.santos@example.com"
    whole = line(message(1, "user", None, user_id=person))
    broken = [
        line(message(2, "robot", None, user_id=person)),
        line(message(3, "user", None, user_id=4242424242)),
        whole[:-20] + b"\n",
        whole[: whole.index(b"santos") + 3] + b"\n",
        line(message(4, "user", None, user_id=person, text="x" * 3000)),
    ]
    log = [line({**event, "user_id": person} if "user_id" in event else event) for event in events()]
    write_log(tmp_path, [*log, *broken])
    metrics, folder = ingest(tmp_path, make_io, **{"ingest.max_line_bytes": 2500})
    assert metrics["quarantined"]["total"] == len(broken)
    assert metrics["user_key"] == KEY.fingerprint
    for table in folder.iterdir():
        text = str(read_rows(table))
        assert "maria" not in text, table.name
        assert "4242424242" not in text, table.name
    for name in ("messages", "signals", "exposures"):
        assert {row["user_id"] for row in read_rows(folder / f"{name}.parquet")} == {KEY.hashed(person)}


def test_no_id_is_left_in_details_objects_or_under_an_old_name(tmp_path, make_io):
    person, rename = "alice@corp.com", {"ingest.rename": {"author": "user_id"}}
    odd = message(2, "user", None)
    broken = [
        line([{"user_id": person, "type": "message"}]),
        line({**odd, "role": {"user_id": person}}),
        line({**odd, "time": f"{{'author': '{person}'}}"}),
        line({**odd, "user_id": {"id": person}}),
        line({**odd, "user_id": [person]}),
        line(odd)[:-2].replace(b"u1", person.encode()).replace(b"user_id", b"author") + b"\n",
        line({**odd, "text": 5, "user_id": None, "author": person}),
        line(line({**odd, "user_id": person}).decode()),
    ]
    write_log(tmp_path, [*map(line, events()), *broken])
    metrics, folder = ingest(tmp_path, make_io, **rename)
    rows = read_rows(folder / "quarantine.parquet")
    assert [row["line"] for row in rows] == list(range(10, 18))
    assert "alice" not in str(rows)
    whole = [number for number, row in enumerate(rows) if KEY.hashed(person) in row["raw"]]
    assert whole == [1, 2, 6], "lines that say by a field of their own whose they are"
    assert [row["raw"] for row in (rows[0], rows[5], rows[7])] == [""] * 3
    assert [orjson.loads(rows[number]["raw"])["text"] for number in (3, 4)] == ["…"] * 2
    assert rows[-1]["detail"] == "found a str"
    assert all(KEY.hashed(person) in row["user_ids"] for row in rows)
    metrics, folder = ingest(tmp_path, make_io, forgotten=[person], **rename)
    assert metrics["forgotten"] == len(broken)
    assert metrics["quarantined"]["total"] == 0
    assert adds_up(metrics)


def test_a_row_in_quarantine_is_its_users_also_where_the_text_is_cut_before_the_id(tmp_path, make_io):
    person, of = "maria", {"text": "secret words " * 300}
    said = {
        name: value for name, value in message(1, "robot", None).items() if name not in ("text", "user_id")
    }
    same = {**message(2, "user", None, event_id="twice"), "user_id": person, "conversation_id": "c" * 3000}
    log = [
        line({**of, **said, "user_id": person}),
        line({"user_id": person, **said, "text": "secret words " * 1000}),
        line(same),
        line({**same, "text": "secret words"}),
    ]
    write_log(tmp_path, [*map(line, events()), *log])
    _, folder = ingest(tmp_path, make_io, **{"ingest.max_line_bytes": 8000})
    rows = read_rows(folder / "quarantine.parquet")
    rules = [(row["line"], row["rule"]) for row in rows]
    assert rules == [(10, "unknown_role"), (11, "line_too_long"), (13, "conflicting_duplicate")]
    assert [row["user_ids"] for row in rows] == [[KEY.hashed(person)]] * 3
    assert KEY.hashed(person) not in rows[0]["raw"]
    assert (rows[1]["raw"], "secret words" in rows[0]["raw"]) == ("", True)
    assert all(Ids(KEY.hashed(person)).owns(row) for row in rows)
    assert not any(Ids(KEY.hashed("u1")).owns(row) for row in rows)


def test_of_a_cut_line_that_may_be_anybodys_no_text_is_kept(tmp_path, make_io):
    said = {
        name: value for name, value in message(1, "user", None).items() if name not in ("text", "user_id")
    }
    long = "secret words " * 1000
    log = [
        line({**said, "text": long, "user_id": "maria"}),
        line({**said, "text": '{"user_id":"another"} ' + long, "user_id": "maria"}),
    ]
    write_log(tmp_path, [*map(line, events()), *log])
    last = line({**said, "text": "secret words", "user_id": "maria"})
    packed = [
        gzip.compress(last[:end], mtime=0)[:-8] for end in (-10, -4)
    ]  # without the id, with a part of it
    for number, data in enumerate(packed):
        path = write_log(tmp_path, [], f"date=2026-11-03/{number}.jsonl.gz")
        path.write_bytes(data)
    _, folder = ingest(tmp_path, make_io, **{"ingest.max_line_bytes": 8000})
    rows = read_rows(folder / "quarantine.parquet")
    assert [row["rule"] for row in rows] == ["line_too_long"] * 2 + ["truncated_gzip"] * 2
    assert [(row["raw"], row["user_ids"]) for row in rows] == [("", [])] * 4


def test_of_a_line_that_names_no_user_no_words_and_no_unknown_values_are_kept(tmp_path, make_io):
    words = "my secret words, {\"user_id\":\"bob\"} and {'user_id':'bob'}"
    event = {**message(1, "user", None, text=words), "app": {"of": "alice"}, "author": "alice@corp.com"}
    del event["user_id"]
    odd = {"user_id": None, "author": "alice@corp.com"}
    broken = [
        line(event),
        line({**event, "user_id": None}),
        line({**event, "user_id": [None, ""]}),
        line({**event, "user_id": "", "role": "my secret words"}),
        line({**odd, "type": "my secret words"}),
        line({**message(2, "user", None), **odd, "time": "my secret words"}),
        line({**message(3, "user", None), **odd, "time": "my-secret-words"}),
        line({**signal(1, 2, value="my secret words", signal="clap"), **odd}),
        line(event)[:-2] + b"\n",
        line([event, {"user_id": "u1"}]),
        line("alice wrote my secret words"),
        b"alice@corp.com: my secret words\n",
        line(event)[:-1] + line({"user_id": "u1"}),
    ]
    others = [
        {**event, "user_id": {"id": None}},
        {**event, "user_id": {"id": "somebody"}},
        {**event, "user_id": False},
        {**event, "user_id": "undefined", "role": "robot"},
        {**event, "meta": {"reply_to": {"user_id": "somebody"}}},
        {**event, "alice told my secret words": 1, "alice@corp.com": 2},
    ]
    write_log(tmp_path, [*map(line, events()), *broken, *map(line, others)])
    _, folder = ingest(tmp_path, make_io)
    rows = read_rows(folder / "quarantine.parquet")
    assert [row["line"] for row in rows] == list(range(10, 10 + len(broken) + len(others)))
    assert [text for text in ("secret words", "alice", "bob") if text in str(rows)] == []
    assert "my-secret-words" not in rows[6]["detail"]
    withheld = {"text": "…", "app": "…", "author": "…"}
    assert orjson.loads(rows[0]["raw"]) == {**event, **withheld}
    assert rows[0]["detail"] == "user_id absent from this message"
    assert orjson.loads(rows[1]["raw"]) == {**event, **withheld, "user_id": None}
    assert orjson.loads(rows[3]["raw"])["role"] == "…"
    assert rows[4]["detail"].startswith("type … is none of card, message")
    assert [orjson.loads(rows[7]["raw"])[name] for name in ("signal", "value")] == ["clap", "…"]
    assert [row["raw"] for row in rows[8:13]] == [""] * 5
    shown = [orjson.loads(row["raw"]) for row in rows[13:]]
    assert [of["text"] for of in shown] == ["…"] * len(others)
    assert (shown[-1]["2 more"], shown[-2]["meta"]) == ("…", "…")


def test_lines_of_forgotten_users_are_dropped_and_counted(tmp_path, make_io):
    others = [{**event, "user_id": "u2", "event_id": event["event_id"] + "-2"} for event in events()[1:]]
    broken = [line(message(8, "robot", None)), line(message(8, "robot", None, user_id="u2"))]
    write_log(tmp_path, [*map(line, events()), *map(line, others), *broken, line(events()[2])])
    metrics, folder = ingest(tmp_path, make_io, forgotten=["u1"])
    assert metrics["forgotten"] == 8 + 1 + 1
    assert metrics["accepted"]["total"] == 1 + 8
    assert adds_up(metrics)
    assert KEY.hashed("u1") not in str([read_rows(table) for table in folder.iterdir()])
    kept = read_rows(folder / "messages.parquet")
    _, folder = ingest(tmp_path, make_io)
    before = read_rows(folder / "messages.parquet")
    assert kept == [row for row in before if row["user_id"] == KEY.hashed("u2")]


def test_a_share_of_the_users_is_read_and_always_the_same_ones(tmp_path, make_io):
    users = [f"person-{number}" for number in range(60)]
    log = [card()]
    for user in users:
        log += [
            {**event, "user_id": user, "event_id": f"{user}-{event['event_id']}"} for event in events()[1:]
        ]
        log.append(message(8, "robot", None, user_id=user, event_id=f"{user}-broken"))
    write_log(tmp_path, [*map(line, log), *(b"not json %d\n" % number for number in range(200))])
    read, drifts = {}, []
    for share in (1.0, 0.5, 0.2):
        metrics, folder = ingest(tmp_path, make_io, **{"ingest.sample_users": share})
        assert adds_up(metrics)
        read[share] = {row["user_id"] for row in read_rows(folder / "messages.parquet")}
        drawn = len(read[share])
        assert 0.5 * share < drawn / len(users) < min(1.0, 1.6 * share) + 0.001
        assert metrics["accepted"]["total"] == 1 + 8 * drawn, "cards are nobody's, and users are read whole"
        # Broken lines are drawn too: their share of the log would seem many times what it is.
        broken = read_rows(folder / "quarantine.parquet")
        assert {row["user_ids"][0] for row in broken if row["user_ids"]} == read[share]
        drifts.append(metrics["drift"])
        assert 0.5 * share <= sum(not row["user_ids"] for row in broken) / 200 <= min(1.0, 1.6 * share)
    assert read[0.2] < read[0.5] < read[1.0]
    assert drifts[0] == drifts[1] == drifts[2], "what fields lines have is told of all"
