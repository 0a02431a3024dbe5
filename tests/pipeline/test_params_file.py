"""A number written into params.yaml changes its own line and no other character."""

import difflib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flywheel_tasks.online.design import write_planned_users
from flywheel_tasks.pipeline.params_file import write_setting
from flywheel_tasks.settings import SettingsError, load_settings

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path):
    for name in ("params.yaml", ".yamllint"):
        shutil.copy(PROJECT / name, tmp_path / name)
    return tmp_path


def changed_lines(root):
    before, after = ((folder / "params.yaml").read_text().splitlines() for folder in (PROJECT, root))
    return [line for line in difflib.unified_diff(before, after, n=0, lineterm="") if line[0] in "+-"][2:]


def test_a_seed_changes_one_line(root):
    write_setting(root, "seed", 7)
    assert changed_lines(root) == ["-seed: 20261102", "+seed: 7"]
    assert load_settings(root / "params.yaml").seed == 7
    lint = [sys.executable, "-m", "yamllint", "-s", "params.yaml"]
    done = subprocess.run(lint, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    before = (root / "params.yaml").stat().st_mtime_ns
    write_setting(root, "seed", 7)
    assert (root / "params.yaml").stat().st_mtime_ns == before, "nothing is written anew"


def test_the_size_of_a_test_changes_one_line(root):
    write_planned_users(root, 1234)
    removed, added = changed_lines(root)
    assert removed.replace("10000", "1234")[1:] == added[1:]
    assert load_settings(root / "params.yaml").ab.planned_users == 1234


def test_a_key_that_is_not_there_yet_is_added(tmp_path):
    (tmp_path / "params.yaml").write_bytes("a: [1]\r\nab:   # Prüfung\r\n    alpha: 0.05  # ½\r\n".encode())
    write_setting(tmp_path, "ab.planned_users", 5)
    text = (tmp_path / "params.yaml").read_bytes().decode()
    assert text == "a: [1]\r\nab:   # Prüfung\r\n    planned_users: 5\n    alpha: 0.05  # ½\r\n"
    assert yaml.safe_load(text)["ab"] == {"planned_users": 5, "alpha": 0.05}


@pytest.mark.parametrize(
    "text", ["a: 1\n", "ab: {alpha: 1}\n", "ab:\n  planned_users: [1]\n", "ab:\n  planned_users:\n"]
)
def test_what_cannot_be_set_is_named(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"params\.yaml: ab\.planned_users: "):
        write_setting(tmp_path, "ab.planned_users", 5)
    assert (tmp_path / "params.yaml").read_text() == text
