"""The commands, called as a person calls them."""

from pathlib import Path

from typer.testing import CliRunner


def call(app, root: Path, *words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*words, "--root", str(root)], env={"COLUMNS": "400"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output
