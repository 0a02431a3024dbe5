from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_tasks.conversations.assemble import assemble
from flywheel_tasks.conversations.schemas import CARDS as SHEETS
from flywheel_tasks.curation import traffic
from flywheel_tasks.curation.curate import run, unusable
from flywheel_tasks.curation.tables import PROMPTS, CurationError
from flywheel_tasks.privacy.outgoing import check
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.tables import read_rows, write_rows
from flywheel_tasks.traffic.schemas import CARDS, MESSAGES, SIGNALS
from tests.curation.rows import card, message, prompt, signal

TOPICS = (
    "the harbour",
    "a lost key",
    "my sister",
    "cold soup",
    "an old clock",
    "bees",
    "the exam",
    "a wet tent",
)


def test_unusable_prompts_say_why():
    found = unusable([prompt("p1", card_id="zz"), prompt("p2", "  "), prompt("p3")], {"c1": {}})
    assert {key: reason for key, (reason, _) in found.items()} == {"p1": "missing_card", "p2": "empty"}


@pytest.fixture
def validated(make_io, tiny_models):
    """A workspace with logs of 24 users; returns a function that makes the StageIO."""

    def make(root, overrides=None, messages=None):
        io = make_io("curate", root, overrides)
        (root / "models").mkdir(exist_ok=True)
        if not (root / "models/embedder").exists():
            (root / "models/embedder").symlink_to(tiny_models / "embedder")
        log = list(chats()) if messages is None else messages
        write_rows([card("c1"), card("c2", "Pip")], CARDS, root / "data/validated/cards.parquet")
        write_rows(log, MESSAGES, root / "data/validated/messages.parquet")
        signals = [signal("v0-1", "thumb_up")] if log else []
        write_rows(signals, SIGNALS, root / "data/validated/signals.parquet")
        assemble(
            root / "data/validated",
            root / "data/conversations",
            load_settings(root / "params.yaml").assemble,
            root / "scratch",
        )
        return io

    return make


def chats():
    for user in range(24):
        name, kind = f"v{user}", {"user": f"u{user}", "source": "internal" if user % 4 == 0 else "user"}
        kind["card"] = f"c{user % 2 + 1}"
        texts = [f"{TOPICS[(user + k) % 8]} and number {user * 7 + k}, what do you say?" for k in range(3)]
        texts[1] = "my card is 4111 1111 1111 1111" if user == 3 else texts[1]
        texts[1] = "mail me at anna@example.com" if user == 4 else texts[1]
        texts[2] = "this word is forbidden" if user == 5 else texts[2]
        for turn, text in enumerate(texts):
            parent = None if turn == 0 else 2 * turn - 1
            yield message(name, 2 * turn, "user", text, parent, **kind)
            yield message(name, 2 * turn + 1, "assistant", f"Reply {turn} to {user}.", 2 * turn, **kind)


SETTINGS = {
    "curate.blocked_words": ["forbidden"],
    "curate.max_prompts": 40,
    "curate.max_prompts_per_user": 2,
    "curate.duplicate_cosine": 1.0,
    "compute.threads": 1,
}


def test_every_prompt_is_kept_or_removed_with_a_reason(validated, tmp_path):
    io = validated(tmp_path, SETTINGS)
    metrics = run(io)
    kept = read_rows(io.out("data/curated") / "prompts.parquet")
    removed = read_rows(io.out("data/curated") / "removed.parquet")
    assert len(kept) == metrics["kept"] == 40
    assert len(kept) + len(removed) == metrics["read"]["prompts"] == 72
    assert not {row["prompt_id"] for row in kept} & {row["prompt_id"] for row in removed}
    assert dict(Counter(row["reason"] for row in removed)) == metrics["removed"]
    # The number stays in the history of the user's later turn, so both go; the address is replaced.
    assert metrics["removed"]["privacy:CARD"] == 2
    assert metrics["privacy"]["CARD"] == {"action": "drop", "identifiers": 1, "prompts": 2}
    assert metrics["privacy"]["EMAIL"] == {"action": "replace", "identifiers": 1, "prompts": 2}
    assert "@" not in str([row["history"] for row in kept])
    assert not any("4111" in str(row) for row in [*kept, *removed])
    assert metrics["removed"]["safety:blocked"] == 1
    assert max(Counter(row["user_id"] for row in kept).values()) == 2
    assert not any("@" in row["detail"] for row in removed)
    source = metrics["sample"]["source"]["shares"]["internal"]
    assert source["achieved"] == pytest.approx(source["target"], abs=0.05)


def test_a_message_that_only_the_outgoing_scan_objects_to_costs_its_prompt_not_the_stage(validated, tmp_path):
    texts = ["write mira@lighthouse.sea", "VERSION 10.20.30.40", "call me...555-123-4567", "I like rain."]
    texts += ["so 4111 1111\n1111 1111, and you?"] * 2
    log = [message(f"d{k}", 0, "user", text, user=f"u_{k:032x}") for k, text in enumerate(texts)]
    io = validated(tmp_path, SETTINGS, log)
    sheet = {"card_id": "c1", "name": "Mae", "traits": ["root@server.local is hers"], "instructions": []}
    write_rows([sheet], SHEETS, tmp_path / "data/conversations/cards.parquet")
    metrics = run(io)
    assert metrics["removed"] == {"privacy:CARD": 2, "privacy:EMAIL": 1, "privacy:IP": 1}
    out = io.out("data/curated")
    said = [row["history"][0]["content"] for row in read_rows(out / "prompts.parquet")]
    assert sorted(said) == ["I like rain.", "call me...[PHONE_1]"]
    assert read_rows(out / "cards.parquet")[0]["traits"] == ["[EMAIL_1] is hers"]
    check({"data/curated": out}, io.settings.privacy.policy)


def test_near_duplicates_are_dropped_naming_the_kept_prompt(validated, tmp_path):
    log = [
        message(f"d{k}", 0, "user", text, user=f"u{k}")
        for k, text in enumerate(["I like rain.", "I like rain"])
    ]
    io = validated(tmp_path, {**SETTINGS, "curate.duplicate_cosine": 0.9}, log)
    run(io)
    removed = read_rows(io.out("data/curated") / "removed.parquet")
    assert [row["reason"] for row in removed] == ["near_duplicate"]
    pair = read_rows(io.out("data/curated") / "duplicates.parquet")[0]
    assert (pair["kind"], pair["dropped_id"], pair["kept_id"]) == ("near", "d1-0", "d0-0")
    assert pair["cosine"] > 0.9
    assert (pair["dropped_text"], pair["kept_text"]) == ("Mae I like rain", "Mae I like rain.")


def test_the_same_inputs_give_the_same_bytes(validated, tmp_path):
    written = []
    for name in ("a", "b"):
        io = validated(tmp_path / name, SETTINGS)
        run(io)
        written.append((io.out("data/curated") / "prompts.parquet").read_bytes())
    assert written[0] == written[1]


def test_the_order_of_the_log_does_not_matter(validated, tmp_path):
    log = list(chats())
    kept = []
    for name, messages in (("a", log), ("b", log[::-1])):
        io = validated(tmp_path / name, SETTINGS, messages)
        run(io)
        kept.append(read_rows(io.out("data/curated") / "prompts.parquet"))
    assert kept[0] == kept[1]


def test_a_long_conversation_is_read_in_parts_and_treated_as_a_whole(validated, tmp_path, monkeypatch):
    said = {
        1: "mail anna@example.com",
        9: "or ben@example.com",
        10: "call 555-123-4567",
        12: "anna@example.com",
    }
    log = list(chats())
    for turn in range(14):
        parent = None if turn == 0 else 2 * turn - 1
        text = said.get(turn, f"{TOPICS[turn % 8]} in turn {turn}, what do you say?")
        log.append(message("v5x", 2 * turn, "user", text, parent, user="long"))
        log.append(message("v5x", 2 * turn + 1, "assistant", f"Answer {turn}.", 2 * turn, user="long"))
    settings = {**SETTINGS, "curate.max_prompts": 80, "curate.max_prompts_per_user": 20}
    whole = validated(tmp_path / "whole", settings, log)
    metrics = run(whole)
    monkeypatch.setattr(traffic, "_ROWS", 4)
    path = tmp_path / "whole/data/conversations/prompts.parquet"
    parts = [[row["conversation_id"] for row in rows] for rows in traffic.read_conversations(path)]
    assert max(map(len, parts)) < 8
    assert sum("v5x" in part for part in parts) > 2
    assert [name for part in parts for name in part] == [row["conversation_id"] for row in read_rows(path)]
    split = validated(tmp_path / "split", settings, log)
    assert run(split) == metrics
    assert metrics["privacy"]["EMAIL"] == {"action": "replace", "identifiers": 3, "prompts": 15}
    for name in ("prompts", "removed"):
        tables = [read_rows(io.out("data/curated") / f"{name}.parquet") for io in (whole, split)]
        assert tables[0] == tables[1]
    kept = read_rows(split.out("data/curated") / "prompts.parquet")
    assert "[EMAIL_1]" in {
        row["history"][-1]["content"] for row in kept
    }  # in another part than the first time


def test_of_long_histories_few_are_in_memory_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(traffic, "_CHARACTERS", 3_000)
    said = [{"role": "user", "content": "x" * 500}]
    rows = [
        prompt(f"{name}{n}") | {"conversation_id": name, "history": said * (n + 1)}
        for name, count in (("a", 3), ("b", 9), ("c", 2))
        for n in range(count)
    ]
    with pq.ParquetWriter(tmp_path / "p", PROMPTS) as file:
        for row in rows:
            file.write_table(pa.Table.from_pylist([row], schema=PROMPTS))
    parts = [[row["prompt_id"] for row in part] for part in traffic.read_conversations(tmp_path / "p")]
    assert [name for part in parts for name in part] == [row["prompt_id"] for row in rows]
    assert parts[:2] == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]
    assert len(parts) > 6


@pytest.mark.parametrize("place", [3, 20])
def test_a_conversation_in_two_places_is_an_error(tmp_path, monkeypatch, place):
    monkeypatch.setattr(traffic, "_ROWS", 4)
    names = ["a"] * 9 + ["b"] * 3 + ["c"] * 9
    names.insert(place, "a" if place > 9 else "c")
    write_rows(
        [prompt(f"p{n}") | {"conversation_id": name} for n, name in enumerate(names)], PROMPTS, tmp_path / "p"
    )
    with pytest.raises(CurationError, match=r"conversation [ac] is in two places"):
        list(traffic.read_conversations(tmp_path / "p"))


def test_a_bound_that_cannot_be_met_stops_the_stage(validated, tmp_path):
    io = validated(tmp_path, {**SETTINGS, "curate.sample.at_least": {"source": {"internal": 39}}})
    with pytest.raises(CurationError, match=r"source=internal: at least 39"):
        run(io)


def test_no_prompts_or_none_left_are_errors(validated, tmp_path):
    with pytest.raises(CurationError, match=r"prompts\.parquet: there is no prompt"):
        run(validated(tmp_path / "a", SETTINGS, []))
    log = [message("x", 0, "user", "4111 1111 1111 1111")]
    with pytest.raises(CurationError, match="all 1 prompts were removed"):
        run(validated(tmp_path / "b", SETTINGS, log))
