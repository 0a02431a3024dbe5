"""What people write into the registry is shown as they wrote it, and a rollback leaves the model card."""

from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel_tasks.cli import ab, registry
from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.objects import PlaceError, open_store
from flywheel_tasks.storage.registry_state import Arm, GuardrailCheck, ModelRef, Plan
from tests.conftest import build_workspace

NAME = "ada [/ops] :smile:"
WORDS = "worse for [/b] users of [character] :warning:"


def model(generation: str) -> ModelRef:
    return ModelRef(
        generation=generation,
        digest=bytes_digest(generation.encode()),
        dvc=None,
        code_version="x",
        data_version="x",
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace whose registry has a running test, with a look that gave a reason."""
    build_workspace(tmp_path)
    found = registry_of(tmp_path)
    base, candidate, verdict = model("base"), model("g0001"), bytes_digest(b"verdict")
    found.bootstrap(base, by=NAME)
    shown = {"generation": "g0001", "model_digest": candidate.digest, "verdict_digest": verdict}
    found.record_approval("launch", decision="approve", by=NAME, **shown)
    arms = (
        Arm(name="control", share=0.1, model="base", digest=base.digest),
        Arm(name="candidate", share=0.1, model="g0001", digest=candidate.digest),
    )
    plan = Plan(
        experiment="g0001",
        generation="g0001",
        salt="s",
        layer="policy",
        arms=arms,
        verdict_digest=verdict,
        model_digest=candidate.digest,
    )
    started = found.start_experiment(plan, candidate, by=NAME, duration=timedelta(days=7))
    look = GuardrailCheck(
        day=0, at=started.started_at, result="unknown", digest=bytes_digest(b"look"), reasons=(WORDS,)
    )
    found.record_check("g0001", look, by=NAME)
    return tmp_path


def call(app, root: Path, *words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--root", str(root)], env={"COLUMNS": "400"})
    if result.exception is not None:
        raise result.exception
    return result.output


def test_brackets_and_colons_in_free_text_are_text(root: Path) -> None:
    shown = call(ab.app, root, "status")
    assert f"started by {NAME}" in shown
    assert f"day 1: unknown: {WORDS}" in shown
    call(registry.app, root, "rollback", "--by", NAME, "--reason", WORDS)
    history = call(registry.app, root, "history")
    assert history.count(NAME) >= 4
    assert WORDS in history
    assert "g0001: rolled_back" in call(registry.app, root, "show")


def test_a_rollback_by_command_keeps_the_card(root: Path) -> None:
    call(registry.app, root, "rollback", "--by", "ada", "--reason", "complaints")
    (name,) = [key for key in open_store("registry", root).list("generations/g0001/") if "README-" in key]
    assert "rolled back: complaints" in open_store("registry", root).get(name).decode()
    assert registry_of(root).state().experiments["g0001"].status == "rolled_back"


def test_a_generation_that_can_be_none_is_an_error_of_ours(root: Path) -> None:
    with pytest.raises(PlaceError, match="not an object key"):
        call(registry.app, root, "card", "../x")
