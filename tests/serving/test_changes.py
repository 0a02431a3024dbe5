"""Keys and cards that change while the gateway runs: a look that fails is made again, and none waits for another."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.serving import gateway as module
from flywheel_tasks.serving.keys import revoke_key
from flywheel_tasks.serving.remembered import RememberedRegistry
from flywheel_tasks.storage.registry import Registry, open_registry
from flywheel_tasks.storage.registry_state import RegistryError, State
from tests.serving.conftest import CARDS, VERDICT, Live, start_experiment, wait_for, write_cards
from tests.serving.conftest import model as ref_of

Start = Callable[..., Live]


def revoke_ann(gateway: Live) -> None:
    revoke_key(gateway.root / ".flywheel/serve/keys.json", gateway.keys["ann"].split("-")[1])


def fail_once(real: Callable[[Path], Any]) -> tuple[Callable[[Path], Any], list[Path]]:
    calls: list[Path] = []

    def read(path: Path) -> Any:
        calls.append(path)
        if len(calls) == 1:
            raise OSError(23, "Too many open files in system")
        return real(path)

    return read, calls


def test_a_revoked_key_ends_though_its_first_look_failed(
    live: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = live()
    read, calls = fail_once(module.read_keys)
    monkeypatch.setattr(module, "read_keys", read)
    assert gateway.chat("Hi", role="ann").status_code == 200
    revoke_ann(gateway)
    wait_for(lambda: gateway.chat("Hi", role="ann").status_code == 401)
    assert len(calls) == 2  # and not again while nothing changes


def test_new_cards_come_though_their_first_look_failed(
    live: Start, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = live()
    read, _ = fail_once(module.load_cards)
    monkeypatch.setattr(module, "load_cards", read)
    new = {**CARDS[0], "event_id": "e-card-nora", "card_id": "nora", "name": "Nora"}
    write_cards(root, [*CARDS, new])
    wait_for(lambda: gateway.chat("Hi", model="character:nora").status_code == 200)


def test_a_registry_that_hangs_keeps_no_key_alive(live: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = live()
    registry = gateway.gateway._registry
    state, hangs, ends = registry.state, threading.Event(), threading.Event()

    def hang() -> Any:
        hangs.set()
        ends.wait(60)
        return state()

    monkeypatch.setattr(registry, "state", hang)
    try:
        assert hangs.wait(30)
        revoke_ann(gateway)
        wait_for(lambda: gateway.chat("Hi", role="ann").status_code == 401)
    finally:
        ends.set()


def test_a_gateway_that_starts_while_the_registry_is_out_of_reach_serves_what_it_said_last(
    live: Start, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert live().chat("Hi").status_code == 200

    def gone(self: Registry) -> tuple[int, State]:
        raise ConnectionError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "head", gone)
        again = live()
        assert again.chat("Hi").status_code == 200
        assert "its last known state is served" in caplog.text
    start_experiment(root)
    wait_for(lambda: bool(again.gateway.rollout and again.gateway.rollout.running))
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "head", gone)
        with pytest.raises(ConnectionError):  # what is known by now is newer than what is kept
            again.gateway._registry.state()


def test_without_a_word_of_the_registry_nobody_is_served(
    live: Start, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Registry) -> tuple[int, State]:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(Registry, "head", gone)
    kept = root / ".flywheel/serve/registry.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text('{"champion": 5}')
    assert live().chat("Hi").status_code == 503


def test_a_folder_that_is_not_mounted_is_no_empty_registry(
    live: Start, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = live()
    start_experiment(root)
    wait_for(lambda: bool(first.gateway.rollout and first.gateway.rollout.running))
    kept = (root / ".flywheel/serve/registry.json").read_bytes()
    registry, away = root / "registry", root / "registry.away"
    registry.rename(away)
    wait_for(lambda: "it has 0 changes and had 3 before: is its place mounted?" in caplog.text)
    again = live()
    assert (first.chat("Hi").status_code, again.chat("Hi").status_code) == (200, 200)
    assert "its last known state is served" in caplog.text
    assert (root / ".flywheel/serve/registry.json").read_bytes() == kept
    away.rename(registry)
    registry_of(root).rollback("g0001", "it was worse", by="ada")
    for gateway in (first, again):
        wait_for(lambda one=gateway: bool(one.gateway.rollout and not one.gateway.rollout.running))


def test_a_registry_with_a_shorter_history_is_another_one(tmp_path: Path) -> None:
    kept = tmp_path / "registry.json"
    long, short = (open_registry(name, tmp_path) for name in ("long", "short"))
    for registry in (long, short):
        registry.bootstrap(ref_of("base"), by="ada")
    approval = {"model_digest": VERDICT, "verdict_digest": VERDICT, "decision": "reject", "by": "ada"}
    known = long.record_approval("launch", generation="g0001", **approval)
    assert RememberedRegistry(long, kept).state() == known
    assert RememberedRegistry(short, kept).state() == known, "a gateway that has just been started"
    running = RememberedRegistry(long, kept)
    running.state()
    running._registry = short
    with pytest.raises(RegistryError, match="it has 1 changes and had 2 before"):
        running.state()
    kept.unlink()
    assert RememberedRegistry(short, kept).state() == short.state()


def test_what_a_gateway_kept_that_kept_the_state_alone_is_read(tmp_path: Path) -> None:
    kept, state = tmp_path / "registry.json", State(champion=ref_of("base"))
    kept.write_text(state.model_dump_json())
    assert RememberedRegistry(open_registry("nowhere", tmp_path), kept).state() == state
