"""``make clean`` does what its line says."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.settings import load_settings

PROJECT = Path(__file__).resolve().parents[2]
# What stages keep beside their outputs; parsed logs and unfinished work hold the text of users.
BESIDE = (".flywheel/cache/ingest/a", ".flywheel/tmp/a", ".flywheel/resume/a", ".flywheel/contracts/a.html")
KEPT = (
    "data/logs/date=2026-11-02/part-000.jsonl",
    "data/labels/g0001/a.json",
    "data/served/date=2026-11-02/a.jsonl",
    "registry/changes/00000001.json",
    "inputs/generation.json",
    "dvc.lock",
    ".dvc/cache/files/a",
    ".flywheel/remote/a",
    ".flywheel/wheels/a",
    ".flywheel/forget/u_1.json",  # a person whose data are still being removed
)


def test_clean_removes_every_output_and_leaves_the_rest(tmp_path: Path) -> None:
    shutil.copy(PROJECT / "Makefile", tmp_path)
    outs = sorted({out for stage in load_graph(PROJECT / "dvc.yaml").values() for out in stage.outs})
    for name in (*outs, *BESIDE, *KEPT):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text of a user")
    alone = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE")
    }  # of `make test`
    done = subprocess.run(
        ["make", "clean"], cwd=tmp_path, env=alone, capture_output=True, text=True, check=True
    )
    assert [name for name in (*outs, *BESIDE) if (tmp_path / name).exists()] == []
    assert [name for name in KEPT if not (tmp_path / name).exists()] == []
    settings = load_settings(PROJECT / "params.yaml")
    places = (settings.logs.location, settings.label.location.split("/{")[0], settings.serve.logs)
    for place in (*places, "inputs", ".dvc/cache", ".flywheel/remote", "registry"):
        assert re.search(rf"{re.escape(place)}\b", done.stdout.splitlines()[-1]), (
            f"what is left is named: {place}"
        )
