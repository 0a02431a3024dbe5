"""Requests a user may make: one token bucket each, shared by all workers of a machine.

The generic cell rate algorithm keeps one number a bucket, the time at which it would be full again. The numbers lie in
a mapped file, in the slot that the user's hash names. Two users share a bucket if their hashes do: with 10,000
active users and a million slots, one in a hundred. Two workers that touch a bucket in the same microsecond may let
one request too many through; none is ever wrongly lost.
"""

import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

_SLOTS = 1 << 20
_NUMBER = struct.Struct("<d")


class RateLimiter:
    """Token buckets by user.

    Args:
        path: of the mapped file, 8 MiB, sparse; made if it is not there.
        per_minute: tokens that come back in a minute.
        burst: most tokens in a bucket.
        now: seconds of a clock that all workers share and that never goes back.
    """

    def __init__(
        self, path: Path, *, per_minute: float, burst: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(handle, _SLOTS * _NUMBER.size)
            self._map = mmap.mmap(handle, _SLOTS * _NUMBER.size)
        finally:
            os.close(handle)
        self._seconds = 60.0 / per_minute
        self._room = self._seconds * (burst - 1)
        self._now = now

    def wait(self, user_id: str) -> float:
        """Take a token.

        Returns:
            0.0, or the seconds until there will be one; then none was taken.
        """
        digest = hashlib.blake2b(user_id.encode(), digest_size=8).digest()
        offset = int.from_bytes(digest, "big") % _SLOTS * _NUMBER.size
        now = self._now()
        full = max(now, _NUMBER.unpack_from(self._map, offset)[0])
        # A number from before the machine's last start lies in the future of its new clock, further than any can.
        if full - now > self._room + 2 * self._seconds:
            full = now
        if full - now > self._room:
            return full - now - self._room
        _NUMBER.pack_into(self._map, offset, full + self._seconds)
        return 0.0
