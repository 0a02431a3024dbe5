"""The list of users to forget, beside the registry's objects: it only grows.

Each user is one object, ``forgotten/<key fingerprint>/<hash>.json``, created if absent: two writers cannot lose
each other's entries, and an entry cannot be taken back.
"""

import getpass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from flywheel_tasks.storage.objects import Exists, ObjectStore, open_store

_PREFIX = "forgotten/"


class Forgotten:
    """Users who asked to be deleted, as keyed hashes.

    Args:
        store: of the registry.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def users(self, fingerprint: str) -> frozenset[str]:
        """Hashes under one user key.

        Args:
            fingerprint: of the key (:attr:`flywheel_tasks.traffic.identity.UserKey.fingerprint`).
        """
        keys = self._store.list(f"{_PREFIX}{fingerprint}/")
        return frozenset(key.rpartition("/")[2].removesuffix(".json") for key in keys)

    def add(self, fingerprint: str, user: str, *, by: str | None = None) -> bool:
        """Add a user, for good.

        Args:
            fingerprint: of the key.
            user: the hash.
            by: who asks; by default the account that runs this.

        Returns:
            False when they were on the list already.
        """
        entry = {"user": user, "by": by or getpass.getuser(), "at": datetime.now(UTC).isoformat()}
        try:
            self._store.create(f"{_PREFIX}{fingerprint}/{user}.json", orjson.dumps(entry))
        except Exists:
            return False
        return True


def open_forgotten(location: str, root: Path) -> Forgotten:
    """The list beside the registry of a setting (``registry.location``), relative to the workspace."""
    return Forgotten(open_store(location, root))
