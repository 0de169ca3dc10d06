"""The library's table of tensor types against ggml's, as PyPI's `gguf` has it, and what takes its sizes from there."""

from __future__ import annotations

import gguf
import pytest

from pyflash.native.block_types import BLOCK_TYPES
from pyflash.native.library import ffi, lib
from quantize import codecs
from quantize.plan import GGMLType, block_shape, row_bytes

NEWER = {"Q2_0": (42, 64, 18)}  # than gguf 0.19, which lacks it
REMOVED = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
           38: "IQ4_NL_8_8"}  # fmt: skip


def test_all_of_ggmls() -> None:
    known = {kind.name: (kind.number, kind.values, kind.bytes) for kind in BLOCK_TYPES.values() if kind.values}
    theirs = {kind.name: (int(kind), *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {name: known[name] for name in theirs} == theirs
    assert known == {**NEWER, **theirs}
    assert {kind.number: kind.name for kind in BLOCK_TYPES.values() if not kind.values and not kind.is_foreign} == REMOVED


def test_foreign_ones_have_no_blocks() -> None:
    foreign = {kind.number: kind for kind in BLOCK_TYPES.values() if kind.is_foreign}
    assert foreign[145].name == "IQ2_KS" and foreign[158].name == "IQ1_KT" and foreign[218].name == "IQ3_XXS_R4"
    assert min(foreign) >= 96 and not any(kind.values or kind.is_weight for kind in foreign.values())


def test_what_this_build_computes_with() -> None:
    assert {kind.name for kind in BLOCK_TYPES.values() if kind.is_weight} >= {"F32", "F16", "BF16", "Q8_0", "MXFP4"}
    assert all(kind.is_weight for kind in BLOCK_TYPES.values() if kind.has_integers)


def test_converters_types() -> None:
    """Every name that the converter speaks of is the table's, and all others come by number."""
    assert {kind.name: BLOCK_TYPES[kind].name for kind in GGMLType} == {kind.name: kind.name for kind in GGMLType}
    assert {BLOCK_TYPES[kind].name for kind in GGMLType} >= {t.name for t in BLOCK_TYPES.values() if t.is_written}
    assert GGMLType(12).name == "Q4_K" and GGMLType(12) is GGMLType(12) and block_shape(GGMLType(12)) == (256, 144)
    assert row_bytes(GGMLType(14), 512) == 420
    for number in (77, 139, 1000, -1):
        with pytest.raises(ValueError, match=str(number)):
            GGMLType(number)


def test_codecs_sizes() -> None:
    assert (codecs.BLOCK, codecs.MXFP4_BYTES, codecs.Q8_0_BYTES) == (32, 17, 34)


def test_by_place() -> None:
    info = ffi.new("pf_type_info *")
    assert lib.pf_type_get_info(0, info) == 0  # struct_size was not set
    info.struct_size = ffi.sizeof("pf_type_info")
    assert lib.pf_type_get_info(0, info) == 1 and ffi.string(info.name) == b"F32"
    assert lib.pf_type_get_info(-1, info) == lib.pf_type_get_info(1000, info) == 0
