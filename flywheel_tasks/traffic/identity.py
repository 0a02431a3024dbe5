"""User ids as keyed hashes: no table after the raw logs holds a raw id.

A user's hash is HMAC-SHA256 of the raw id under a secret key, cut to 128 bits: the same in every generation, so that
splits stay put, and of no use to anyone without the key. The key comes from the environment and is written nowhere;
its fingerprint is, so that another key is noticed before it moves every user to another split.

``inputs/users.json`` pins, for a generation, the fingerprint and the hashes of users who are to be forgotten.
"""

import hmac
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
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
_USER_ID = "user_id"
_NOBODY = ("null", "None")
# Lines may be broken, or JSON within JSON, where quotes and white space stand behind backslashes.
_SPACE = r"(?:\s|\\+[nrt])*"
_QUOTE = re.compile(r"\\*[\"']")
_PIECE = re.compile(
    rf"(?P<quote>{_QUOTE.pattern})|(?P<open>[{{\[])|(?P<close>[}}\]])|(?P<gap>(?:[\s,:]|\\+[nrt])+)"
    r"|(?P<bare>(?:[^\s,{}\[\]\"\\]|\\+(?![\"'\\]))+)"
)


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
    # Without white space around it, as the file's: the same key by either way is the same key.
    text, file = environ.get(KEY, "").strip(), environ.get(KEY_FILE)
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
        sample: share of the users that is read, by their hashes.
    """

    key: UserKey
    forgotten: frozenset[str]
    sample: float = 1.0
    _known: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def hashed(self, user_id: str) -> str:
        """The hash of a raw id; remembered, so that each is computed once."""
        found = self._known.get(user_id)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[user_id] = self.key.hashed(user_id)
        return found

    def sampled(self, user: str) -> bool:
        """Whether a user, as a hash, is of the sample: always the same ones; a larger share adds to them."""
        return int(user[2:10], 16) < self.sample * 2**32


def user_fields(rename: Mapping[str, str]) -> list[str]:
    """The names under which logs write a user's id.

    Args:
        rename: the setting ``ingest.rename``: old field names to new ones.
    """
    return [_USER_ID, *(old for old, new in rename.items() if new == _USER_ID)]


class Masked(NamedTuple):
    """A text with hashes in the place of user ids.

    Attributes:
        text: that is left.
        users: the hashes, sorted; of a cut text only those of ids that are surely whole and the line's own.
        forgotten: whether it names a forgotten user.
    """

    text: str
    users: list[str]
    forgotten: bool


class Mask:
    """Puts hashes in the place of user ids in a text that is kept as it was read: a line in quarantine, its detail.

    The text may be broken, so ids are found by the field's name, not by parsing. Where the value is an object or an
    array, every string and number in it counts as an id; one that does not close goes on to the end of the text.

    Args:
        identity: hashes ids, and knows whom to forget.
        rename: the setting ``ingest.rename``.
    """

    def __init__(self, identity: Identity, rename: Mapping[str, str]) -> None:
        self._identity = identity
        # Many loggers write all but ASCII as \uXXXX, in names, too; within JSON in JSON behind more backslashes.
        forms = {form for name in user_fields(rename) for form in (name, json.dumps(name)[1:-1])}
        names = "|".join(re.escape(form).replace(r"\\", r"\\+") for form in sorted(forms))
        self._name = re.compile(rf"(?<!\w)(?:{names})({_QUOTE.pattern}){_SPACE}:{_SPACE}")

    def masked(self, text: str, *, cut: bool = False) -> Masked:
        """Mask a text, and tell whom it names.

        Args:
            text: not cut yet, so that no cut leaves the start of an id; else ``cut``.
            cut: it is the start of a line. An id at its end may be a part of one, and one in a string (JSON in JSON)
                may be what somebody wrote, while the line's own is cut off.
        """
        pieces, at, named, whole = [], 0, set[str](), set[str]()
        first = quote[0] if (quote := _QUOTE.search(text)) is not None else ""
        while (name := self._name.search(text, at)) is not None:
            value, end, users = self._value(text, name.end(), name[1])
            pieces += [text[at : name.end()], value]
            named.update(users)
            # Another quote than the line's first one is in a string: "text": "{'user_id': 'another'}".
            if not cut or (end < len(text) and len(name[1]) == 1 and name[1] == first):
                whole.update(users)
            at = end
        forgotten = not named.isdisjoint(self._identity.forgotten)
        return Masked("".join([*pieces, text[at:]]), sorted(whole), forgotten)

    def _value(self, text: str, at: int, quote: str) -> tuple[str, int, list[str]]:
        """The masked value that starts at a place, where it ends, and the hashes in it."""
        pieces, depth, users = [], 0, list[str]()
        while (piece := _PIECE.match(text, at)) is not None:
            kind = piece.lastgroup
            if not depth and kind in ("close", "gap"):
                break  # there is no value
            at = piece.end()
            if kind in ("quote", "bare"):
                mark, user = quote, piece[0]
                if kind == "quote":
                    mark, (user, at) = piece[0], _string(text, at, piece[0])
                if kind == "bare" and user in _NOBODY:
                    pieces.append(user)
                elif not user:
                    pieces.append(mark * 2)
                else:
                    users.append(self._identity.hashed(user))
                    pieces.append(f"{mark}{users[-1]}{mark}")
            else:
                depth += {"open": 1, "close": -1}.get(str(kind), 0)
                pieces.append(piece[0])
            if not depth:
                break
        return "".join(pieces), at, users


def _string(text: str, start: int, mark: str) -> tuple[str, int]:
    """A string behind its opening quote, decoded, and where it ends; a cut one ends with the text."""
    escapes = len(mark) - 1
    for closing in _QUOTE.finditer(text, start):
        # Of JSON in a string of JSON, a string closes after 1, 5, 9, ... backslashes; after 3, 7, ... is a quote in it.
        if closing[0][-1] == mark[-1] and (len(closing[0]) - 1) % (2 * escapes + 2) == escapes:
            content, end = text[start : closing.end() - 1 - escapes], closing.end()
            break
    else:
        content, end = text[start:], len(text)
    for _ in range((escapes + 1).bit_length()):
        try:
            content = orjson.loads(f'"{content}"')
        except orjson.JSONDecodeError:
            break
    return content, end


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
