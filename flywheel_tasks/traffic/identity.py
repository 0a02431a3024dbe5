"""User ids as keyed hashes: no table after the raw logs holds a raw id.

A user's hash is HMAC-SHA256 of the raw id under a secret key, cut to 128 bits: the same in every generation, so that
splits stay put, and of no use to anyone without the key. The key comes from the environment and is written nowhere;
its fingerprint is, so that another key is noticed before it moves every user to another split.

``inputs/users.json`` pins, for a generation, the fingerprint and the hashes of users who are to be forgotten.
"""

import hmac
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from flywheel_tasks.storage.documents import read_json

KEY, KEY_FILE = "FLYWHEEL_USER_KEY", "FLYWHEEL_USER_KEY_FILE"
# Published on purpose: the demo's users are simulated, there is nobody to protect.
DEMO_KEY = "flywheel demo key: simulated users only"
_LEAST_CHARACTERS = 32
_HEX = 32  # 128 bits
_REMEMBERED = 100_000  # hashes kept
HASHED = re.compile(r"u_[0-9a-f]{32}")
# The value of user_id in a line that may not be JSON: a string with escapes, possibly cut off, or a bare value.
_USER_ID = re.compile(r'(\buser_id\\?"\s*:\s*)("(?:[^"\\]|\\(?s:.))*(?:"|\\\Z)?|[^\s,}\]"]+)')


class IdentityError(ValueError):
    """There is no key, it is too weak, or it is another one than that of the generation."""


class UserKey:
    """A secret that turns raw user ids into hashes.

    Args:
        secret: at least 32 characters.

    Raises:
        IdentityError: it is shorter.
    """

    def __init__(self, secret: str) -> None:
        if len(secret) < _LEAST_CHARACTERS:
            raise IdentityError(
                f"the user key has {len(secret)} characters, it needs at least {_LEAST_CHARACTERS}; "
                "`flywheel users new-key` makes one"
            )
        self._secret = secret.encode()

    def __repr__(self) -> str:
        return f"UserKey({self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """Names the key without revealing it."""
        return "key_" + hmac.digest(self._secret, b"flywheel: fingerprint of a user key", "sha256").hex()[:16]

    def hashed(self, user_id: str) -> str:
        """The hash of one raw user id (``u_`` and 32 hexadecimal digits)."""
        return "u_" + hmac.digest(self._secret, b"flywheel: user\0" + user_id.encode(), "sha256").hex()[:_HEX]

    def hashed_column(self, user_ids: pa.Array | pa.ChunkedArray) -> pa.Array:
        """The hashes of a column of raw ids; each distinct id is hashed once. Nulls stay null.

        Args:
            user_ids: strings, shape (rows,).

        Returns:
            strings, shape (rows,).
        """
        if isinstance(user_ids, pa.ChunkedArray):
            user_ids = user_ids.combine_chunks()
        encoded = user_ids.dictionary_encode()
        distinct = pa.array([self.hashed(user) for user in encoded.dictionary.to_pylist()], pa.string())
        return pc.take(distinct, encoded.indices)


DEMO_FINGERPRINT = UserKey(DEMO_KEY).fingerprint


def _secret(environ: Mapping[str, str]) -> str | None:
    text, file = environ.get(KEY), environ.get(KEY_FILE)
    if text and file:
        raise IdentityError(f"{KEY} and {KEY_FILE} are both set: unset one")
    if not file:
        return text or None
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"{KEY_FILE}: the key file cannot be read: {error}") from error


def user_key(source: Literal["simulated", "files"], environ: Mapping[str, str] | None = None) -> UserKey:
    """The key of the environment; for simulated users the published demo key if there is none.

    Args:
        source: the setting ``logs.source``.
        environ: where to look for ``FLYWHEEL_USER_KEY`` or ``FLYWHEEL_USER_KEY_FILE``; by default the environment.

    Raises:
        IdentityError: real logs and no key, a key that is too short, or the demo key.
    """
    secret = _secret(os.environ if environ is None else environ)
    if secret is None:
        if source == "simulated":
            return UserKey(DEMO_KEY)
        raise IdentityError(
            f"logs.source is files, but there is no key for user ids: set {KEY}, or {KEY_FILE} to a file that only "
            f"you can read. Make one with `flywheel users new-key` (or `openssl rand -hex 32`), keep it in your "
            "secret store, and use the same one for every generation"
        )
    if source == "files" and secret == DEMO_KEY:
        raise IdentityError(
            f"{KEY} is the published key of the demo: anyone could undo the hashes of your users"
        )
    return UserKey(secret)


@dataclass(frozen=True)
class Identity:
    """What ingestion does with user ids.

    Attributes:
        key: hashes them.
        forgotten: hashes of users whose lines are dropped.
    """

    key: UserKey
    forgotten: frozenset[str]
    _known: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def hashed(self, user_id: str) -> str:
        """The hash of a raw id; remembered, so that each is computed once."""
        found = self._known.get(user_id)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[user_id] = self.key.hashed(user_id)
        return found

    def masked(self, raw: str) -> tuple[str, bool]:
        """A line that is kept as it was read (in quarantine), with hashes in the place of user ids.

        The line may be broken, so ids are found by the field's name, not by parsing.

        Args:
            raw: the line, not cut yet.

        Returns:
            the line, and whether it names a forgotten user.
        """
        forgotten = False

        def replaced(match: re.Match[str]) -> str:
            nonlocal forgotten
            user = self.hashed(_unquoted(match[2]))
            forgotten = forgotten or user in self.forgotten
            return f'{match[1]}"{user}"'

        return _USER_ID.sub(replaced, raw), forgotten


def _unquoted(value: str) -> str:
    import orjson

    if not value.startswith('"'):
        return value
    try:
        return str(orjson.loads(value))
    except orjson.JSONDecodeError:
        return value.strip('"')


def pin_users(fingerprint: str, forgotten: Collection[str]) -> dict[str, Any]:
    """The document ``inputs/users.json``."""
    return {"key": fingerprint, "forgotten": sorted(forgotten)}


def read_identity(path: Path, environ: Mapping[str, str] | None = None) -> Identity:
    """Read ``inputs/users.json`` and find the key that it names.

    Raises:
        IdentityError: the document is not what :func:`pin_users` writes, or the environment has no key or another.
    """
    document = read_json(path)
    pinned = document.get("key") if isinstance(document, dict) else None
    forgotten = document.get("forgotten") if isinstance(document, dict) else None
    if not isinstance(pinned, str) or not isinstance(forgotten, list):
        raise IdentityError(f"{path}: expected the fingerprint `key` and the list `forgotten`")
    for number, user in enumerate(forgotten):
        if not isinstance(user, str) or not HASHED.fullmatch(user):
            raise IdentityError(f"{path}: forgotten[{number}] is not a hash (u_ and 32 hexadecimal digits)")
    if pinned == DEMO_FINGERPRINT:
        return Identity(UserKey(DEMO_KEY), frozenset(forgotten))
    key = user_key("files", environ)
    if key.fingerprint != pinned:
        raise IdentityError(
            f"{path}: this generation hashes user ids with {pinned}, but the environment holds {key.fingerprint}; "
            f"set {KEY} or {KEY_FILE} to the key of the generation"
        )
    return Identity(key, frozenset(forgotten))
