"""What becomes what, against the GGUF table."""

from __future__ import annotations

import pytest

from quantize.plan import Form, GGMLType, row_bytes, target_type

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    "form, is_matrix, is_expert, options, expected",
    [
        (Form.FP8, True, False, {}, "Q8_0"),
        (Form.FP8, True, False, {"dense": "bf16"}, "BF16"),
        (Form.FP8, True, False, {"dense": "f32"}, "F32"),
        (Form.BF16, True, False, {}, "BF16"),
        (Form.BF16, True, False, {"dense": "f32"}, "F32"),
        (Form.BF16, False, False, {"dense": "bf16"}, "F32"),
        (Form.F32, True, False, {"dense": "bf16"}, "F32"),
        (Form.I64, True, False, {"dense": "f32"}, "I32"),
        (Form.FP4, True, True, {"dense": "f32"}, "MXFP4"),
        (Form.FP4, True, True, {"experts": "q8_0"}, "Q8_0"),
        (Form.FP4, True, True, {"experts": "f32"}, "F32"),
        (Form.FP8, True, True, {}, "Q8_0"),
        (Form.FP8, True, True, {"dense": "bf16"}, "BF16"),
        (Form.FP8, True, True, {"dense": "bf16", "experts": "f32"}, "F32"),
        (Form.FP8, True, False, {"profile": "native"}, "I8"),
        (Form.FP8, True, True, {"profile": "native"}, "I8"),
        (Form.FP4, True, True, {"profile": "native"}, "MXFP4"),
        (Form.BF16, False, False, {"profile": "native"}, "F32"),
        (Form.BF16, True, False, {"profile": "native"}, "BF16"),
    ],
)
def test_target_types(form: Form, is_matrix: bool, is_expert: bool, options: dict[str, str], expected: str) -> None:
    assert target_type(form, is_matrix=is_matrix, is_expert=is_expert, **options) is GGMLType[expected]


def test_row_bytes() -> None:
    assert row_bytes(GGMLType.MXFP4, 4096) == 4096 // 32 * 17
    assert row_bytes(GGMLType.Q8_0, 64) == 68
    with pytest.raises(ValueError, match="multiple"):
        row_bytes(GGMLType.MXFP4, 48)
