"""What becomes what: from the way a checkpoint stores a weight to a GGUF tensor type, by profile and options."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Any

from pyflash.native.block_types import BLOCK_TYPES


class GGMLType(IntEnum):
    """ggml's types as they stand in GGUF files. The converter's own have names here; all others of the library's table
    come by number: GGMLType(12).name is "Q4_K"."""

    F32 = 0
    F16 = 1
    Q8_0 = 8
    I8 = 24
    I32 = 26
    I64 = 27
    BF16 = 30
    MXFP4 = 39

    @classmethod
    def _missing_(cls, value: object) -> Any:
        known = BLOCK_TYPES.get(value) if isinstance(value, int) else None
        if known is None or known.is_foreign:
            return None
        member = int.__new__(cls, known.number)
        member._name_, member._value_ = known.name, known.number
        cls._value2member_map_[known.number] = member
        return member


def block_shape(kind: GGMLType) -> tuple[int, int]:
    """Values and bytes of a block; (0, 0) for a type that ggml has removed."""
    known = BLOCK_TYPES[kind]
    return known.values, known.bytes


def row_bytes(kind: GGMLType, values: int) -> int:
    """Bytes of a row of `values` elements. Raises ValueError when that is no whole number of blocks."""
    block, size = block_shape(kind)
    if values % block:
        raise ValueError(f"a row of {values} values is no multiple of {kind.name}'s block of {block}")
    return values // block * size


class Form(Enum):
    """How a checkpoint stores a weight."""

    FP8 = "FP8"  # e4m3 with a scale (e8m0 or float32) per 128 x 128 block
    FP4 = "FP4"  # two e2m1 codes a byte with an e8m0 scale per 32 inputs
    BF16 = "BF16"
    F16 = "F16"  # only in fine-tunes
    F32 = "F32"
    I64 = "I64"


PROFILES = ("compat", "native")
DENSE = ("q8_0", "bf16", "f32")
EXPERTS = ("keep", "q8_0", "bf16", "f32")

_NAMED = {"q8_0": GGMLType.Q8_0, "bf16": GGMLType.BF16, "f32": GGMLType.F32}


def target_type(
    form: Form,
    *,
    is_matrix: bool,
    is_expert: bool,
    profile: str = "compat",
    dense: str = "q8_0",
    experts: str = "keep",
    is_plain: bool = False,
) -> GGMLType:
    """The GGUF type of a weight.

    compat follows llama.cpp's table: norms float32, BF16 matrices BF16 (float32 with dense="f32"), FP8 as `dense`
    says, FP4 experts MXFP4. ggml has no FP8, so FP8 experts with experts="keep" are treated like dense FP8.
    native keeps FP8 bytes in I8 tensors and is otherwise the same with the defaults. form: of published checkpoints;
    is_plain: this one has floats instead, which are treated like FP8; experts="keep" makes them Q8_0.
    """
    if form is Form.F32:
        return GGMLType.F32
    if form is Form.I64:
        return GGMLType.I32
    if form is Form.BF16:
        if not is_matrix or (profile == "compat" and dense == "f32"):
            return GGMLType.F32
        return GGMLType.BF16
    if profile == "native":
        return GGMLType.MXFP4 if form is Form.FP4 else GGMLType.I8
    if is_expert and experts != "keep":
        return _NAMED[experts]
    if is_plain and is_expert:
        return GGMLType.Q8_0
    return GGMLType.MXFP4 if form is Form.FP4 and not is_plain else _NAMED[dense]
