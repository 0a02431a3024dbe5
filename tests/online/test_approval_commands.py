"""A person's yes or no to a launch, by a command: of what it is asked, and when it gets no answer."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel_tasks.cli import ab, registry
from flywheel_tasks.online.approval import ApprovalError, GateBlockedError, registry_of
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.registry_state import RegistryError
from tests.online.command_line import call
from tests.online.conftest import write_verdict
from tests.online.test_launch import run_launch


def test_a_blocked_model_cannot_be_approved(root: Path) -> None:
    write_verdict(root, "block")
    with pytest.raises(GateBlockedError, match=r"win rate above 0\.65"):
        call(registry.approve_app, root, "launch", "--by", "ada")
    assert registry_of(root).state().approvals == ()


def test_a_no_to_a_launch_declines_the_model(root: Path) -> None:
    for _ in range(2):
        call(registry.approve_app, root, "launch", "--by", "ada", "--reject")
    declined = [change for change in registry_of(root).history() if change.kind == "declined"]
    assert [(change.by, change.detail["reason"]) for change in declined] == [
        ("ada", "launch not approved: reject by ada")
    ]
    assert "Not launched: launch not approved: reject by ada." in call(registry.app, root, "card", "g0001")


def test_without_the_approvers_text_nobody_is_asked(root: Path) -> None:
    (root / "gate/approval.md").unlink()  # as after `flywheel forget`
    with pytest.raises(ApprovalError, match=r"gate/approval\.md is gone: run stage gate again"):
        call(registry.approve_app, root, "launch", "--by", "ada")


def test_a_no_to_a_launch_that_has_happened_is_no_quiet_success(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada", "--generation", "g0001")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    before = registry_of(root).history()
    with pytest.raises(
        RegistryError, match="g0001 is running already; to end it: flywheel ab stop --generation"
    ):
        call(registry.approve_app, root, "launch", "--by", "ada", "--reject")
    call(ab.app, root, "stop", "--by", "ada", "--reason", "wrong answer")
    with pytest.raises(RegistryError, match="g0001 has been tested already"):
        call(registry.approve_app, root, "launch", "--by", "ada", "--reject")
    assert len(registry_of(root).history()) == len(before) + 1


def test_another_generation_than_the_one_named_gets_no_answer(root: Path) -> None:
    with pytest.raises(ApprovalError, match="the workspace holds g0001, not g0002"):
        call(registry.approve_app, root, "launch", "--by", "ada", "--generation", "g0002")


def test_at_a_terminal_a_person_is_asked_after_they_have_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_at_a_terminal", lambda: True)
    words = ["launch", "--by", "ada", "--root", str(root)]
    before = registry_of(root).history()
    answered = CliRunner().invoke(registry.approve_app, words, input="n\n")
    assert answered.exit_code == 1
    assert "Approve the launch of g0001 as ada? [y/N]" in answered.output
    assert registry_of(root).history() == before
    answered = CliRunner().invoke(registry.approve_app, words, input="y\n")
    assert "approved" in answered.output
    call(registry.approve_app, root, "launch", "--by", "ada", "--yes")


def test_what_grew_from_a_champion_that_was_dropped_is_not_put_up_for_approval(root: Path) -> None:
    inputs = read_json(root / "inputs/generation.json")
    inputs["champion"] = {"model": "g0000", "digest": "sha256:" + "9" * 64}
    write_json(inputs, root / "inputs/generation.json")
    call(registry.approve_app, root, "launch", "--by", "ada", "--reject")  # a no, any model may get
    with pytest.raises(
        ApprovalError, match=r"g0001 was made from g0000, which is not champion any more \(base is\)"
    ):
        call(registry.approve_app, root, "launch", "--by", "ada")


def test_a_generation_that_was_declined_and_made_again_says_so(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada", "--reject")
    shown = call(registry.approve_app, root, "launch", "--by", "ada")
    assert "Made again" not in shown, "of this verdict, the answer was changed"
    call(registry.approve_app, root, "launch", "--by", "ada", "--reject")
    write_verdict(root, "warn")
    shown = call(registry.approve_app, root, "launch", "--by", "ada")
    assert "g0001 has been declined once before" in shown
