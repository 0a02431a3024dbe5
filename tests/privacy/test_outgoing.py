import ast
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.stage import run_stage
from flywheel_tasks.privacy import outgoing
from flywheel_tasks.privacy.outgoing import OutgoingError, check, identifiers_in, scan, without_identifiers
from flywheel_tasks.privacy.policy import Placeholders, replace
from flywheel_tasks.storage.documents import write_json, write_jsonl
from flywheel_tasks.storage.tables import write_rows, write_table
from tests.curation.rows import prompt
from tests.privacy.conftest import SETTINGS

PROJECT = Path(__file__).resolve().parents[2]
GRAPH = load_graph(PROJECT / "dvc.yaml")
USER = "u_" + "0" * 32


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("to anna.b@mail.example.com.", "EMAIL"),
        ("anna\u200b@example.com", "EMAIL"),
        ("ivan@почта.рф", "EMAIL"),
        ("иван.петров@яндекс.рф, да", "EMAIL"),
        ("«иван@почта.рф»", "EMAIL"),
        ("иван@почта.рф.Потом", "EMAIL"),
        ("anna@münchen.de", "EMAIL"),
        ("用户@例子.公司", "EMAIL"),
        ("ahmed@موقع.كوم", "EMAIL"),
        ("नाम@डाटा.भारत", "EMAIL"),
        ("anna at example[.]com", "EMAIL"),
        ("Anna (at) mail.example.com", "EMAIL"),
        ("anna [AT] example (dot) co [dot] uk", "EMAIL"),
        ("4111 1111-1111 1111", "CARD"),
        ("41-11-11-11-11-11-11-11", "CARD"),
        ("DE89 3704 0044 0532 0130 00", "IBAN"),
        ("ES9121000418450200051332 CALL ME", "IBAN"),
        ("536-22-8745", "NATIONAL_ID"),
        ("AB 12 34 56 C", "NATIONAL_ID"),
        ("+1 212 555 0142", "PHONE"),
        ("+32-47-12-34-56-78", "PHONE"),
        ("(212) 555-0142", "PHONE"),
        ("10.0.0.12", "IP"),
        ("http://www.example.org", "URL"),
        ("http://www.example.org/(http://bob:hunter2@x.example", "URL_SECRET"),
        ("https://x.example/?a=b&sig=abcdef", "URL_SECRET"),
        ("0x52908400098527886E0F7030069857D2E4169EE7", "CRYPTO"),
        ("0xabcdefabcdefabcdefabcdefabcdefabcdefabcd", "CRYPTO"),
        ("AKIAIOSFODNN7EXAMPLE", "SECRET"),
        ("API key: 9f3a7b2c1d8e4f6a", "SECRET"),
    ],
)
def test_strict_shapes_are_hits(text, kind):
    assert kind in identifiers_in(f"so {text} it is")


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "DE89 3704 0044 0532 0130 01",
        "a@b, or anna@ example",
        "спасибо @ивану. Потом @анна.берг, @я, жду@дома",
        "谢谢@小明。好的,谢谢@小明...好的 ❤@小明.好的",
        "12@у.1, это@всё.5 и谢谢@john.doe你好",
        "version 1.2.3.4, on 2026-11-02 at 12:30",
        "[EMAIL_1] and [CARD_2] were here 🎉",
        "000-12-3456",
        "look at this [.] or at that (dot) there",
        "the api key is secret-and-very-long, bearer of news: 2026",
    ],
)
def test_others_are_not(text):
    assert identifiers_in(text) == []


def test_the_scan_shares_no_code_with_the_first():
    tree = ast.parse(Path(outgoing.__file__).read_text())
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert not [name for name in imported if name.startswith(("flywheel_tasks", "presidio", "phonenumbers"))]


PIECES = ["anna@example.com", "4111 1111 1111 1111", "+1 212 555 0142", "+1 555 123 4567", "(555) 123-4567"]
PIECES += ["10.0.0.12", "DE89370400440532013000", "536-22-8745", "AB123456C", "https://x.org/a", "SE123456A"]
PIECES += ["anna at example[.]com", "jo (at) example (dot) org", "api key: 9f3a7b2c1d8e4f6a"]
GAPS = [" ", ", ", "\n", " 12 ", " ok "]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(GAPS)), max_size=5))
def test_what_was_replaced_passes_the_scan(detector, parts):
    text = "".join(piece + gap for piece, gap in parts)
    hits = detector.find(text)
    assert identifiers_in(replace(text, hits, Placeholders())) == []


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from([*GAPS, "", "\u200b", "é"])), max_size=5))
def test_a_text_without_what_it_sees_passes_the_scan(parts):
    text = "".join(piece + gap for piece, gap in parts)
    left = without_identifiers(text, ["IP"], lambda kind, words: f"[{kind}]")
    assert set(identifiers_in(left)) <= {"IP"}
    assert set(identifiers_in(text)) <= {"IP"} or left != text


def test_whole_words_are_replaced_and_other_texts_stay_as_they_are():
    def mark(kind, words):
        return f"[{kind}: {len(words)}]"

    text = "see\thttps://x.example.org/a/b?c, or\n4111 1111 1111 1111!"
    assert without_identifiers(text, [], mark) == "see\t[URL: 28] or\n[CARD: 20]"
    assert without_identifiers("①\u200b", [], mark) == "①\u200b"
    assert without_identifiers("a@example.com", ["EMAIL"], mark) == "a@example.com"


def test_a_hit_names_file_row_field_and_type_and_never_the_text(tmp_path):
    rows = [{"prompt_id": "p1", "history": [{"content": "hi"}, {"content": f"card {n}"}]} for n in range(3)]
    rows[1]["history"][1]["content"] = "me: anna@example.com"
    rows[2]["user_id"] = "anna"
    write_jsonl(rows, tmp_path / "batch.jsonl")
    with pytest.raises(OutgoingError) as error:
        check({"data/annotation/batch.jsonl": tmp_path / "batch.jsonl"}, SETTINGS.policy)
    message = str(error.value)
    assert "data/annotation/batch.jsonl: row 2: history[1].content: EMAIL" in message
    assert "data/annotation/batch.jsonl: row 3: user_id: USER_ID" in message
    assert "anna" not in message
    assert [hit.type for hit in scan(tmp_path / "batch.jsonl", ["EMAIL"])] == ["USER_ID"]


def test_a_file_that_cannot_be_read_is_not_vouched_for(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(OutgoingError, match=r"rows\.csv: .* cannot vouch"):
        check({"data/x": tmp_path}, SETTINGS.policy)


def test_a_stage_with_a_hit_leaves_no_output(tmp_path, make_workspace):
    from flywheel_tasks.conversations.schemas import CARDS, PROMPTS

    root = make_workspace(tmp_path, {"split.shares": {name: float(name == "evaluation") for name in SHARES}})
    for text, stopped in (("hello", False), ("write to anna@example.com", True)):
        row = {**prompt("p1", text), "user_id": USER, "turn": 1}
        card = {"card_id": row["card_id"], "name": "Mae", "traits": [], "instructions": []}
        write_rows([card], CARDS, root / "data/curated/cards.parquet")
        write_rows([row], PROMPTS, root / "data/curated/prompts.parquet")
        vector = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4, np.float32) / 2), 4)
        table = pa.table({"prompt_id": ["p1"], "vector": vector})
        write_table(table, root / "data/curated/vectors.parquet")
        write_json({"earlier": []}, root / "inputs/splits.json")
        if stopped:
            with pytest.raises(
                OutgoingError, match=r"evaluation\.parquet: row 1: history\[0\]\.content: EMAIL"
            ):
                run_stage("split", root)
        else:
            run_stage("split", root)
            for out in GRAPH["split"].outs:
                assert (root / out).exists()
    assert "anna" not in str((root / "data/split/evaluation.parquet").read_bytes())


SHARES = ("reward_train", "reward_heldout", "policy_train", "policy_heldout", "evaluation")


def test_no_stage_is_forgotten():
    """Whatever writes data is scanned, but for these, whose reasons are in dvc.yaml."""
    private = {name for name, stage in GRAPH.items() if stage.private is not None}
    assert private == {"ingest", "validate", "assemble", "rl", "evaluate"}
    for name, stage in GRAPH.items():
        writes = any(out.startswith("data/") for out in stage.outs)
        assert bool(stage.outgoing) == (writes and name not in private)
        assert not stage.outgoing or "privacy" in stage.params, f"{name}: the scan reads privacy.policy"


def test_a_long_chain_of_labels_costs_no_square() -> None:
    """A copy of the domain at every label would take minutes here; a number of steps cannot be told from outside."""
    text = "a@a" + ".aa" * 3_000_000 + "."
    assert not outgoing._foreign(text)
