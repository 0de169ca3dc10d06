"""The library's table of tensor element types (csrc/format/types.h): numbers, names and sizes of blocks."""

from __future__ import annotations

from dataclasses import dataclass

from pyflash.native.library import ffi, lib


@dataclass(frozen=True)
class BlockType:
    """A type of GGUF files: values and bytes of a block, and what this build does with it."""

    name: str
    number: int
    values: int  # 0 for a type of which only the name is known: ggml has removed it, or it is foreign
    bytes: int
    is_weight: bool  # matrices of it are computed with
    has_integers: bool  # and with integer activations
    is_written: bool  # the converter writes it
    is_foreign: bool  # ik_llama.cpp's own


def names_at(places: int) -> list[str]:
    """The names of the types at the places of the table whose bits are set: what a device has kernels for."""
    info = ffi.new("pf_type_info *", {"struct_size": ffi.sizeof("pf_type_info")})
    return [ffi.string(info.name).decode() for place in range(places.bit_length())
            if places >> place & 1 and lib.pf_type_get_info(place, info)]  # fmt: skip


def _read() -> dict[int, BlockType]:
    types = {}
    info = ffi.new("pf_type_info *", {"struct_size": ffi.sizeof("pf_type_info")})
    index = 0
    while lib.pf_type_get_info(index, info):
        index += 1
        if info.uses & lib.PF_TYPE_OWN:
            continue
        types[info.number] = BlockType(
            ffi.string(info.name).decode(), info.number, info.block_size, info.block_bytes,
            bool(info.uses & lib.PF_TYPE_WEIGHT), bool(info.uses & lib.PF_TYPE_INTEGER),
            bool(info.uses & lib.PF_TYPE_WRITTEN), bool(info.uses & lib.PF_TYPE_FOREIGN),
        )
    return types


BLOCK_TYPES = _read()  # by number
