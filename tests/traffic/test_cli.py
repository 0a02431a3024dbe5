import orjson
import pyarrow.parquet as pq
from typer.testing import CliRunner

from flywheel_tasks.annotation.schemas import PAIRS
from flywheel_tasks.cli.traffic import app
from tests.traffic.ingesting import ingest
from tests.traffic.test_importers import HEADER, character, pair, transcripts

ASKED = "\n\nHuman: Hi\n\nAssistant: "


def call(*arguments):
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(argument) for argument in arguments])


def test_hh_rlhf_writes_pairs_and_tells_of_skipped_rows(tmp_path):
    path, out = tmp_path / "in.jsonl", tmp_path / "pairs.parquet"
    transcripts(path, pair(ASKED + "a", ASKED + "b"), b"no json\n")
    result = call("hh-rlhf", path, "--out", out)
    assert result.exit_code == 0
    assert "1 preference pairs, 1 rows skipped" in result.stdout
    assert f"{path}:2: not_json" in result.stderr
    assert pq.read_table(out).schema.equals(PAIRS)


def test_a_file_without_a_good_row_is_an_error_and_writes_nothing(tmp_path):
    path, out = tmp_path / "in.jsonl", tmp_path / "pairs.parquet"
    transcripts(path, *[b"no json\n"] * 30)
    result = call("hh-rlhf", path, "--out", out)
    assert result.exit_code == 1
    assert "no preference pairs found (30 rows skipped)" in result.stderr
    assert "and 10 more" in result.stderr
    assert "Traceback" not in result.output
    assert not out.exists()


def test_persona_chat_and_rpbench_write_partitions(tmp_path):
    csv, characters = tmp_path / "valid.csv", tmp_path / "characters.jsonl"
    csv.write_text(f'{HEADER}a,b,"User 1: Hi!\nUser 2: Hello."\n')
    transcripts(characters, character())
    logs = tmp_path / "logs"
    assert (
        call("persona-chat", csv, "--out", logs, "--start", "2026-03-01", "--source", "user").exit_code == 0
    )
    assert call("rpbench", characters, "--out", logs, "--start", "2026-03-01").exit_code == 0
    characters, chat = sorted((logs / "date=2026-03-01").iterdir(), reverse=True)
    lines = chat.read_bytes().splitlines()
    assert [orjson.loads(line)["source"] for line in lines] == ["user"] * 3
    assert (chat.name[:13], characters.name[:8]) == ("persona-chat-", "rpbench-")


def test_a_second_file_of_a_set_is_imported_beside_the_first_one_and_the_same_again_changes_nothing(tmp_path):
    """Both in one folder of logs, with the same card at other times: no event is lost or contradicts another."""
    logs, kept = tmp_path / "data/logs", {}
    greeting = 'a,b,"User 1: Hi!\nUser 2: Hello."\n'
    for name, rows in (
        ("one", greeting),
        ("two", 'a,c,"User 1: Ho!\nUser 2: Hum."\n' + greeting),
        ("copy", greeting),
    ):
        csv, characters = tmp_path / f"{name}.csv", tmp_path / f"{name}.jsonl"
        csv.write_text(HEADER + rows)
        transcripts(characters, character(name_text="Ann" if name == "two" else "Ben"))
        for command, file in (("persona-chat", csv), ("rpbench", characters)):
            assert call(command, file, "--out", logs, "--start", "2026-03-01").exit_code == 0
        before, kept = kept, {path: path.read_bytes() for path in logs.rglob("*.jsonl")}
        assert before.items() <= kept.items()
        assert len(kept) == (2 if name == "one" else 4)
    metrics, tables, _ = ingest(tmp_path)
    assert (metrics["duplicates"], metrics["quarantined"]) == (0, {"total": 0})
    assert len({row["conversation_id"] for row in tables["messages"]}) == 3
    assert len({row["message_id"] for row in tables["messages"]}) == 6
    names = sorted({(row["card_id"], row["name"]) for row in tables["cards"]})
    assert sum(name in ("Ann", "Ben") for _, name in names) == 2


def test_wrong_files_and_options_are_explained_without_a_traceback(tmp_path):
    csv = tmp_path / "valid.csv"
    csv.write_text("a,b\n")
    for arguments, message in {
        ("persona-chat", csv, "--out", tmp_path / "logs"): "has no column user 1 personas",
        ("rpbench", tmp_path / "absent", "--out", tmp_path / "logs"): "does not exist",
        ("persona-chat", csv, "--out", tmp_path, "--start", "soon"): "soon",
        ("persona-chat", csv, "--out", tmp_path, "--source", "staff"): "staff",
    }.items():
        result = call(*arguments)
        assert result.exit_code != 0
        assert message in result.stderr
        assert result.exception is None or isinstance(result.exception, SystemExit)
