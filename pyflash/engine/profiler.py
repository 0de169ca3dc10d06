"""Where the time of evaluating goes, by operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyflash.native.errors import check
from pyflash.native.library import ffi, lib
from pyflash.native.values import string


@dataclass(frozen=True)
class Operation:
    """One operation, or the products of one weight, over all layers and steps since the last reset.

    weight: for products the tensor's name without its layer. tokens: rows that went through it. matrices: of products
    the calls; of experts those that were used, counted anew at each call. weight_bytes: of these. products:
    multiplications with a weight.
    """

    name: str
    weight: str
    calls: int
    tokens: int
    matrices: int
    weight_bytes: int
    products: float
    seconds: float


class Profiler:
    """Made by Model.profiler(). Times a session that is given it, see Session.profile()."""

    def __init__(self, handle: Any) -> None:
        """Not for callers: use Model.profiler()."""
        self.handle: Any = handle

    def operations(self) -> list[Operation]:
        """Those that were called."""
        row, error = ffi.new("pf_profile_row *"), ffi.new("pf_error *")
        row.struct_size = ffi.sizeof("pf_profile_row")
        found = []
        for index in range(lib.pf_profiler_rows()):
            check(lib.pf_profiler_row(self.handle, index, row, error), error)
            if row.calls:
                found.append(Operation(string(row.operation), string(row.weight), int(row.calls), int(row.tokens),
                                       int(row.matrices), int(row.weight_bytes), float(row.products), float(row.seconds)))
        return found

    def reset(self) -> None:
        lib.pf_profiler_reset(self.handle)
