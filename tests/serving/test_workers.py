"""What the workers of a gateway leave for each other, and workers that start at the same moment."""

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.serving import workers
from flywheel_tasks.serving.metrics import Metrics, metrics_folder
from flywheel_tasks.serving.turns import TurnIndex
from flywheel_tasks.serving.workers import lives, process_name
from tests.serving.conftest import Live, start_experiment, wait_for


def name_of_a_dead_process() -> str:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        return process_name(process.pid)


def lines(metrics: Metrics, start: str) -> list[str]:
    return [line for line in metrics.render().splitlines() if line.startswith(start)]


def test_a_process_has_a_name_of_its_own() -> None:
    dead = name_of_a_dead_process()
    assert lives(process_name())
    assert lives(process_name(os.getppid()))
    same_pid = f"{os.getpid()}-1"
    assert not any(map(lives, (dead, same_pid, str(os.getpid()), "", "self-1", "999999999-None")))
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not lives(process_name(process.pid)), "it has ended, though nobody has asked how"


def test_counters_of_all_workers_are_added_up(tmp_path: Path) -> None:
    one, other = Metrics(tmp_path, process_name()), Metrics(tmp_path, process_name(os.getppid()))
    for metrics in (one, other):
        metrics.add("flywheel_signals_total", signal='a"b\n')
        metrics.observe("flywheel_request_seconds", 0.02, path="/")
        metrics.set("flywheel_in_flight", 3)
        metrics.publish()
    text = one.render()
    assert 'flywheel_signals_total{signal="a\\"b\\n"} 2' in text
    assert 'flywheel_request_seconds_bucket{path="/",le="0.01"} 0' in text
    assert 'flywheel_request_seconds_bucket{path="/",le="0.025"} 2' in text
    assert 'flywheel_request_seconds_bucket{path="/",le="+Inf"} 2' in text
    assert f'flywheel_in_flight{{worker="{process_name(os.getppid())}"}} 3' in text


def test_a_dead_worker_leaves_what_it_counted_and_nothing_that_is_so_now(tmp_path: Path) -> None:
    living, dead = Metrics(tmp_path, process_name()), Metrics(tmp_path, name_of_a_dead_process())
    for metrics in (living, dead):
        metrics.add("flywheel_rate_limited_total")
        metrics.set("flywheel_champion_overdue", 1.0)
        metrics.publish()
    assert lines(living, "flywheel_rate_limited_total") == ["flywheel_rate_limited_total 2"]
    assert len(lines(living, "flywheel_champion_overdue")) == 1


def test_a_model_that_has_gone_is_in_no_gauge(live: Callable[..., Live], root: Path) -> None:
    start_experiment(root)
    gateway = live()
    gateway.client.get("/metrics")
    registry_of(root).rollback("g0001", "it was worse", by="ada")
    wait_for(lambda: gateway.gateway.fleet.states() == {"base": "ready"})
    gateway.client.get("/metrics")
    assert [line.split(",")[0] for line in lines(gateway.gateway.metrics, "flywheel_model_ready")] == [
        'flywheel_model_ready{model="base"'
    ]


def test_counters_of_gateways_that_ended_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = metrics_folder(tmp_path, os.getpid())
    Metrics(folder, process_name()).publish()
    assert metrics_folder(tmp_path, os.getpid()) == folder
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(workers, "_started", lambda pid: "7")  # started anew, with the same id as before
    again = metrics_folder(tmp_path, os.getpid())
    assert list(again.iterdir()) == []
    assert list((tmp_path / "metrics").iterdir()) == [again]


def _make_folder(state: Path) -> None:
    metrics_folder(state, os.getppid())


def _open_index(state: Path) -> None:
    index = TurnIndex(state / "turns.sqlite")
    index.forget(30, 10)
    index.close()


def _start(step: Callable[[Path], None], state: Path, barrier: Any, told: Any) -> None:
    barrier.wait()
    try:
        step(state)
        told.put(None)
    except Exception as error:
        told.put(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("step", [_make_folder, _open_index])
def test_workers_that_start_together_do_not_meet(tmp_path: Path, step: Callable[[Path], None]) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(10):
        state = tmp_path / str(number)
        for pid in range(4):
            old = state / f"metrics/399999{pid}"
            old.mkdir(parents=True)
            for worker in range(4):
                (old / f"w{worker}.json").write_text("{}")
        barrier, told = context.Barrier(4), context.Queue()
        started = [context.Process(target=_start, args=(step, state, barrier, told)) for _ in range(4)]
        for process in started:
            process.start()
        assert [told.get(timeout=60) for _ in started] == [None] * 4
        for process in started:
            process.join()


def test_the_index_waits_for_another_worker_that_prepares_it(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # SQLite itself waits for no such one
    ends = threading.Timer(0.3, other.execute, ["COMMIT"])
    ends.start()
    index = TurnIndex(path)
    assert index._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    index.close()
    ends.join()
    other.close()
