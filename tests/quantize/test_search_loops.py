"""The loops for any machine find what those of this machine find, to the byte."""

from __future__ import annotations

from typing import Any

import native_build
import numpy as np
import pytest

from pyflash.native.block_types import BLOCK_TYPES
from pyflash.native.library import ffi
from quantize.blocks import WRITABLE, Objective, quantise

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def base() -> Any:
    return ffi.dlopen(str(native_build.build("native", "quantise_base") / "quantise_base.so"))


@pytest.mark.parametrize("name", WRITABLE)
@pytest.mark.parametrize("objective", Objective)
def test_the_bytes_of_the_loops_for_any_machine(name: str, objective: Objective, base: Any) -> None:
    rng = np.random.default_rng(11)
    rows = (0.02 * rng.standard_t(4, (4, 1024))).astype(np.float32)
    rows[1] = np.round(rows[1] * 100) / 100  # many that are the same, and zeros
    importance = np.exp(1.5 * rng.standard_normal(1024)).astype(np.float32)
    kind = BLOCK_TYPES[WRITABLE[name]]
    out = np.empty((4, 1024 // kind.values * kind.bytes), dtype=np.uint8)
    error = ffi.new("pf_error *")
    assert base.pf_codec_quantize(
        kind.number, int(objective), ffi.from_buffer("float[]", rows), ffi.from_buffer("float[]", importance), 4, 1024,
        ffi.from_buffer("uint8_t[]", out, require_writable=True), error) == 0  # fmt: skip
    assert out.tobytes() == quantise(kind.number, rows, importance, objective).tobytes()
