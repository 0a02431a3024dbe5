"""What was said where, without the texts: links a request's history to the messages that the logs have.

OpenAI's protocol has no conversation ids: a client sends the whole conversation each time. Each logged message is
kept here under a digest of everything up to it (user, character and source included), so the messages that a client
sends back are found again, by any worker of this machine, and a history that was never said is not.
"""

import hashlib
import sqlite3
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    message_id TEXT NOT NULL, conversation_id TEXT NOT NULL, parent_id TEXT, role TEXT NOT NULL,
    owner BLOB NOT NULL, chain BLOB NOT NULL, time TEXT NOT NULL, source TEXT, PRIMARY KEY (message_id, chain)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_chain ON turns (chain);
CREATE INDEX IF NOT EXISTS by_time ON turns (time);
"""
_BUSY_SECONDS, _RETRY_SECONDS = 10.0, 0.01
_AT_ONCE = 500  # of SQLite's places for values in a statement
REFUSAL = "refusal"  # role of the gateway's own words in place of a reply to what no model may see
GREETING = "greeting"  # role of a character's words that answer nobody


@dataclass(frozen=True)
class LoggedTurn:
    """A message that the logs have.

    Attributes:
        message_id: its id.
        conversation_id: its conversation.
        parent_id: the message that it answers, or None.
        role: user, assistant, :data:`REFUSAL` or :data:`GREETING`.
        owner: digest of its user's id.
        chain: digest of the conversation up to and including it.
        time: of its event.
        source: of its conversation, internal or user; None if a release that did not keep it wrote the turn.
    """

    message_id: str
    conversation_id: str
    parent_id: str | None
    role: str
    owner: bytes
    chain: bytes
    time: datetime
    source: str | None = None

    def rated_by(self, user_id: str, source: str) -> bool:
        """Whether this user of this source may rate or report it: a reply to them, or a refusal in place of one.

        Staff do not rate for a user: it would be logged as if that user had, as internal.
        """
        theirs = self.owner == owner_of(user_id) and self.source in (None, source)
        return theirs and self.role in ("assistant", REFUSAL)


def _digest(*parts: str | bytes) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big") + data)
    return state.digest()


def owner_of(user_id: str) -> bytes:
    """Digest of a user's id."""
    return _digest("owner", user_id)


def root_chain(user_id: str, card_id: str, source: str) -> bytes:
    """The chain of a conversation in which nothing was said yet."""
    return _digest("root", user_id, card_id, source)


def longer(chain: bytes, role: str, text: str) -> bytes:
    """The chain with one more message; spaces around a text do not count, since clients trim them."""
    return _digest(chain, role, text.strip())


class TurnIndex:
    """The turns of one machine, in SQLite; several processes may use it. One object belongs to one thread.

    Args:
        path: the database.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        # In WAL mode NORMAL syncs at checkpoints, not at each commit: a killed process loses nothing, and a power cut
        # may lose the newest turns, whose conversations then begin anew, but never the database itself, as OFF might.
        self._set_wal()
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)
        if not self._has_source():
            self._db.execute("BEGIN IMMEDIATE")
            if not self._has_source():  # no other process was first
                self._db.execute("ALTER TABLE turns ADD COLUMN source TEXT")
            self._db.execute("COMMIT")

    def _has_source(self) -> bool:
        """Whether the table has the column; that of an earlier release has not."""
        return "source" in {row[1] for row in self._db.execute("PRAGMA table_info(turns)")}

    def _set_wal(self) -> None:
        """Set the mode, again and again: for a process that does so just now SQLite does not wait by itself."""
        end = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            time.sleep(_RETRY_SECONDS)

    def add(self, turns: Sequence[LoggedTurn]) -> None:
        """Keep turns, in one transaction. A reply that broke off has one for each text that its reader may have."""
        rows = [
            (
                t.message_id,
                t.conversation_id,
                t.parent_id,
                t.role,
                t.owner,
                t.chain,
                t.time.isoformat(),
                t.source,
            )
            for t in turns
        ]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany("INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def by_chain(self, chain: bytes, conversation_id: str | None = None) -> LoggedTurn | None:
        """The newest turn with this history; only in one conversation, if it is named."""
        rows = self._db.execute(
            "SELECT * FROM turns WHERE chain = ? AND (? IS NULL OR conversation_id = ?) ORDER BY time DESC LIMIT 1",
            (chain, conversation_id, conversation_id),
        )
        return _turn(rows.fetchone())

    def by_id(self, message_id: str) -> LoggedTurn | None:
        """A turn."""
        return _turn(
            self._db.execute("SELECT * FROM turns WHERE message_id = ? LIMIT 1", (message_id,)).fetchone()
        )

    def refusals(self, chains: Sequence[bytes]) -> set[bytes]:
        """Those of the chains that end in a refusal of the user's message."""
        found: set[bytes] = set()
        for start in range(0, len(chains), _AT_ONCE):
            some = chains[start : start + _AT_ONCE]
            places = ", ".join("?" * len(some))
            rows = self._db.execute(
                f"SELECT chain FROM turns WHERE chain IN ({places}) AND role = ?",  # noqa: S608 - places only
                (*some, REFUSAL),
            )
            found |= {chain for (chain,) in rows}
        return found

    def forget(self, days: int, most: int) -> int:
        """Drop turns that are older, some of them; how many."""
        before = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        some = (
            "DELETE FROM turns WHERE (message_id, chain) IN "
            "(SELECT message_id, chain FROM turns WHERE time < ? LIMIT ?)"
        )
        return self._db.execute(some, (before, most)).rowcount

    def counts_of(self, owners: Iterable[bytes]) -> dict[bytes, int]:
        """How many turns each of some users has, all looked for at once; ``owners`` are of :func:`owner_of`."""
        self._name(owners)
        return dict(
            self._db.execute(
                "SELECT owner, count(*) FROM turns WHERE owner IN (SELECT * FROM named) GROUP BY 1"
            )
        )

    def forget_owners(self, owners: Iterable[bytes]) -> None:
        """Drop all turns of users, whose conversations then begin anew.

        Their bytes are overwritten, in the database and, as far as no other process reads it just then, in its log.

        Args:
            owners: of :func:`owner_of`.
        """
        self._name(owners)
        self._db.execute("PRAGMA secure_delete = ON")
        self._db.execute("DELETE FROM turns WHERE owner IN (SELECT * FROM named)")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _name(self, owners: Iterable[bytes]) -> None:
        self._db.execute("CREATE TEMP TABLE IF NOT EXISTS named (owner BLOB PRIMARY KEY)")
        self._db.execute("DELETE FROM named")
        self._db.executemany("INSERT OR IGNORE INTO named VALUES (?)", ((owner,) for owner in owners))

    def close(self) -> None:
        """Close the database."""
        self._db.close()


def forget_turns(path: Path, user_ids: Collection[str], *, dry_run: bool = False) -> dict[str, int]:
    """Drop users' turns from the index of a gateway, which may be running.

    Args:
        path: the database; where there is none nothing is made.
        user_ids: raw, as the logs have them: the index knows no hash of them but its own.
        dry_run: only count them.

    Returns:
        how many there were of each.

    Raises:
        sqlite3.Error: it cannot be read or written.
    """
    if not path.exists():
        return dict.fromkeys(user_ids, 0)
    index, owners = TurnIndex(path), {user: owner_of(user) for user in user_ids}
    try:
        counts = index.counts_of(owners.values())
        if not dry_run:
            index.forget_owners(owners.values())
        return {user: counts.get(owner, 0) for user, owner in owners.items()}
    finally:
        index.close()


def _turn(row: tuple[str, str, str | None, str, bytes, bytes, str, str | None] | None) -> LoggedTurn | None:
    return None if row is None else LoggedTurn(*row[:6], datetime.fromisoformat(row[6]), row[7])
