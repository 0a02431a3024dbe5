from pathlib import Path

from typer.testing import CliRunner

from flywheel_tasks.cli.app import app
from flywheel_tasks.serving.keys import KeyRing, read_keys
from tests.serving.conftest import make_root


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    root = make_root(tmp_path, "http://unused")
    runner = CliRunner()
    made = runner.invoke(app, ["serve", "keys", "add", "ann", "--role", "staff", "--root", str(root)])
    key = made.stdout.splitlines()[-1]
    path = root / ".flywheel/serve/keys.json"
    record = KeyRing(read_keys(path)).find(key)
    assert record is not None
    assert (record.name, record.role, record.user_id) == ("ann", "staff", "ann")
    runner.invoke(app, ["serve", "keys", "add", "shop", "--many-users", "--root", str(root)])
    assert [item.user_id for item in read_keys(path)] == ["ann", None]
    listed = runner.invoke(app, ["serve", "keys", "list", "--root", str(root)]).stdout
    assert record.id in listed
    assert key not in listed
    runner.invoke(app, ["serve", "keys", "revoke", record.id, "--root", str(root)])
    assert KeyRing(read_keys(path)).find(key) is None


def test_without_characters_it_says_so_and_does_not_start(tmp_path: Path) -> None:
    from flywheel_tasks.serving.cards import CardsError

    root = make_root(tmp_path, "http://unused", cards="none.jsonl")
    found = CliRunner().invoke(app, ["serve", "--workers", "2", "--root", str(root)]).exception
    assert isinstance(found, CardsError)
    assert "serve.cards" in str(found)


def test_a_gateway_does_not_write_into_simulated_logs(tmp_path: Path) -> None:
    import pytest

    from flywheel_tasks.serving.gateway import GatewayError, open_gateway

    root = make_root(tmp_path, "http://unused")
    (root / "data/served").mkdir(parents=True)
    (root / "data/served/simulated.json").write_text("{}")
    with pytest.raises(GatewayError, match="holds simulated traffic"):
        open_gateway(root)
