"""The parts of a session in stages as one: what Session.export_rows() and export_tail() give of each stage, joined.

    begin      16 bytes: of a tail its position and the lowest one that it leads back to, as one session's tail begins; else 0
    n          uint32: the number of stages
    sizes      n times uint64
    the stages' bytes, from the first to the last
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pyflash.native.errors import FormatError

_TAIL = struct.Struct("<qq")
_COUNT = struct.Struct("<I")
_Bytes = bytes | bytearray | memoryview


def join_rows(parts: Sequence[_Bytes]) -> bytearray:
    return _joined(_TAIL.pack(0, 0), parts)


def join_tails(parts: Sequence[_Bytes]) -> bytearray:
    """FormatError where stages' tails are of different positions."""
    begins = [_TAIL.unpack_from(part) for part in parts]
    if len({position for position, _ in begins}) > 1:
        raise FormatError(f"the stages have tails of different positions: {sorted({at for at, _ in begins})}")
    return _joined(_TAIL.pack(begins[0][0], max(floor for _, floor in begins)), parts)


def _joined(begin: bytes, parts: Sequence[_Bytes]) -> bytearray:
    out = bytearray(begin)
    out += _COUNT.pack(len(parts))
    out += struct.pack(f"<{len(parts)}Q", *map(len, parts))
    for part in parts:
        out += part
    return out


def split(data: _Bytes, n: int) -> list[bytes]:
    """The bytes of each of n stages. FormatError for what is not theirs."""
    view, header = memoryview(data), _TAIL.size + _COUNT.size + 8 * n
    if len(view) < header or _COUNT.unpack_from(view, _TAIL.size)[0] != n:
        raise FormatError(f"this is no part of a session in {n} stages")
    parts, at = [], header
    for size in struct.unpack_from(f"<{n}Q", view, _TAIL.size + _COUNT.size):
        parts.append(bytes(view[at : at + size]))
        at += size
    if at != len(view):
        raise FormatError(f"this is no part of a session in {n} stages: it has {len(view)} bytes, and names {at}")
    return parts
