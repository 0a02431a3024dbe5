"""Makes the bucket of the DVC remote and the registry. Credentials and endpoint: boto3's environment."""

import sys
from typing import Any

import boto3
from botocore.exceptions import ClientError


def _region(client: Any) -> dict[str, Any]:
    """What AWS wants to be told of a bucket outside of its first region; other stores have no such regions."""
    region = client.meta.region_name
    if region == "us-east-1" or not client.meta.endpoint_url.endswith(".amazonaws.com"):
        return {}
    return {"CreateBucketConfiguration": {"LocationConstraint": region}}


def make_bucket(name: str) -> bool:
    """Make a bucket.

    Args:
        name: of the bucket.

    Returns:
        whether it was made now.

    Raises:
        ClientError: it belongs to someone else, the name is not allowed, or the credentials are refused.
    """
    client = boto3.client("s3")
    try:
        client.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise
        client.create_bucket(Bucket=name, **_region(client))
        return True
    return False


if __name__ == "__main__":
    made = make_bucket(sys.argv[1])
    sys.stdout.write(f"bucket {sys.argv[1]} {'made' if made else 'is there'}\n")
