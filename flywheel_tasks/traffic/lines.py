"""Bytes of a log file to its lines, in bounded memory, also when its gzip stream was cut short."""

import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_READ = 1 << 16  # bytes taken from the file at once
_INFLATE = 1 << 18  # bytes unpacked at once, whatever the file claims to hold
_GZIP = 31  # zlib's wbits for gzip headers and trailers


class CorruptGzipError(ValueError):
    """The bytes are no gzip stream, or its checksum is wrong; what was unpacked cannot be trusted."""


class TruncatedGzipError(EOFError):
    """The gzip stream ends before its end mark."""


class RawLine(NamedTuple):
    """One line of a file.

    Attributes:
        number: from 1.
        data: its bytes without the line end; of a broken line, what there is of it (bounded).
        problem: None, or the rule that the line breaks before it is even parsed
            (``line_too_long``, ``truncated_gzip``).
    """

    number: int
    data: bytes
    problem: str | None = None


def plain_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file's bytes in chunks."""
    while chunk := file.read(_READ):
        yield chunk


def gzip_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yield what a gzip file unpacks to, every member of it, in bounded chunks.

    The standard library's ``gzip`` loses the unfinished last line of a cut file and cannot tell a file
    that is cut inside a header from one that is no gzip; ``zlib`` can.

    Raises:
        TruncatedGzipError: the file ends early (after all that could be unpacked was yielded).
        CorruptGzipError: the file is damaged or no gzip.
    """
    member = zlib.decompressobj(_GZIP)
    between_members = False
    packed = b""
    while True:
        packed = packed or file.read(_READ)
        if not packed:
            if between_members:
                return
            if rest := member.flush():
                yield rest
            raise TruncatedGzipError("the gzip stream ends early")
        if between_members:
            packed = packed.lstrip(b"\0")  # padding after a member is allowed
            if not packed:
                continue
            member, between_members = zlib.decompressobj(_GZIP), False
        try:
            chunk = member.decompress(packed, _INFLATE)
        except zlib.error as error:
            raise CorruptGzipError(str(error)) from error
        if chunk:
            yield chunk
        if member.eof:
            packed, between_members = member.unused_data, True
        else:
            packed = member.unconsumed_tail


def split_lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[RawLine]:
    """Split chunks at newlines.

    Args:
        chunks: bytes in order; a :class:`TruncatedGzipError` from it becomes one last line, of the bytes
            since the last newline (even if there are none), with the problem ``truncated_gzip``.
        max_bytes: a longer line is given with the problem ``line_too_long`` and ``max_bytes`` of its bytes.

    Yields:
        every line; the last one also without a newline, but not an empty rest after the last newline.
    """
    number, pending, too_long = 1, bytearray(), False
    truncated = False
    while True:
        try:
            chunk = next(chunks, None)
        except TruncatedGzipError:
            truncated, chunk = True, None
        if chunk is None:
            break
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            pending += chunk[start:end]
            too_long = too_long or len(pending) > max_bytes
            yield RawLine(number, bytes(pending[:max_bytes]), "line_too_long" if too_long else None)
            number, start, too_long = number + 1, end + 1, False
            pending.clear()
        pending += chunk[start:]
        if len(pending) > max_bytes:
            too_long = True
            del pending[max_bytes:]
    if truncated:
        yield RawLine(number, bytes(pending), "truncated_gzip")
    elif pending or too_long:
        yield RawLine(number, bytes(pending), "line_too_long" if too_long else None)
