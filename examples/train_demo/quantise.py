"""Rounding to the checkpoint's weight formats, as codes for export and as straight-through rounding for training; and of
cache rows, as whatever runs the model keeps them."""

from __future__ import annotations

import torch
from torch import Tensor

FP4_BLOCK = 32
FP8_BLOCK = 128
_FP4_LARGEST = 6.0
_FP8_LARGEST = 448.0
_FP4_EDGES = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])  # midpoints between neighbours


def power_scale(largest: Tensor, limit: float) -> Tensor:
    """2^ceil(log2(largest / limit)): the smallest power of two that brings largest within the limit. Zero blocks: 1."""
    mantissa, exponent = torch.frexp(largest / limit)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent), torch.ones_like(largest))


def fp4_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """e2m1 codes (uint8, 0..15) and scales [..., cols / 32] of a weight [..., cols]."""
    blocks = weight.unflatten(-1, (-1, FP4_BLOCK))
    scale = power_scale(blocks.abs().amax(-1), _FP4_LARGEST)
    scaled = (blocks / scale[..., None]).flatten(-2)
    codes = torch.bucketize(scaled.abs().contiguous(), _FP4_EDGES.to(weight.device)).to(torch.uint8)
    return codes | ((scaled < 0).to(torch.uint8) << 3), scale


_FP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def fp4_values(codes: Tensor) -> Tensor:
    """What codes 0..15 stand for, before the scale."""
    return _FP4_VALUES.to(codes.device)[codes.int()]


def round_fp4(weight: Tensor) -> Tensor:
    codes, scale = fp4_codes(weight)
    values = fp4_values(codes)
    return (values.unflatten(-1, (-1, FP4_BLOCK)) * scale[..., None]).flatten(-2)


def fp8_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn codes [rows, cols] and scales [ceil(rows/128), ceil(cols/128)] of a matrix."""
    rows, cols = weight.shape
    pad = torch.nn.functional.pad(weight, (0, -cols % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    tiles = pad.unflatten(0, (-1, FP8_BLOCK)).unflatten(-1, (-1, FP8_BLOCK))
    scale = power_scale(tiles.abs().amax((1, 3)), _FP8_LARGEST)
    codes = (tiles / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    return codes.flatten(2).flatten(0, 1)[:rows, :cols], scale


def round_fp8(weight: Tensor) -> Tensor:
    rows, cols = weight.shape
    codes, scale = fp8_blocks(weight)
    return codes.float() * scale.repeat_interleave(FP8_BLOCK, 0)[:rows].repeat_interleave(FP8_BLOCK, 1)[:, :cols]


def fake_fp4(weight: Tensor) -> Tensor:
    return weight + (round_fp4(weight.detach()) - weight.detach())


def fake_fp8(weight: Tensor) -> Tensor:
    return weight + (round_fp8(weight.detach()) - weight.detach())


ROW_BLOCK = 64
_LEAST_ROW = 1e-4  # of a block's largest, as in the published reference


def fake_row(row: Tensor, rope: int) -> Tensor:
    """Window and compressed rows [..., d]: e4m3 with a scale for 64 dims, the last `rope` dims bfloat16."""
    value = row.detach()
    n = value.shape[-1] - rope
    blocks = torch.nn.functional.pad(value[..., :n], (0, -n % ROW_BLOCK)).unflatten(-1, (-1, ROW_BLOCK))
    scale = power_scale(blocks.abs().amax(-1, keepdim=True).clamp_min(_LEAST_ROW), _FP8_LARGEST)
    plain = ((blocks / scale).to(torch.float8_e4m3fn).float() * scale).flatten(-2)[..., :n]
    rounded = torch.cat([plain, value[..., n:].bfloat16().float()], -1)
    return row + (rounded - value)


def fake_index(x: Tensor) -> Tensor:
    """The indexer's queries and rows [..., d], d a power of two: e2m1 after a Hadamard transform."""
    return fake_fp4(hadamard(x))


def hadamard(x: Tensor) -> Tensor:
    """Orthogonal, in Sylvester order, over the last axis."""
    n, done = x.shape[-1], 1
    while done < n:
        a, b = x.unflatten(-1, (-1, 2, done)).unbind(-2)
        x = torch.stack([a + b, a - b], -2).flatten(-3)
        done *= 2
    return x * n**-0.5
