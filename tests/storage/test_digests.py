import os
from hashlib import sha256
from pathlib import Path

import pytest

from flywheel_tasks.storage import digests

LARGE = digests._REMEMBERED_BYTES


def test_a_large_file_is_read_again_only_after_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    digest_of = digests._read_digest

    def counted(path: Path) -> str:
        read.append(path.name)
        return digest_of(path)

    monkeypatch.setattr(digests, "_read_digest", counted)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"a" * LARGE)
    first = digests.file_digest(file)
    assert digests.file_digest(file) == first == f"sha256:{sha256(b'a' * LARGE).hexdigest()}"
    assert read == ["model.safetensors"]
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    with file.open("r+b") as opened:
        opened.write(b"b")
    os.utime(file, ns=times)  # the same size and time of change: the inode's own time tells
    assert digests.file_digest(file) == f"sha256:{sha256(b'b' + b'a' * (LARGE - 1)).hexdigest()}"


def test_a_small_file_is_always_read(tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    file.write_text("{}")
    first = digests.tree_digest(tmp_path)
    file.write_text("[]")
    assert digests.tree_digest(tmp_path) != first


def test_nothing_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digests.tree_digest(tmp_path / "absent")


def test_digests_of_several_come_in_their_order(tmp_path: Path) -> None:
    names = ("b", "a", "c")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(name.encode() * 100_000)
    several = digests.tree_digests([tmp_path / name for name in names])
    assert several == [digests.tree_digest(tmp_path / name) for name in names]
    assert len(set(several)) == len(names)
