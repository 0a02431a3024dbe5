import shutil
from pathlib import Path

import pytest

from flywheel_tasks.privacy.detector import Detector
from flywheel_tasks.settings import load_settings
from tests.privacy.forgetting import SECRET, build

SETTINGS = load_settings(Path(__file__).resolve().parents[2] / "params.yaml").privacy


@pytest.fixture(scope="session")
def detector():
    return Detector(SETTINGS)


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("FLYWHEEL_USER_KEY", SECRET)


@pytest.fixture
def workspace(tmp_path, assembled, key):
    """A workspace after assembly of the test's own."""
    return shutil.copytree(assembled, tmp_path / "w")


@pytest.fixture(scope="session")
def assembled(tmp_path_factory):
    """A workspace after assembly, with tables of annotation that name tasks and prompts only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLYWHEEL_USER_KEY", SECRET)
        return build(tmp_path_factory.mktemp("forget") / "w")
