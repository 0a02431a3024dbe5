"""A local generation whose launch somebody has declined waits for nobody any more, and says so."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel_tasks.cli.app import app
from flywheel_tasks.online.approval import launch_request, record_answer
from flywheel_tasks.pipeline import local, runner
from tests.online.conftest import root, write_verdict

__all__ = ["root"]


@pytest.fixture
def gated(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace after the gate, in which people decide; DVC is not run."""
    params = root / "params.yaml"
    text = re.sub(r"(approval:\n  local:) \w+", r"\1 human", params.read_text())
    params.write_text(text.replace("source: simulated", "source: files"))
    monkeypatch.setattr(runner, "reproduce", lambda root, target: None)
    monkeypatch.setattr(local, "open_generation", lambda root, **options: "g0001")
    return root


def run(root: Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["generation", "run", "--root", str(root)], catch_exceptions=False)
    return done.exit_code, " ".join(done.output.split())


@pytest.mark.parametrize(("decision", "by"), [("reject", "ada [/ops]"), ("timeout", "nobody")])
def test_a_no_is_told_and_is_no_success(gated: Path, decision: str, by: str) -> None:
    code, shown = run(gated)
    assert (code, "Waiting for a person" in shown) == (0, True)
    record_answer(gated, launch_request(gated), decision=decision, by=by)
    code, shown = run(gated)
    assert (code, "Waiting for a person" in shown) == (3, False)
    assert f"not approved: {decision} by {by}, 20" in shown
    assert "Next: flywheel generation next" in shown


def test_a_no_to_another_verdict_is_none_to_this_one(gated: Path) -> None:
    record_answer(gated, launch_request(gated), decision="reject", by="ada")
    write_verdict(gated, "warn")
    assert run(gated)[0] == 0
