from pathlib import Path

import pytest

from flywheel_tasks.privacy.detector import Detector
from flywheel_tasks.settings import load_settings

SETTINGS = load_settings(Path(__file__).resolve().parents[2] / "params.yaml").privacy


@pytest.fixture(scope="session")
def detector():
    return Detector(SETTINGS)
