"""Keys, limits, cards, turns: the gateway's small parts."""

import sqlite3
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_tasks.serving import recorder as recorder_module
from flywheel_tasks.serving.cards import CardsError, load_cards
from flywheel_tasks.serving.keys import ENVIRONMENT, KeyRing, KeysError, add_key, read_keys, revoke_key
from flywheel_tasks.serving.limits import RateLimiter
from flywheel_tasks.serving.recorder import Recorder
from flywheel_tasks.serving.turns import LoggedTurn, TurnIndex, forget_turns, longer, owner_of, root_chain
from flywheel_tasks.storage.tables import write_rows
from flywheel_tasks.traffic.schemas import CARDS as CARDS_TABLE
from tests.serving.conftest import CARDS, wait_for


def test_keys_are_kept_as_hashes_and_found(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    record, key = add_key(path, "ann", "user", "ann")
    staff, other = add_key(path, "back end", "staff", None)
    assert key.split("-", 2)[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ring = KeyRing(read_keys(path))
    assert (ring.find(key), ring.find(other)) == (record, staff)
    assert (record.source, staff.source) == ("user", "internal")
    for wrong in (
        "",
        "fw",
        key[:-1],
        key + "a",
        key.replace(record.id, staff.id),
        "fw-00000000-x",
        "ключ-1-2",
    ):
        assert ring.find(wrong) is None


def test_a_key_has_a_holder(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(KeysError, match="name must have 1 to 200 characters"):
        add_key(path, "", "user", None)
    with pytest.raises(KeysError, match="user_id must have 1 to 200 characters"):
        add_key(path, "ann", "user", "a" * 201)
    assert not path.exists()


def test_a_revoked_key_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    record, key = add_key(path, "ann", "user", "ann")
    revoke_key(path, record.id)
    assert KeyRing(read_keys(path)).find(key) is None
    with pytest.raises(KeysError, match="revoked before"):
        revoke_key(path, record.id)
    with pytest.raises(KeysError, match="no key"):
        revoke_key(path, "00000000")


def test_keys_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    _, key = add_key(path, "ann", "user", "ann")
    monkeypatch.setenv(ENVIRONMENT, path.read_text())
    assert KeyRing(read_keys(tmp_path / "other.json")).find(key) is not None
    with pytest.raises(KeysError, match="change them there"):
        add_key(path, "bob", "user", "bob")
    monkeypatch.setenv(ENVIRONMENT, '[{"hash": "secret"}]')
    with pytest.raises(KeysError, match="not a list of keys") as caught:
        read_keys(path)
    assert "secret" not in str(caught.value)


def test_a_bucket_fills_again_and_is_shared(tmp_path: Path) -> None:
    now = 1000.0
    one, other = (RateLimiter(tmp_path / "limits", per_minute=6, burst=2, now=lambda: now) for _ in range(2))
    assert [one.wait("ann"), other.wait("ann")] == [0.0, 0.0]
    assert one.wait("ann") == pytest.approx(10.0)
    assert one.wait("bob") == 0.0
    now += 9.0
    assert other.wait("ann") == pytest.approx(1.0)
    now += 1.0
    assert other.wait("ann") == 0.0
    assert other.wait("ann") > 0.0
    now = 5.0  # the machine was started anew, and its clock with it
    assert one.wait("ann") == 0.0


@settings(max_examples=60)
@given(st.lists(st.floats(0, 30), max_size=40), st.integers(1, 5))
def test_never_more_than_the_burst_and_what_came_back(gaps: list[float], burst: int) -> None:
    import tempfile

    now = 0.0
    with tempfile.TemporaryDirectory() as folder:
        limiter = RateLimiter(Path(folder) / "limits", per_minute=10, burst=burst, now=lambda: now)
        taken: list[float] = []
        for gap in gaps:
            now += gap
            if limiter.wait("ann") == 0.0:
                taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + (taken[last] - taken[first]) / 6 + 1e-6


def test_cards_of_a_file_and_of_a_table_are_the_same(tmp_path: Path) -> None:
    lines, table = tmp_path / "cards.jsonl", tmp_path / "cards.parquet"
    newer = {**CARDS[0], "event_id": "e-2", "time": "2026-11-03T09:00:00+01:00", "name": "Mira the Second"}
    newer["greeting"] = "Come in!"
    lines.write_bytes(b"".join(orjson.dumps(card) + b"\n" for card in [newer, *CARDS]))
    rows = [{**card, "time": datetime.fromisoformat(card["time"])} for card in [*CARDS, newer]]
    write_rows([{key: row.get(key) for key in CARDS_TABLE.names} for row in rows], CARDS_TABLE, table)
    assert load_cards(lines) == load_cards(table)
    assert load_cards(lines).by_id["mira"].name == "Mira the Second"
    assert [card.greeting for card in load_cards(table).by_id.values()] == ["Come in!", None]
    assert load_cards(lines).events["mira"]["time"] == "2026-11-03T08:00:00.000000Z"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "holds no card"),
        (b"{}\n", r"cards.jsonl:1: missing_field"),
        (orjson.dumps({**CARDS[0], "name": " "}) + b"\n", "name of mira is blank"),
    ],
)
def test_wrong_cards(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "cards.jsonl"
    path.write_bytes(text)
    with pytest.raises(CardsError, match=message):
        load_cards(path)
    with pytest.raises(CardsError, match="no such file"):
        load_cards(tmp_path / "none.jsonl")


def test_a_power_cut_leaves_the_index_whole(tmp_path: Path) -> None:
    index = TurnIndex(tmp_path / "turns.sqlite")
    found = [index._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 1]  # NORMAL: synced at each checkpoint


def test_old_turns_are_forgotten(tmp_path: Path) -> None:
    index = TurnIndex(tmp_path / "turns.sqlite")
    chain = longer(root_chain("ann", "mira", "user"), "user", "Hi")
    now = datetime.now(UTC)
    for name, age in (("m-old", 31), ("m-new", 29)):
        index.add([LoggedTurn(name, "c", None, "user", b"o", chain, now - timedelta(days=age))])
    assert index.forget(30, 10) == 1
    assert index.by_id("m-old") is None
    found = index.by_chain(chain)
    assert found is not None
    assert (found.message_id, found.time) == ("m-new", now - timedelta(days=29))


def _turn_of(user: str, name: str, at: datetime) -> LoggedTurn:
    chain = longer(root_chain(user, "mira", "user"), "user", name)
    return LoggedTurn(name, f"c-{name}", None, "user", owner_of(user), chain, at)


def test_old_turns_are_forgotten_while_a_worker_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few at a time, for requests wait meanwhile; also those that were old when it began."""
    path, now = tmp_path / "turns.sqlite", datetime.now(UTC)
    index = TurnIndex(path)
    old = [f"m-old-{n}" for n in range(7)]
    index.add([_turn_of("ann", name, now - timedelta(days=31)) for name in old])
    monkeypatch.setattr(recorder_module, "_FORGET_ROWS", 2)
    monkeypatch.setattr(recorder_module, "_FORGET_SECONDS", 0.0)  # the next day comes at once
    recorder = Recorder(tmp_path / "logs", path, window=1, turn_days=30)
    try:
        index.add([_turn_of("ann", "m-new", now)])
        wait_for(lambda: not any(index.by_id(name) for name in old))
        index.add([_turn_of("ann", "m-old", now - timedelta(days=31))])
        wait_for(lambda: index.by_id("m-old") is None)
        assert index.by_id("m-new") is not None
        index.close()
    finally:
        recorder.close()


def test_an_index_of_an_earlier_release_is_gone_on_with(tmp_path: Path) -> None:
    """It does not say whose traffic a turn was of: then its user may rate it, as before."""
    path, now = tmp_path / "turns.sqlite", datetime.now(UTC)
    old = sqlite3.connect(path)
    old.execute(
        "CREATE TABLE turns (message_id TEXT NOT NULL, conversation_id TEXT NOT NULL, parent_id TEXT, "
        "role TEXT NOT NULL, owner BLOB NOT NULL, chain BLOB NOT NULL, time TEXT NOT NULL, "
        "PRIMARY KEY (message_id, chain)) WITHOUT ROWID"
    )
    values = ("m-1", "c", None, "assistant", owner_of("ann"), b"x", now.isoformat())
    old.execute("INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    old.commit()
    old.close()
    one, other = TurnIndex(path), TurnIndex(path)
    before = one.by_id("m-1")
    assert before is not None
    assert (before.time, before.source, before.rated_by("ann", "internal")) == (now, None, True)
    new = LoggedTurn("m-2", "c", "m-1", "assistant", owner_of("ann"), b"y", now, "user")
    one.add([new])
    assert other.by_chain(b"y") == new
    assert [new.rated_by(*who) for who in (("ann", "user"), ("ann", "internal"), ("bob", "user"))] == [
        *(True, False, False)
    ]


def test_a_user_is_forgotten_while_a_gateway_has_the_index_open(tmp_path: Path) -> None:
    path, now = tmp_path / "turns.sqlite", datetime.now(UTC)
    assert forget_turns(path, ["ann"]) == {"ann": 0}
    assert not path.exists()
    running = TurnIndex(path)
    running.add([*(_turn_of("ann", f"m-{n}", now) for n in range(3)), _turn_of("bob", "m-bob", now)])
    assert forget_turns(path, ["ann", "nobody"], dry_run=True) == {"ann": 3, "nobody": 0}
    assert forget_turns(path, ["ann"]) == {"ann": 3}
    assert [running.by_id(name) is None for name in ("m-0", "m-bob")] == [True, False]
    kept = b"".join(file.read_bytes() for file in tmp_path.glob("turns.sqlite*"))
    assert owner_of("bob") in kept
    assert owner_of("ann") not in kept
    assert forget_turns(path, ["ann"]) == {"ann": 0}
