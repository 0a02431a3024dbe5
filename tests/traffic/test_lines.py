import gzip
import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.traffic.lines import (
    CorruptGzipError,
    RawLine,
    TruncatedGzipError,
    gzip_chunks,
    plain_chunks,
    split_lines,
)


def unpacked(data: bytes) -> bytes:
    return b"".join(gzip_chunks(io.BytesIO(data)))


def lines_of(data: bytes, max_bytes: int = 1000) -> list[RawLine]:
    return list(split_lines(plain_chunks(io.BytesIO(data)), max_bytes))


@given(st.binary(max_size=300))
def test_lines_of_a_plain_file_are_its_lines(data):
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert [line.data for line in lines_of(data)] == expected
    assert [line.number for line in lines_of(data)] == list(range(1, len(expected) + 1))


def test_a_line_of_the_limit_passes_and_a_longer_one_is_cut_and_marked():
    found = lines_of(b"x" * 10 + b"\n" + b"y" * 11 + b"\nz\n" + b"w" * 300_000, max_bytes=10)
    assert [(line.number, line.data, line.problem) for line in found] == [
        (1, b"x" * 10, None),
        (2, b"y" * 10, "line_too_long"),
        (3, b"z", None),
        (4, b"w" * 10, "line_too_long"),
    ]


@given(st.lists(st.binary(max_size=2000), max_size=4), st.integers(0, 9))
def test_gzip_members_and_padding_are_read_as_gzip_reads_them(parts, padding):
    data = b"".join(gzip.compress(part) for part in [b"first", *parts]) + b"\0" * padding
    assert unpacked(data) == gzip.decompress(data)


def test_highly_compressible_data_comes_in_bounded_chunks():
    sizes = [len(chunk) for chunk in gzip_chunks(io.BytesIO(gzip.compress(bytes(20_000_000))))]
    assert sum(sizes) == 20_000_000
    assert max(sizes) <= 1 << 18


TEXT = b"".join(b"line %d of some text that repeats\n" % n for n in range(200))


@pytest.mark.parametrize("members", [1, 2])
def test_a_cut_anywhere_gives_a_prefix_and_is_told(members):
    whole = gzip.compress(TEXT) * members
    between = {len(whole) // members * n for n in range(1, members)}  # cut there, a file is whole
    for end in sorted(set(range(len(whole))) - between):
        got: list[bytes] = []
        with pytest.raises(TruncatedGzipError):
            got.extend(gzip_chunks(io.BytesIO(whole[:end])))
        assert (TEXT * members).startswith(b"".join(got))
    assert unpacked(whole) == TEXT * members


def test_all_that_can_be_unpacked_of_a_cut_file_is_given():
    whole = gzip.compress(TEXT)
    got = []
    with pytest.raises(TruncatedGzipError):
        got.extend(gzip_chunks(io.BytesIO(whole[:-8])))  # only the checksum is missing
    assert b"".join(got) == TEXT


def test_the_broken_tail_is_one_line_also_when_it_is_empty():
    def cut(data: bytes):
        yield data
        raise TruncatedGzipError("cut")

    assert list(split_lines(cut(b"a\nb"), 10)) == [RawLine(1, b"a"), RawLine(2, b"b", "truncated_gzip")]
    assert list(split_lines(cut(b"a\n"), 10)) == [RawLine(1, b"a"), RawLine(2, b"", "truncated_gzip")]


@pytest.mark.parametrize("damage", ["not gzip", "checksum", "garbage after", "body"])
def test_damage_is_no_truncation(damage):
    data = bytearray(gzip.compress(random.Random(1).randbytes(5000)))
    if damage == "not gzip":
        data = bytearray(b'{"a": 1}\n')
    elif damage == "checksum":
        data[-8] ^= 1
    elif damage == "garbage after":
        data += b"rubbish rubbish rubbish"
    else:
        data[100] ^= 255
    with pytest.raises(CorruptGzipError):
        unpacked(bytes(data))
