"""Vectors kept between runs, by the hash of their text: never the text itself.

One SQLite file a model. SQLite's own journal makes a write whole or absent under a kill, and lets two runs share the
file. A cache is no input: whatever is wrong with it, its vectors are computed again.
"""

import hashlib
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np

_WAIT_SECONDS = 60
_AT_ONCE = 500  # keys in one statement; below every build's limit of variables


def text_key(text: str) -> bytes:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).digest()


def _batches(keys: Sequence[bytes]) -> Iterator[list[bytes]]:
    walk = iter(keys)
    while batch := list(islice(walk, _AT_ONCE)):
        yield batch


class EmbeddingCache:
    """Vectors of one model.

    Args:
        folder: the cache's own; made if missing.
        most: rows kept after :meth:`close`; those unused for the longest time go.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._path, self._most = folder / "vectors.sqlite", most
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            # A truncated or foreign file: only time is lost by starting it again.
            warnings.warn(f"{self._path}: {error}; the cache starts empty", stacklevel=2)
            for name in ("", "-wal", "-shm"):
                Path(f"{self._path}{name}").unlink(missing_ok=True)
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=_WAIT_SECONDS, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(
            "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL, used INTEGER)"
        )
        (last,) = db.execute("SELECT max(used) FROM vectors").fetchone()
        self._now = (last or 0) + 1  # a count of runs, not a clock: clocks of machines differ
        return db

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def get(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """The known vectors among the keys (float32), marked as used now."""
        found: dict[bytes, np.ndarray] = {}
        for batch in _batches(keys):
            marks = ",".join("?" * len(batch))
            query = f"SELECT key, vector FROM vectors WHERE key IN ({marks})"  # noqa: S608 - question marks only
            for key, data in self._db.execute(query, batch):
                found[bytes(key)] = np.frombuffer(data, dtype="<f4")
        with self._transaction():
            self._db.executemany(
                "UPDATE vectors SET used = ? WHERE key = ? AND used < ?",
                ((self._now, key, self._now) for key in found),
            )
        return found

    def put(self, vectors: Mapping[bytes, np.ndarray]) -> None:
        """Keep vectors; one that another run kept meanwhile stays."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)",
                ((key, vector.astype("<f4").tobytes(), self._now) for key, vector in vectors.items()),
            )

    def forget(self, keys: Sequence[bytes]) -> int:
        """Remove vectors; the number that was there."""
        with self._transaction():
            return sum(self._db.execute("DELETE FROM vectors WHERE key = ?", (key,)).rowcount for key in keys)

    def close(self) -> None:
        """Remove what is beyond the limit, and end."""
        with self._transaction():
            (rows,) = self._db.execute("SELECT count(*) FROM vectors").fetchone()
            if rows > self._most:
                self._db.execute(
                    "DELETE FROM vectors WHERE key IN (SELECT key FROM vectors ORDER BY used, key LIMIT ?)",
                    (rows - self._most,),
                )
        self._db.close()
