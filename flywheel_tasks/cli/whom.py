"""Whom a command is about: users by their raw ids or hashes, from the command line or a file."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Who(NamedTuple):
    """Whom to forget.

    Attributes:
        key: of user ids.
        given: what was given for each, by hash.
        hashed: whether that is the hash itself.
    """

    key: Any
    given: dict[str, str]
    hashed: bool

    @property
    def raw(self) -> list[str]:
        """The raw ids, where they are known."""
        return [] if self.hashed else list(self.given.values())

    @property
    def them(self) -> str:
        """For people."""
        return "the user" if len(self.given) == 1 else "these users"


def whom(users: Sequence[str], file: Path | None, *, hashed: bool, source: str) -> Who:
    """Whom to forget.

    Args:
        users: as they were given.
        file: with more of them, one a line; ``-``: standard input.
        hashed: whether they are hashes.
        source: the setting ``logs.source``, whose key hashes them.

    Raises:
        IdentityError: there are none, the file cannot be read, a hash is none, or there is no key.
    """
    from flywheel_tasks.traffic.identity import HASHED, IdentityError, user_key

    if file is not None:
        # Some editors begin a file with a mark that nobody sees.
        lines = _read(file).removeprefix("\ufeff").split("\n")
        users = [*users, *(line for line in lines if line.strip())]
    if not users:
        raise IdentityError("nobody to forget: give ids, or --from a file with one a line")
    key = user_key(source)  # type: ignore[arg-type]
    for user in users:
        if hashed and not HASHED.fullmatch(user):
            raise IdentityError(
                f"{user!r} is not a hash (u_ and 32 hexadecimal digits): leave --hashed out for a raw id"
            )
    return Who(key, {user if hashed else key.hashed(user): user for user in users}, hashed)


def _read(file: Path) -> str:
    """The text of a file, or of standard input for ``-``."""
    from flywheel_tasks.traffic.identity import IdentityError

    name = "standard input" if str(file) == "-" else str(file)
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise IdentityError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise IdentityError(f"{name}: is not UTF-8 text (byte {error.start + 1})") from error
