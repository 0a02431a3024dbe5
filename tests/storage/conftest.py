"""Object stores and registries of two kinds."""

from pathlib import Path

import pytest

from flywheel_tasks.storage.objects import ObjectStore, open_store
from flywheel_tasks.storage.registry import Registry, open_registry


@pytest.fixture(scope="module")
def s3(s3_server):
    s3_server.create_bucket(Bucket="flywheel")


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return open_store("registry", tmp_path)
    request.getfixturevalue("s3")
    return open_store(f"s3://flywheel/{tmp_path.name}", tmp_path)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry("registry", tmp_path)
