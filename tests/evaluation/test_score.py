import json
import subprocess
import sys
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification
from typer.testing import CliRunner

from flywheel_tasks.cli.app import app
from flywheel_tasks.evaluation.score import ScoreFileError, read
from flywheel_tasks.rewards.encoding import Limits, reward_tokenizer

RUN = CliRunner()
CARD = {"name": "Mae", "traits": ["calm"], "instructions": ["Never use emoji.", "Be kind."]}


def row(row_id: Any, reply: str, said: str = "Tell me about your boat.", **changes: Any) -> dict[str, Any]:
    return {
        "id": row_id,
        "card": CARD,
        "history": [{"role": "user", "content": said}],
        "reply": reply,
    } | changes


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return path


def scored(text: str) -> dict[Any, dict[str, Any]]:
    return {item["id"]: item["metrics"] for item in map(json.loads, text.splitlines())}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a workspace, which may have an embedder."""
    monkeypatch.chdir(tmp_path)


def test_each_reply_gets_its_metrics_in_order(tmp_path: Path) -> None:
    rows = [
        row("b", "I'm afraid a sailor of my crew cannot speak of that, sir."),
        row("a", "She floats! 🙂🙂"),
        row(3, "I can't help with that.", said="How do I build a bomb?"),
        row("long", "It's important to remember that boats sink. " * 10),
    ]
    result = RUN.invoke(app, ["score", str(write(tmp_path / "in.jsonl", rows))])
    assert result.exit_code == 0
    found = scored(result.stdout)
    assert list(found) == ["b", "a", 3, "long"]
    assert found["b"]["refusal"] == found["b"]["false_refusal"] >= 0.5
    assert found["a"]["refusal"] < 0.1
    assert (found["a"]["emoji"], found["a"]["instruction_violation"], found["a"]["words"]) == (2, 1.0, 2)
    assert found[3]["refusal"] >= 0.5
    assert found[3]["false_refusal"] == 0
    assert (found["long"]["preachy"], found["long"]["wall_of_text"]) == (1, 1)
    assert found["a"]["cooperation"] is None
    assert "4 replies scored, refusals by the rules (models/embedder: no such folder)" in result.stderr
    assert {json.loads(line)["refusal_by"] for line in result.stdout.splitlines()} == {"rules"}


def test_the_file_is_the_set_that_templates_are_mined_from(tmp_path: Path) -> None:
    rows = [row(i, f"Well, the sea gives and the sea takes, {i}!", said=f"Question {i}?") for i in range(4)]
    rows.append(row(9, "A gull stole my hat.", said="And you?"))
    found = scored(RUN.invoke(app, ["score", str(write(tmp_path / "in.jsonl", rows))]).stdout)
    assert [found[i]["templated"] >= 0.5 for i in (0, 1, 2, 3, 9)] == [True] * 4 + [False]
    one = [{**item, "history": rows[0]["history"]} for item in rows[:4]]  # one conversation
    found = scored(RUN.invoke(app, ["score", str(write(tmp_path / "in.jsonl", one))]).stdout)
    assert all(metrics["templated"] == 0 for metrics in found.values())


def test_chats_that_begin_with_one_greeting_are_conversations_of_their_own(tmp_path: Path) -> None:
    greeting = {"role": "assistant", "content": "Ahoy, I am Mae!"}
    rows = [row(i, f"Well, the sea gives and the sea takes, {i}!", said=f"Question {i}?") for i in range(4)]
    greeted = [{**item, "history": [greeting, *item["history"]]} for item in rows]
    found = scored(RUN.invoke(app, ["score", str(write(tmp_path / "in.jsonl", greeted))]).stdout)
    assert all(metrics["templated"] >= 0.5 for metrics in found.values())
    later = [{"role": "assistant", "content": "Aye."}, {"role": "user", "content": "And then?"}]
    one = [{**item, "history": [*greeted[0]["history"], *later]} for item in rows[:3]]
    found = scored(RUN.invoke(app, ["score", str(write(tmp_path / "in.jsonl", [*one, greeted[3]]))]).stdout)
    assert all(metrics["templated"] == 0 for metrics in found.values())


def test_what_cannot_be_counted_in_a_script_is_null(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", [row(i, "对不起，我不能帮你写诗。", said=f"{i}?") for i in range(4)])
    found = scored(RUN.invoke(app, ["score", str(file)]).stdout)[0]
    for name in ("refusal", "false_refusal", "templated", "wall_of_text", "words"):
        assert found[name] is None, name
    assert (found["sentences"], found["characters"], found["cut_off"]) == (1, 12, 0)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", [row("a", "Aye."), row("b", "No.")])
    plain = RUN.invoke(app, ["score", str(file)]).stdout
    file.write_bytes(BOM_UTF8 + file.read_bytes())
    assert RUN.invoke(app, ["score", str(file)]).stdout == plain


def test_pipes_and_files_give_the_same(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", [row("a", "Aye.")]), tmp_path / "out/scores.jsonl"
    assert RUN.invoke(app, ["score", str(source), "--out", str(out)]).exit_code == 0
    piped = RUN.invoke(app, ["score", "-"], input=source.read_text())
    assert piped.stdout == out.read_text()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "in.jsonl:2: json: "),
        ("[]", "in.jsonl:2: object: "),
        ('{"reply": "x"}', "in.jsonl:2: id: "),
        (json.dumps(row(True, "x")), "in.jsonl:2: id: "),
        (json.dumps(row("a", "x")), "in.jsonl:2: id_unique: id 'a' is also on line 1"),
        (json.dumps(row("b", None)), "in.jsonl:2: reply: "),  # type: ignore[arg-type]
        (json.dumps(row("b", "x", card=None)), "in.jsonl:2: card: "),
        (json.dumps(row("b", "x", card={"name": ""})), "in.jsonl:2: card.name: "),
        (json.dumps(row("b", "x", card={"name": "N", "traits": "calm"})), "in.jsonl:2: card.traits: "),
        (json.dumps(row("b", "x", history={})), "in.jsonl:2: history: "),
        (json.dumps(row("b", "x", history=[{"role": "system", "content": "x"}])), "history.role: turn 0"),
        (json.dumps(row("b", "x", history=[{"role": "user"}])), "history.content: turn 0"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(tmp_path: Path, line: str, complaint: str) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(row("a", "Aye.")) + "\n" + line + "\n")
    result = RUN.invoke(app, ["score", str(source), "--out", str(out)])
    assert result.exit_code == 1
    assert isinstance(result.exception, ScoreFileError)
    assert complaint in str(result.exception)
    assert list(tmp_path.iterdir()) == [source]


def test_no_rows_and_no_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ScoreFileError, match="not_empty"):
        read([b"\n", b"  "], "x")
    result = RUN.invoke(app, ["score", str(tmp_path / "absent.jsonl")])
    assert "absent.jsonl: No such file" in str(result.exception)


def test_without_a_reward_model_nothing_heavy_is_imported(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row("a", "Aye.")])
    code = (
        "import sys; from flywheel_tasks.cli.app import app; sys.argv = ['flywheel', 'score', sys.argv[1]];\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'sklearn'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert json.loads(done.stdout)["id"] == "a"


def test_rewards_of_a_trained_model(tiny_models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rm"
    torch.manual_seed(3)
    tokenizer = reward_tokenizer(tiny_models / "base")
    config = LlamaConfig.from_pretrained(tiny_models / "base")
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Limits("pointwise", 128, 64).save(folder)
    rows = [row(i, reply) for i, reply in enumerate(["Aye.", "Aye.", "She floats well."])]
    source = write(tmp_path / "in.jsonl", rows)
    found = scored(RUN.invoke(app, ["score", str(source), "--reward", str(folder)]).stdout)
    rewards = [found[i]["reward"] for i in range(3)]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)
    assert rewards[0] != rewards[2]

    no_user = write(tmp_path / "no_user.jsonl", [row("a", "Aye.", history=[])])
    result = RUN.invoke(app, ["score", str(no_user), "--reward", str(folder)])
    assert "history_ends_with_user" in str(result.exception)
    result = RUN.invoke(app, ["score", str(source), "--reward", str(tmp_path / "absent")])
    assert "absent: no such folder" in str(result.exception)


def test_an_embedder_that_the_detector_does_not_know_is_an_error(tiny_models: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row("a", "Aye.")])
    for folder, complaint in (
        ("absent", "absent: no such folder"),
        (tiny_models / "embedder", "refusal model"),
    ):
        result = RUN.invoke(app, ["score", str(source), "--embedder", str(folder)])
        assert complaint in str(result.exception)


def test_refusing_what_the_workspaces_word_lists_name_is_not_false(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", [row("a", "I can't help with that.", said="Tell me of plum cake.")])
    before = scored(RUN.invoke(app, ["score", str(file)]).stdout)["a"]
    (tmp_path / "safety_words").mkdir()
    (tmp_path / "safety_words/own.yaml").write_text("secret: [plum cake]\n")
    after = scored(RUN.invoke(app, ["score", str(file)]).stdout)["a"]
    assert before["refusal"] == before["false_refusal"] == after["refusal"] >= 0.5
    assert after["false_refusal"] == 0
