"""Log files: sealed whole, recovered whole, never read before."""

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from flywheel_tasks.serving import journal as module
from flywheel_tasks.serving.journal import Journal, JournalError, recover, unsealed
from flywheel_tasks.traffic.logs import LogsError, pin_logs

NOON = 1_793_620_800.0  # 2026-11-02 12:00 UTC
LINES = [b'{"a":1}', b'{"a":2}']


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def files(folder: Path, pattern: str = "date=*/*") -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern))


def contents(folder: Path) -> list[bytes]:
    paths = [folder / item["path"] for item in pin_logs(str(folder), Path())["partitions"]]
    return [line for path in paths for line in path.read_bytes().splitlines()]


def test_readers_see_a_file_only_when_its_window_is_over(tmp_path: Path) -> None:
    clock = Clock()
    writer = Journal(tmp_path, 60, now=clock)
    writer.write(LINES)
    with pytest.raises(LogsError, match="no logs"):
        pin_logs(str(tmp_path), Path())
    assert writer.seconds_left() == 60
    clock.now += 59.9
    writer.write(LINES)
    assert len(files(tmp_path, "date=*/.open-*")) == 1
    clock.now += 0.2
    writer.roll()
    assert contents(tmp_path) == LINES * 2
    assert files(tmp_path, "date=*/.open-*") == []


def test_a_writer_looks_for_dead_ones_of_its_own_days_only(tmp_path: Path) -> None:
    """The whole of a long history is looked through at the start, not while requests wait."""
    clock = Clock()
    for day in ("2026-10-01", "2026-11-02"):
        (tmp_path / f"date={day}").mkdir()
        (tmp_path / f"date={day}/.open-dead.jsonl").write_bytes(LINES[0] + b"\n")
    writer = Journal(tmp_path, 60, now=clock)
    writer.write(LINES)
    clock.now += 60
    writer.roll()
    assert files(tmp_path, "date=*/.open-*") == ["date=2026-10-01/.open-dead.jsonl"]
    writer.close()
    assert len(recover(tmp_path)) == 1


def test_a_new_day_is_a_new_folder_and_its_first_file_has_the_heading(tmp_path: Path) -> None:
    clock = Clock()
    writer = Journal(tmp_path, 3600, heading=lambda: [b'{"card":1}'], now=clock)
    for _ in range(3):
        writer.write(LINES[:1])
        clock.now += 3600
    clock.now += 12 * 3600
    writer.write(LINES[:1])
    writer.close()
    assert {name.split("/")[0] for name in files(tmp_path)} == {"date=2026-11-02", "date=2026-11-03"}
    assert contents(tmp_path) == [b'{"card":1}', *LINES[:1] * 3, b'{"card":1}', LINES[0]]


def write_and_die(folder: Path, tail: bytes) -> None:
    writer = Journal(folder, 60)
    writer.write(LINES)
    assert writer._handle is not None
    os.write(writer._handle, tail)
    os._exit(9)


@pytest.mark.parametrize("tail", [b"", b'{"a":3', b"\0\0\0\n\0", b'{"a":3}extra\n'])
def test_what_a_dead_writer_left_is_sealed_without_its_broken_end(tmp_path: Path, tail: bytes) -> None:
    process = multiprocessing.get_context("spawn").Process(target=write_and_die, args=(tmp_path, tail))
    process.start()
    process.join()
    assert len(recover(tmp_path)) == 1
    assert contents(tmp_path) == LINES
    torn = [path.read_bytes() for path in tmp_path.glob("date=*/.torn-*")]
    assert torn == ([tail] if tail else [])
    assert recover(tmp_path) == []


def test_a_file_with_nothing_whole_is_put_aside_entirely(tmp_path: Path) -> None:
    day = tmp_path / "date=2026-11-02"
    day.mkdir()
    (day / ".open-gateway-1.jsonl").write_bytes(b'{"a":')
    assert recover(tmp_path) == []
    assert files(tmp_path, "date=*/.*") == ["date=2026-11-02/.torn-gateway-1.jsonl"]


def test_what_readers_pass_over_is_listed(tmp_path: Path) -> None:
    assert unsealed(tmp_path / "nowhere") == ([], [])
    day = tmp_path / "date=2026-11-02"
    day.mkdir()
    (day / ".open-gateway-1.jsonl").write_bytes(LINES[0] + b"\n" + b'{"a":')
    assert unsealed(tmp_path) == ([day / ".open-gateway-1.jsonl"], [])
    recover(tmp_path)
    assert unsealed(tmp_path) == ([], [day / ".torn-gateway-1.jsonl"])


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    clock = Clock()
    first, second = Journal(tmp_path, 60, now=clock), Journal(tmp_path, 60, now=clock)
    first.write(LINES)
    second.write(LINES)
    assert recover(tmp_path) == []
    clock.now += 60
    first.write(LINES)  # seals its own, and looks for those of the dead
    assert len(files(tmp_path, "date=*/.open-*")) == 2
    first.close()
    second.close()
    assert contents(tmp_path) == LINES * 3


def test_a_failed_write_leaves_nothing_of_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Journal(tmp_path, 60)
    writer.write(LINES)
    real = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) <= 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, bytes(data)[:10])

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(JournalError, match="No space left"):
        writer.write([b'{"lost":1}', b'{"lost":2}'])
    monkeypatch.undo()
    writer.write([b'{"kept":1}'])
    writer.close()
    recover(tmp_path)
    assert sorted(contents(tmp_path)) == sorted([*LINES, b'{"kept":1}'])
    assert files(tmp_path, "date=*/.*") == []


def test_a_failed_sync_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    writer = Journal(tmp_path, 60)
    monkeypatch.setattr(module.os, "fdatasync", broken)
    with pytest.raises(JournalError, match="Input/output error"):
        writer.write(LINES)


def test_a_file_whose_sealing_failed_is_sealed_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if that happens at midnight, and the next file is of another day."""
    clock = Clock(NOON + 12 * 3600 - 30)
    writer = Journal(tmp_path, 60, now=clock)
    writer.write(LINES)

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    clock.now += 60
    with monkeypatch.context() as patched:
        patched.setattr(module.os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output error"):
            writer.roll()
    assert len(files(tmp_path, "date=2026-11-02/.open-*")) == 1
    writer.write(LINES[:1])
    clock.now += 60
    writer.roll()
    assert files(tmp_path, "date=*/.*") == []
    assert contents(tmp_path) == [*LINES, LINES[0]]


def test_a_dead_writers_file_whose_sealing_failed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = tmp_path / "date=2026-11-02"
    day.mkdir()
    (day / ".open-gateway-1.jsonl").write_bytes(LINES[0] + b"\n" + b'{"a":')

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for name in ("write_bytes", "rename"):
        with monkeypatch.context() as patched:
            patched.setattr(module.Path, name, broken)
            with pytest.raises(OSError, match="Input/output error"):
                recover(tmp_path)
    assert len(recover(tmp_path)) == 1
    assert contents(tmp_path) == LINES[:1]
