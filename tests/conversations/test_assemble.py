from collections import Counter
from datetime import timedelta

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel_tasks.conversations import assemble as stage
from flywheel_tasks.conversations import buckets
from flywheel_tasks.conversations.assemble import AssemblyError, assemble, run
from flywheel_tasks.conversations.buckets import Buckets, boundaries
from flywheel_tasks.conversations.group import assemble_group
from flywheel_tasks.conversations.schemas import REASONS
from flywheel_tasks.settings import Assemble
from flywheel_tasks.storage.tables import read_rows, read_table, write_rows
from flywheel_tasks.traffic.schemas import CARDS, MESSAGES, REFUSAL_MODEL, SIGNALS
from tests.curation.rows import card, message, signal

SETTINGS = Assemble(continue_window_minutes=30, max_history_messages=99)


def write(folder, messages, signals=()):
    write_rows([card("c1")], CARDS, folder / "cards.parquet")
    write_rows(list(messages), MESSAGES, folder / "messages.parquet")
    write_rows(list(signals), SIGNALS, folder / "signals.parquet")


def chat(name, turns):
    for k in range(2 * turns):
        yield message(name, k, "assistant" if k % 2 else "user", f"{name} {k}", k - 1 if k else None)


def test_the_tables_are_the_same_however_many_buckets_there_are(tmp_path, monkeypatch):
    log = [row for k in range(60) for row in chat(f"{(k * 37) % 100:02d}", 1 + k % 4)]
    log.append(message("lost", 1, "assistant", "?", 7))
    signals = [signal(f"{(k * 37) % 100:02d}-1", "love") for k in range(0, 60, 3)] + [
        signal("none-1", "love")
    ]
    write(tmp_path / "in", sorted(log, key=lambda row: row["time"]), signals)
    results = []
    for rows in (1_000, 40, 7):
        monkeypatch.setattr(stage, "_BUCKET_ROWS", rows)
        out = tmp_path / f"out-{rows}"
        metrics = assemble(tmp_path / "in", out, SETTINGS, tmp_path / "scratch")
        assert not list((tmp_path / "scratch").glob("*"))
        results.append((metrics, {path.stem: read_table(path) for path in sorted(out.iterdir())}))
    assert results[0] == results[1] == results[2]
    metrics, tables = results[0]
    assert metrics["read"] == len(log) + len(signals) == metrics["used"] + tables["problems"].num_rows
    assert metrics["problems"] == {"total": 2, "missing_parent": 1, "signal_without_message": 1}
    assert tables["prompts"]["prompt_id"].to_pylist() == [
        row["message_id"]
        for row in sorted(log, key=lambda row: (row["conversation_id"], row["time"]))
        if row["role"] == "user"
    ]


def test_the_same_events_give_the_same_bytes(tmp_path):
    write(tmp_path / "in", [row for k in range(9) for row in chat(f"c{k}", 3)])
    made = []
    for name in ("one", "two"):
        assemble(tmp_path / "in", tmp_path / name, SETTINGS, tmp_path / "scratch")
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1]
    assert set(made[0]) == {"cards.parquet", "prompts.parquet", "siblings.parquet", "problems.parquet"}


def test_the_stage_stops_when_there_is_no_prompt(tmp_path, make_io):
    io = make_io("assemble", tmp_path)
    write(tmp_path / "data/validated", [message("a", 1, "assistant", "?", 7)])
    with pytest.raises(AssemblyError, match=r"messages\.parquet: no conversation.*missing_parent"):
        run(io)


IDS = st.integers(0, 6)
ANY = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        IDS,
        st.sampled_from(["user", "assistant"]),
        st.none() | IDS,
        st.none() | IDS,
        st.integers(0, 3),
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(rows=ANY, given_signals=st.lists(st.tuples(st.sampled_from("ab"), IDS), max_size=4), seed=st.randoms())
def test_whatever_the_messages_say_every_event_is_used_or_named_and_their_order_does_not_matter(
    rows, given_signals, seed
):
    log = []
    for k, (name, number, role, parent, replaced, minutes) in enumerate(rows):
        row = message(name, number, role, f"text {k}", parent, minutes=minutes)
        row |= {"event_id": f"e{k}", "replaces": None if replaced is None else f"{name}-{replaced}"}
        log.append(row)
    signals = [
        signal(f"{name}-{number}", "love") | {"event_id": f"s{k}"}
        for k, (name, number) in enumerate(given_signals)
    ]

    def made():
        group = assemble_group(
            pa.Table.from_pylist(log, schema=MESSAGES),
            pa.Table.from_pylist(signals, schema=SIGNALS),
            window=timedelta(minutes=30),
            longest_history=99,
        )
        return [
            [row for table in tables for row in table.to_pylist()]
            for tables in (group.prompts, group.siblings, group.problems)
        ] + [group.counts]

    prompts, siblings, problems, counts = before = made()
    assert counts["used_messages"] + counts["used_signals"] + len(problems) == len(log) + len(signals)
    listed = Counter(row["event_id"] for row in problems)
    assert set(listed.values()) <= {1}
    assert {row["reason"] for row in problems} <= set(REASONS)
    ordered = {row["message_id"]: row for row in log if row["event_id"] not in listed}
    assert [row["prompt_id"] for row in prompts] == [
        row["message_id"]
        for row in sorted(ordered.values(), key=lambda r: (r["conversation_id"], r["time"], r["message_id"]))
        if row["role"] == "user"
    ]
    for row in [*prompts, *siblings]:
        follow, path = ordered[row["prompt_id"]], []
        while follow is not None and len(path) < len(row["history"]):
            path.append(follow["text"])
            follow = ordered.get(follow["parent_id"])
        assert [turn["content"] for turn in row["history"]] == path[::-1]
        assert follow is None
    seed.shuffle(log)
    seed.shuffle(signals)
    assert made() == before


def test_a_log_of_more_ranges_than_files_may_be_open_is_spilled_in_several_goes(tmp_path, monkeypatch):
    write(tmp_path, [row for k in range(60) for row in chat(f"{(k * 37) % 100:02d}", 2)])
    closed: list[bool] = []

    class Watched:
        """A stream; no more than four may be open."""

        def __init__(self, *given, **also):
            self.stream, self.number = new_stream(*given, **also), len(closed)
            closed.append(False)
            assert closed.count(False) <= 4

        def __enter__(self):
            return self.stream

        def __exit__(self, *_):
            self.stream.close()
            closed[self.number] = True

    new_stream = pa.ipc.new_stream
    monkeypatch.setattr(pa.ipc, "new_stream", Watched)
    monkeypatch.setattr(buckets, "_OPEN", 4)
    cuts = boundaries(tmp_path / "messages.parquet", "conversation_id", 20, "text", 1 << 26)
    assert len(cuts) + 1 == 12
    spilled = Buckets(tmp_path / "messages.parquet", "conversation_id", cuts, tmp_path / "scratch")
    tables = [spilled.read(k) for k in range(len(spilled))]
    assert [table.num_rows for table in tables] == [20] * 12
    whole = read_table(tmp_path / "messages.parquet")
    assert pa.concat_tables(tables).sort_by("message_id") == whole.sort_by("message_id")


def test_a_longer_conversation_than_a_bucket_stays_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "_BUCKET_ROWS", 5)
    write(tmp_path / "in", [*chat("a", 20), *chat("b", 1)])
    assemble(tmp_path / "in", tmp_path / "out", SETTINGS, tmp_path / "scratch")
    prompts = read_rows(tmp_path / "out/prompts.parquet")
    assert len(prompts[19]["history"]) == 39


def test_long_messages_make_more_ranges(tmp_path):
    long = [row | {"text": "x" * 1_000} for k in range(30, 60) for row in chat(f"{k}", 2)]
    write(tmp_path, [row for k in range(30) for row in chat(f"{k:02d}", 2)] + long)
    cuts = boundaries(tmp_path / "messages.parquet", "conversation_id", 1_000, "text", 20_000)
    names = sorted({f"{k:02d}" for k in range(60)})
    ranges = [
        sum(first <= name < end for name in names) for first, end in zip(cuts, [*cuts[1:], "z"], strict=True)
    ]
    assert cuts[0] >= "30"
    assert max(ranges) <= 6
    assert boundaries(tmp_path / "messages.parquet", "conversation_id", 1_000, "text", 10**6) == []


def test_a_conversation_that_is_too_large_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "_MOST_BYTES", 500)
    write(tmp_path / "in", [*chat("a", 1), *(row | {"text": "x" * 200} for row in chat("b", 2))])
    with pytest.raises(AssemblyError, match=r"messages\.parquet: conversation b has 800 bytes of text"):
        assemble(tmp_path / "in", tmp_path / "out", SETTINGS, tmp_path / "scratch")


def test_a_gateways_refusal_is_nobodys_reply(tmp_path):
    """It stays in the history; another try is the reply, and no sibling that was preferred to it."""

    def refused(conversation):
        return message(conversation, 1, "assistant", "I cannot say that here.", 0, model=REFUSAL_MODEL)

    log = [
        message("c1", 0, "user", "hello"),
        refused("c1"),
        message("c1", 2, "user", "well then", 1),
        message("c1", 3, "assistant", "as you like", 2),
        message("c2", 0, "user", "hello"),
        refused("c2"),
        message("c2", 2, "assistant", "hello you", 0),
    ]
    write(tmp_path / "in", log, [signal("c1-1", "thumb_down")])
    metrics = assemble(tmp_path / "in", tmp_path / "out", SETTINGS, tmp_path / "scratch")
    prompts = {row["prompt_id"]: row for row in read_rows(tmp_path / "out/prompts.parquet")}
    first, second, again = (prompts[name] for name in ("c1-0", "c1-2", "c2-0"))
    assert (first["reply"], first["reply_model"], first["signals"]) == (None, None, [])
    assert [turn["content"] for turn in second["history"]] == [
        "hello",
        "I cannot say that here.",
        "well then",
    ]
    assert second["reply"] == "as you like"
    assert again["reply"] == "hello you"
    assert not read_rows(tmp_path / "out/siblings.parquet")
    assert (metrics["refusals"], metrics["replies"], metrics["unanswered"]) == (2, 2, 1)
    assert metrics["read"] == metrics["used"]
