"""API keys: who may ask. Only hashes are kept; a key is shown once, when it is made."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from flywheel_tasks.storage.atomic import atomic_path

ENVIRONMENT = "FLYWHEEL_SERVE_KEYS"
_PREFIX = "fw"
_NOBODY = "0" * 64
Role = Literal["user", "staff"]


class KeysError(ValueError):
    """The keys cannot be read or changed; the message says why."""


class Key(BaseModel):
    """One API key.

    A key is 256 random bits, so a plain SHA-256 of it cannot be searched; no slow hash is needed.

    Attributes:
        id: its public part.
        hash: SHA-256 of the whole key, hexadecimal.
        name: who holds it, for people.
        role: staff are logged as internal traffic and may choose their arm.
        user_id: whose requests they are; None for a back end that names its users in each request.
        created: when.
        revoked: when, or None while it holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    role: Role
    user_id: Annotated[str, Field(min_length=1, max_length=200)] | None
    created: AwareDatetime
    revoked: AwareDatetime | None = None

    @property
    def source(self) -> str:
        """What the logs call its traffic."""
        return "internal" if self.role == "staff" else "user"


_KEYS = TypeAdapter(tuple[Key, ...])


def keys_path(state: Path) -> Path:
    """Where the keys are, in the gateway's own folder."""
    return state / "keys.json"


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of the environment (``FLYWHEEL_SERVE_KEYS``, the same JSON as the file), else of the file.

    Raises:
        KeysError: they are not what :func:`add_key` writes.
    """
    text = os.environ.get(ENVIRONMENT)
    if text is None:
        if not path.exists():
            return ()
        text = path.read_text(encoding="utf-8")
    try:
        return _KEYS.validate_json(text)
    except ValidationError as error:
        where = ENVIRONMENT if ENVIRONMENT in os.environ else path
        raise KeysError(f"{where}: not a list of keys: {error.errors()[0]['msg']}") from error


def _write(keys: Sequence[Key], path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.touch(0o600)
        temporary.write_bytes(_KEYS.dump_json(tuple(keys), indent=2) + b"\n")


def _locked(path: Path) -> FileLock:
    if ENVIRONMENT in os.environ:
        raise KeysError(f"the keys come from {ENVIRONMENT}: change them there")
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock")


def add_key(path: Path, name: str, role: Role, user_id: str | None) -> tuple[Key, str]:
    """Make a key.

    Args:
        path: of the keys' file.
        name: who holds it.
        role: user or staff.
        user_id: see :class:`Key`.

    Returns:
        its record, and the key itself, which is kept nowhere.

    Raises:
        KeysError: the name or the user's id is empty or too long, or the keys cannot be changed.
    """
    with _locked(path):
        public = secrets.token_hex(4)
        key = f"{_PREFIX}-{public}-{secrets.token_urlsafe(32)}"
        try:
            record = Key(
                id=public, hash=_hash(key), name=name, role=role, user_id=user_id, created=datetime.now(UTC)
            )
        except ValidationError as error:
            field = error.errors()[0]["loc"][0]
            raise KeysError(f"a key's {field} must have 1 to 200 characters") from None
        _write([*read_keys(path), record], path)
    return record, key


def revoke_key(path: Path, key_id: str) -> Key:
    """End a key; gateways notice within ``serve.poll_seconds``.

    Raises:
        KeysError: there is no such key, or it was revoked before.
    """
    with _locked(path):
        keys = {key.id: key for key in read_keys(path)}
        if key_id not in keys:
            raise KeysError(f"{path}: there is no key {key_id}")
        if keys[key_id].revoked is not None:
            raise KeysError(f"{path}: key {key_id} was revoked before")
        keys[key_id] = keys[key_id].model_copy(update={"revoked": datetime.now(UTC)})
        _write(list(keys.values()), path)
    return keys[key_id]


class KeyRing:
    """Looks keys up.

    Args:
        keys: the records.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = {key.id: key for key in keys if key.revoked is None}

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, presented: str) -> Key | None:
        """The record of a presented key; None if there is none. The hashes are compared in constant time."""
        parts = presented.split("-", 2)
        record = self._keys.get(parts[1]) if len(parts) == 3 else None
        same = hmac.compare_digest(_hash(presented), record.hash if record is not None else _NOBODY)
        return record if same else None
