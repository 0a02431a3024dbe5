"""Where the workspace is, on whichever machine a task runs."""

import os
from pathlib import Path


def workspace() -> Path:
    """The folder of dvc.yaml: ``FLYWHEEL_ROOT``, by default the parent of the folder of DAGs."""
    default = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("FLYWHEEL_ROOT", default)).resolve()
