"""Where raw logs lie: a folder, or an S3 bucket (boto3, with endpoint, region and credentials of the environment)."""

import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from flywheel_tasks.storage.atomic import UNFINISHED, atomic_path
from flywheel_tasks.storage.objects import s3_client
from flywheel_tasks.traffic.events import TYPES

_CHUNK = 1 << 20
_ABANDONED = 3600.0  # seconds
# Unfinished files: of atomic_path, of an object that is created, of what is extracted from a warehouse.
_UNFINISHED = re.compile(rf"{UNFINISHED.pattern}|\..+\.[0-9a-f]{{32}}|_({'|'.join(TYPES)})-\d+\.parquet")
_REWRITTEN = {
    "flywheel-rewritten": "earlier versions go"
}  # metadata of an object that took another one's place
_SETTLED = 2.0  # seconds; two writes within one tick of a file system's clock give one version


class LogsError(ValueError):
    """Raw logs are missing, misplaced, changed or damaged; the message names the file."""


class MissingLogError(LogsError):
    """There is no file of that name, or no longer."""


class ChangedLogError(LogsError):
    """A file is no longer what was read of it."""


class LogStore(Protocol):
    """Files by name, such as ``date=2026-11-02/part-000.jsonl``."""

    def names(self) -> Iterable[str]:
        """All files."""

    def versions(self, names: Iterable[str]) -> dict[str, str]:
        """The versions of files, without those that are gone or too new for a later write to be sure of another one."""

    def version(self, name: str) -> str:
        """What is another one once the file has changed. Raises MissingLogError where there is no such file."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file. Raises MissingLogError where there is no such file."""

    def replace(self, name: str, path: Path, version: str) -> None:
        """Put the bytes of another file in a file's place, all or none.

        Args:
            name: of the file that is replaced.
            path: what it becomes; stays where it is.
            version: of what was read to make it.

        Raises:
            ChangedLogError: the file has another version by now; it stays as it is.
        """

    def sweep(self) -> None:
        """Remove what a killed :meth:`replace` left: earlier versions of files, or unfinished copies."""


def _check_version(place: str, before: str, now: str) -> None:
    if now != before:
        raise ChangedLogError(
            f"{place}: was written to while it was read, and is left as it is: run the command again"
        )


def _version_of(found: os.stat_result) -> str:
    # The time of the last change of anything, too: a copy may keep the time of its content.
    return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def _unreadable(error: OSError) -> None:
    raise LogsError(f"{error.filename}: cannot be listed: {error.strerror}") from error


class FolderStore:
    """Logs in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> Iterable[str]:
        """All files."""
        if not self._folder.is_dir():
            raise LogsError(f"{self._folder}: there is no such folder of logs (setting logs.location)")
        for folder, _, files in os.walk(self._folder, followlinks=True, onerror=_unreadable):
            for file in files:
                yield (Path(folder) / file).relative_to(self._folder).as_posix()

    def _stat(self, name: str) -> os.stat_result:
        try:
            return (self._folder / name).stat()
        except OSError as error:
            raise self._unread(name, error) from error

    def versions(self, names: Iterable[str]) -> dict[str, str]:
        """See :class:`LogStore`."""
        versions = {}
        for name in names:
            with suppress(MissingLogError):
                found = self._stat(name)
                if found.st_ctime < time.time() - _SETTLED:
                    versions[name] = _version_of(found)
        return versions

    def version(self, name: str) -> str:
        """See :class:`LogStore`."""
        return _version_of(self._stat(name))

    def _unread(self, name: str, error: OSError) -> LogsError:
        kind = MissingLogError if isinstance(error, FileNotFoundError) else LogsError
        return kind(f"{self._folder / name}: cannot be read: {error.strerror}")

    def chunks(self, name: str) -> Iterator[bytes]:
        """See :class:`LogStore`."""
        try:
            with (self._folder / name).open("rb") as source:
                while chunk := source.read(_CHUNK):
                    yield chunk
        except OSError as error:
            raise self._unread(name, error) from error

    def replace(self, name: str, path: Path, version: str) -> None:
        """See :class:`LogStore`."""
        with atomic_path(self._folder / name) as temporary:
            shutil.copyfile(path, temporary)
            _check_version(str(self._folder / name), version, self.version(name))

    def sweep(self) -> None:
        """See :class:`LogStore`; what is younger than an hour may be somebody's who is at work."""
        for name in list(self.names()):
            path = self._folder / name
            if _UNFINISHED.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < time.time() - _ABANDONED:
                        path.unlink()


class BucketStore:
    """Logs in an S3 bucket."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._bucket, _, prefix = location.removeprefix("s3://").partition("/")
        if not self._bucket:
            raise LogsError(f"{location}: names no bucket; expected s3://bucket/prefix")
        self._prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        self._seen: dict[str, str] | None = None

    @cached_property
    def _client(self) -> Any:
        return s3_client()

    def _listed(self) -> dict[str, str]:
        """The version of each file."""
        found: dict[str, str] = {}
        try:
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for item in page.get("Contents", ()):
                    if not item["Key"].endswith("/"):
                        found[item["Key"].removeprefix(self._prefix)] = f"{item['ETag']}-{item['Size']}"
        except (ClientError, BotoCoreError) as error:
            raise LogsError(f"{self._location}: cannot be listed: {error}") from error
        return found

    def names(self) -> Iterable[str]:
        """All files; one request for a thousand."""
        self._seen = self._listed()
        return list(self._seen)

    def versions(self, names: Iterable[str]) -> dict[str, str]:
        """See :class:`LogStore`; as they were when :meth:`names` was asked, which need not list again."""
        seen = self._listed() if self._seen is None else self._seen
        return {name: seen[name] for name in names if name in seen}

    def _head(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)
        except (ClientError, BotoCoreError) as error:
            raise self._unread(name, error) from error
        return found

    def _unread(self, name: str, error: ClientError | BotoCoreError) -> LogsError:
        code = error.response.get("Error", {}).get("Code") if isinstance(error, ClientError) else None
        kind = MissingLogError if code in ("NoSuchKey", "404") else LogsError
        return kind(f"{self._location}: {name} cannot be read: {error}")

    def version(self, name: str) -> str:
        """See :class:`LogStore`."""
        found = self._head(name)
        return f"{found['ETag']}-{found['ContentLength']}"

    def chunks(self, name: str) -> Iterator[bytes]:
        """See :class:`LogStore`."""
        try:
            body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"]
            yield from body.iter_chunks(_CHUNK)
        except (ClientError, BotoCoreError) as error:
            raise self._unread(name, error) from error

    def replace(self, name: str, path: Path, version: str) -> None:
        """See :class:`LogStore`; a versioned bucket forgets what it held before."""
        key = self._prefix + name
        _check_version(f"{self._location}: {name}", version, self.version(name))
        try:
            extra = {
                "Metadata": _REWRITTEN
            }  # for :meth:`sweep`, if this is killed before the earlier versions go
            self._client.upload_file(
                str(path), self._bucket, key, ExtraArgs=extra
            )  # of a large file, in parts
            if self._head(name).get("VersionId"):
                self._forget_earlier(key)
        except (ClientError, BotoCoreError, Boto3Error) as error:
            raise LogsError(f"{self._location}: {name} cannot be written: {error}") from error

    def sweep(self) -> None:
        """See :class:`LogStore`."""
        try:
            first = next(iter(self._listed()), None)
            if first is not None and self._head(first).get("VersionId"):
                self._forget_earlier(self._prefix)
        except (ClientError, BotoCoreError) as error:
            raise LogsError(f"{self._location}: earlier versions cannot be removed: {error}") from error

    def _forget_earlier(self, prefix: str) -> None:
        """Delete what is older than the newest rewritten version of each object, delete markers too."""
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for page in self._client.get_paginator("list_object_versions").paginate(
            Bucket=self._bucket, Prefix=prefix
        ):
            for item in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                found[item["Key"]].append(item)
        for key, versions in found.items():
            newest_first = sorted(
                versions, key=lambda one: (one["IsLatest"], one["LastModified"]), reverse=True
            )
            for place, item in enumerate(newest_first[:-1]):
                if self._rewritten(key, item):
                    for old in newest_first[place + 1 :]:
                        self._client.delete_object(Bucket=self._bucket, Key=key, VersionId=old["VersionId"])
                    break

    def _rewritten(self, key: str, item: Mapping[str, Any]) -> bool:
        """Whether a version is of :meth:`replace`; delete markers, which have no size, are not."""
        if "Size" not in item:
            return False
        found = self._client.head_object(Bucket=self._bucket, Key=key, VersionId=item["VersionId"])
        return bool(found["Metadata"].items() >= _REWRITTEN.items())


def open_logs(location: str, root: Path) -> LogStore:
    """The store of the setting ``logs.location``.

    Raises:
        LogsError: it is neither a folder nor ``s3://bucket/prefix``.
    """
    if location.startswith("s3://"):
        return BucketStore(location)
    if "://" in location:
        raise LogsError(f"{location}: logs are read from a folder or from s3:// only")
    return FolderStore(root / location)
