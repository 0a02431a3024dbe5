"""Objects by key in a folder or S3 bucket, with the write that compare-and-swap needs: create if absent."""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from flywheel_tasks.storage.atomic import sync

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*(/[A-Za-z0-9][A-Za-z0-9._=-]*)*")
# Answers of S3 to a conditional write: the key is there; another write of it is under way.
_PRESENT, _UNDER_WAY = "PreconditionFailed", "ConditionalRequestConflict"
_ATTEMPTS = 5


class Exists(Exception):
    """The key is already there; nothing was written."""


class MissingObjectError(KeyError):
    """There is no object of that key."""


class PlaceError(ValueError):
    """A setting names no place for objects, or a key cannot be one."""


class StoreError(RuntimeError):
    """The server of a bucket cannot be reached, or refuses; the message names the bucket."""


class ObjectStore(Protocol):
    """Where objects live. Objects never change once created.

    Every method may raise PlaceError (of the key), and StoreError where a server is asked.
    """

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises MissingObjectError when there is none."""

    def list(self, prefix: str) -> list[str]:
        """Keys that start with ``prefix``, sorted."""

    def create(self, key: str, data: bytes) -> None:
        """Write a new object, whole and durable. Raises Exists, writing nothing, when the key is there."""

    def delete(self, key: str) -> None:
        """Remove an object; it is no error when there is none."""


def _checked(key: str) -> str:
    """The key of an object that we write."""
    if not _KEY.fullmatch(key):
        raise PlaceError(f"not an object key: {key!r} (letters, digits, . _ = - and / between parts)")
    return key


def _inside(key: str) -> str:
    """The key of an object that is there: people name what they deliver as they like, but it leads nowhere else."""
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise PlaceError(f"not an object key: {key!r} (no part may be empty, . or ..)")
    return key


class FolderStore:
    """Objects as files below a folder.

    Args:
        folder: made at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> bytes:
        """See :class:`ObjectStore`."""
        try:
            return (self._folder / _inside(key)).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise MissingObjectError(key) from None

    def list(self, prefix: str) -> list[str]:
        """See :class:`ObjectStore`."""
        # Hidden names are writes that have not finished.
        within = self._folder / prefix.rpartition("/")[0]
        found = (path for path in within.rglob("*") if not path.name.startswith(".") and path.is_file())
        keys = (path.relative_to(self._folder).as_posix() for path in found)
        return sorted(key for key in keys if key.startswith(prefix))

    def create(self, key: str, data: bytes) -> None:
        """See :class:`ObjectStore`. A hard link fails if its name is taken: so the write is conditional."""
        final = self._folder / _checked(key)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, final)
            except FileExistsError:
                raise Exists(key) from None
        finally:
            temporary.unlink(missing_ok=True)
        sync(final.parent)

    def delete(self, key: str) -> None:
        """See :class:`ObjectStore`."""
        (self._folder / _inside(key)).unlink(missing_ok=True)


def s3_client() -> Any:
    """boto3's client of S3, by the environment.

    Raises:
        PlaceError: the endpoint there is no URL.
        BotoCoreError: another setting there is wrong, e.g. the region.
    """
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        return boto3.client("s3")
    except BotoCoreError:  # some are ValueErrors, too
        raise
    except ValueError as error:
        raise PlaceError(
            f"AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3) is no URL like http://minio:9000: {error}"
        ) from error


class S3Store:
    """Objects below a prefix of an S3 bucket; endpoint and credentials from the environment (boto3's rules).

    The server must honour ``If-None-Match: *`` on a put.

    Args:
        bucket: the bucket.
        prefix: key prefix inside it, without slashes at its ends; may be empty.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        with self._asked():
            self._client: Any = s3_client()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Turn what boto3 raises into an error that names the bucket."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise StoreError(f"s3://{self._bucket}/{self._prefix}: {error}") from error

    def get(self, key: str) -> bytes:
        """See :class:`ObjectStore`."""
        with self._asked():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + _inside(key))
            except self._client.exceptions.NoSuchKey:
                raise MissingObjectError(key) from None
            data: bytes = answer["Body"].read()
            return data

    def list(self, prefix: str) -> list[str]:
        """See :class:`ObjectStore`."""
        with self._asked():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            found = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return sorted(key[len(self._prefix) :] for key in found)

    def create(self, key: str, data: bytes) -> None:
        """See :class:`ObjectStore`.

        boto3 repeats a request whose answer was lost; the repeat then meets the object that the first one
        wrote. So a refusal counts only if the object there is another one.
        """
        from botocore.exceptions import ClientError

        for attempt in range(1, _ATTEMPTS + 1):
            with self._asked():
                try:
                    self._client.put_object(
                        Bucket=self._bucket, Key=self._prefix + _checked(key), Body=data, IfNoneMatch="*"
                    )
                    return
                except ClientError as error:
                    code = error.response.get("Error", {}).get("Code")
                    if code == _PRESENT:
                        if self.get(key) == data:
                            return
                        raise Exists(key) from None
                    if code != _UNDER_WAY or attempt == _ATTEMPTS:
                        raise

    def delete(self, key: str) -> None:
        """See :class:`ObjectStore`."""
        with self._asked():
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + _inside(key))


def open_store(location: str, root: Path) -> ObjectStore:
    """The store of a setting.

    Args:
        location: ``s3://bucket/prefix``, or a folder, absolute or relative to the workspace.
        root: the workspace.

    Raises:
        PlaceError: another scheme, or no bucket.
    """
    scheme, mark, rest = location.partition("://")
    if not mark:
        return FolderStore(root / location)
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise PlaceError(f"not a place for objects: {location} (a folder or s3://bucket/prefix)")
    return S3Store(bucket, prefix.strip("/"))
