"""Whole characters of bytes that arrive bit by bit, against the beginnings of all characters."""

from __future__ import annotations

import itertools
import random

import pytest

from .conftest import Native

pytestmark = pytest.mark.quick

# Ends of all ranges that the definition of UTF-8 tells apart.
BYTES = [0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE,
         0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF]  # fmt: skip


@pytest.fixture(scope="module")
def beginnings() -> set[bytes]:
    """What is the beginning of a character and not yet one."""
    code_points = [c for c in range(0x80, 0x110000) if not 0xD800 <= c < 0xE000 and (c < 0x1000 or c % 64 == 0)]
    encoded = [chr(c).encode() for c in code_points]
    return {data[:k] for data in encoded for k in range(1, len(data))}


def expected(data: bytes, beginnings: set[bytes]) -> int:
    return next((len(data) - k for k in (1, 2, 3) if data[-k:] in beginnings and k <= len(data)), len(data))


def test_every_kind_of_end(native: Native, beginnings: set[bytes]) -> None:
    complete = native.lib.pf_utf8_complete
    assert complete(native.ffi.NULL, 0) == 0
    for length in range(1, 5):
        for values in itertools.product(BYTES, repeat=length):
            data = bytes(values)
            assert complete(data, length) == expected(data, beginnings), data


def test_text_in_pieces(native: Native) -> None:
    rng = random.Random(41)
    for _ in range(2000):
        data = "".join(rng.choices("aé中😀\U0010ffff\u0800\ud7ff\ue000", k=rng.randrange(8))).encode()
        for cut in range(len(data) + 1):
            assert native.lib.pf_utf8_complete(data, cut) == len(data[:cut].decode(errors="ignore").encode())
