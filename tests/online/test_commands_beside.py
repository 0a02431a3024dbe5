"""Commands beside a second test, each of which names one, and the roll-back of a champion, which ends them all."""

from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel_tasks.cli import ab, registry
from flywheel_tasks.online import promotion
from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.registry_state import RegistryError
from tests.dags.small import ab_events, write_logs
from tests.online import people
from tests.online.command_line import call
from tests.online.test_launch import run_launch


def start_second(root: Path) -> None:
    """A second test, of a layer of its own, that starts after g0001's."""
    registry_ = registry_of(root)
    first = registry_.state().running("g0001").plan
    candidate = registry_.state().candidate.model_copy(
        update={"generation": "g0002", "digest": "sha256:" + "2" * 64}
    )
    arm = first.arms[1].model_copy(update={"model": "g0002", "digest": candidate.digest})
    names = {"experiment": "g0002", "generation": "g0002", "salt": "t", "layer": "other"}
    plan = first.model_copy(
        update={**names, "arms": (first.arms[0], arm), "model_digest": candidate.digest, "excludes": ()}
    )
    registry_.record_approval(
        "launch",
        generation="g0002",
        model_digest=candidate.digest,
        verdict_digest=plan.verdict_digest,
        decision="approve",
        by="ada",
    )
    registry_.start_experiment(plan, candidate, by="ada", duration=timedelta(days=7))


def test_with_two_tests_every_decision_names_one(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    start_second(root)
    by = ("--by", "ada")
    for app, words in (
        (ab.app, ("check", *by)),
        (ab.app, ("analyze", *by)),
        (ab.app, ("stop", *by, "--reason", "harm")),
        (ab.app, ("override", "eve", "--arm", "candidate", *by)),
        (registry.approve_app, ("promotion", *by)),
        (registry.app, ("rollback", *by, "--reason", "harm")),
    ):
        with pytest.raises(RegistryError, match=r"2 tests are running \(g0001, g0002\): say which"):
            call(app, root, *words)
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 200))
    shown = call(ab.app, root, "analyze", *by, "--generation", "g0001")
    assert "Next: flywheel approve promotion --generation g0001 --by NAME" in shown
    call(ab.app, root, "stop", *by, "--reason", "harm", "--generation", "g0001")
    assert [e.plan.generation for e in registry_of(root).state().all_running()] == ["g0002"]
    call(ab.app, root, "stop", *by, "--reason", "harm")  # now only one runs
    assert registry_of(root).state().all_running() == ()


def test_one_command_brings_the_champion_before_back_whatever_runs(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    start_second(root)
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 200))
    call(ab.app, root, "analyze", "--by", "ada", "--generation", "g0001")
    call(registry.approve_app, root, "promotion", "--by", "ada", "--generation", "g0001")
    words = ["rollback", "--champion", "--by", "ada", "--reason", "complaints"]
    monkeypatch.setattr(registry, "_at_a_terminal", lambda: True)
    before = registry_of(root).state()
    asked = CliRunner().invoke(registry.app, [*words, "--root", str(root)], input="n\n")
    assert "and the tests that run end, their candidates are dropped: g0002" in asked.output
    assert registry_of(root).state() == before
    shown = call(registry.app, root, *words, "--yes")
    assert "Champion: base" in shown
    assert "The test of g0002 is ended; its candidate is dropped." in shown
    state = registry_of(root).state()
    assert (state.champion.generation, state.all_running(), state.candidates) == ("base", (), {})
    ended = state.experiments["g0002"]
    assert (ended.status, ended.end_reason) == ("rolled_back", "champion rolled back: complaints")
    assert state.experiments["g0001"].status == "promoted"
    assert registry_of(root).history()[-1].detail == {"reason": "complaints", "ended": ["g0002"]}
    (card,) = (root / "registry/generations/g0002").glob("README-*.md")
    assert "champion rolled back: complaints" in card.read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConnectionError("s3 is away")])
def test_a_card_that_a_restoration_left_unkept_is_kept_by_the_repeat(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    store = registry_of(root)
    base = store.state().champion
    first = base.model_copy(update={"generation": "g0000", "digest": people.DIGEST})
    promoted = store.state().with_(champion=first, previous=base)
    store._change("promoted", "ada", {}, lambda found: promoted)
    inputs = read_json(root / "inputs/generation.json")
    write_json(
        inputs | {"champion": {"model": "g0000", "digest": first.digest}}, root / "inputs/generation.json"
    )
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    words = ["rollback", "--champion", "--by", "ada", "--reason", "complaints", "--yes", "--root", str(root)]

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(promotion, "keep_card", fails)
        shown = CliRunner().invoke(registry.app, words, env={"COLUMNS": "400"}).output
    told = "The card of g0001 is not kept: ConnectionError: s3 is away" in shown
    assert told == isinstance(error, ConnectionError)
    assert ("--champion --to base --by" in shown) == told
    assert store.state().champion == base
    assert list((root / "registry/generations/g0001").glob("README-*.md")) == []
    changes = store.history()
    assert CliRunner().invoke(registry.app, words).exit_code != 0
    assert len(list((root / "registry/generations/g0001").glob("README-*.md"))) == 1
    assert store.history() == changes
