import orjson
import pyarrow.parquet as pq
from typer.testing import CliRunner

from flywheel_tasks.annotation.schemas import PAIRS
from flywheel_tasks.cli.traffic import app
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
    lines = (logs / "date=2026-03-01/persona-chat.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["source"] for line in lines] == ["user"] * 3
    assert (logs / "date=2026-03-01/rpbench.jsonl").exists()


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
