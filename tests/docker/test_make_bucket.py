import importlib.util
from pathlib import Path
from types import ModuleType

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws


@pytest.fixture
def script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "docker/make_bucket.py"
    spec = importlib.util.spec_from_file_location("make_bucket", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@mock_aws
def test_a_bucket_is_made_once(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert script.make_bucket("flywheel")
    assert not script.make_bucket("flywheel")
    assert [b["Name"] for b in boto3.client("s3").list_buckets()["Buckets"]] == ["flywheel"]


@mock_aws
def test_a_name_that_is_not_allowed_is_an_error(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with pytest.raises(ClientError, match="InvalidBucketName"):
        script.make_bucket("ab")


@mock_aws
def test_in_another_region_of_aws_the_bucket_is_of_that_region(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    assert script.make_bucket("flywheel")
    found = boto3.client("s3").get_bucket_location(Bucket="flywheel")
    assert found["LocationConstraint"] == "eu-central-1"
