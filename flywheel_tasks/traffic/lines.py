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


class Block(NamedTuple):
    """Whole lines of a file, or the broken end of one.

    Attributes:
        number: of the first line, from 1.
        data: the lines, each with a line end; a line over the limit is cut, but stays over it.
        problem: None, or ``truncated_gzip``: then ``data`` is what there is of the last line.
    """

    number: int
    data: bytes
    problem: str | None = None


def line_blocks(chunks: Iterator[bytes], max_bytes: int, block_bytes: int = 1 << 22) -> Iterator[Block]:
    """Cut chunks into blocks of whole lines.

    Args:
        chunks: bytes in order; a :class:`TruncatedGzipError` from it becomes one last block, of the bytes since the
            last newline (even if there are none), with the problem ``truncated_gzip``.
        max_bytes: of a longer line ``max_bytes + 1`` bytes are given.
        block_bytes: a block is given once it is at least this long.
    """
    number, pending, line_start = 1, bytearray(), 0
    truncated = False
    while True:
        try:
            chunk = next(chunks, None)
        except TruncatedGzipError:
            truncated, chunk = True, None
        if chunk is None:
            break
        if line_start + max_bytes < len(pending) and (end := chunk.find(b"\n")) >= 0:
            chunk = chunk[end:]  # the rest of a line that is too long
        elif line_start + max_bytes < len(pending):
            continue
        pending += chunk
        line_start = pending.rfind(b"\n") + 1
        if line_start >= block_bytes:
            yield Block(number, bytes(pending[:line_start]))
            number += pending.count(b"\n", 0, line_start)
            del pending[:line_start]
            line_start = 0
        del pending[line_start + max_bytes + 1 :]
    if line_start:
        yield Block(number, bytes(pending[:line_start]))
        number += pending.count(b"\n", 0, line_start)
    rest = bytes(pending[line_start:])
    if truncated:
        yield Block(number, rest[:max_bytes], "truncated_gzip")
    elif rest:
        yield Block(number, rest + b"\n")


def split_lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[RawLine]:
    """Split chunks at newlines.

    Args:
        chunks: as for :func:`line_blocks`.
        max_bytes: a longer line is given with the problem ``line_too_long`` and ``max_bytes`` of its bytes.

    Yields:
        every line; the last one also without a newline, but not an empty rest after the last newline.
    """
    for block in line_blocks(chunks, max_bytes, _READ):
        if block.problem is not None:
            yield RawLine(block.number, block.data, block.problem)
            continue
        for number, line in enumerate(block.data[:-1].split(b"\n"), block.number):
            yield RawLine(number, line[:max_bytes], "line_too_long" if len(line) > max_bytes else None)
