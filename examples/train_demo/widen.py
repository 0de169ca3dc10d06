"""A trained model with twice the widths: `python widen.py CHECKPOINT OUT` writes a checkpoint of the "wide" preset.

The hidden size and the ranks of the projections double, and so do experts. Activations come twice, and a matrix's columns
are halved between the two with noise added to one half and taken from the other: the same function to begin with, in
weights that look like trained ones in every block of 256. The MTP block is left out.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from export import write_checkpoint
from model import Params
from presets import PRESETS
from quantise import FP4_BLOCK, FP8_BLOCK, fp4_values


def _scale(tensor: Tensor) -> Tensor:
    """E8M0."""
    return torch.exp2(tensor.view(torch.uint8).float() - 127)


def _plain(name: str, tensors: dict[str, Tensor]) -> Tensor:
    """A stored tensor as float32, or as it is where it holds ids."""
    value = tensors[name]
    scale_name = name.removesuffix("weight") + "scale"
    if scale_name not in tensors:
        return value.float() if value.is_floating_point() else value
    scale = _scale(tensors[scale_name])
    if value.dtype == torch.int8:
        packed = value.view(torch.uint8).int()
        codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
        return (fp4_values(codes).unflatten(-1, (-1, FP4_BLOCK)) * scale[..., None]).flatten(-2)
    rows, columns = value.shape
    return value.float() * scale.repeat_interleave(FP8_BLOCK, 0)[:rows].repeat_interleave(FP8_BLOCK, 1)[:, :columns]


def read_params(checkpoint: Path, with_drafts: bool = False) -> Params:
    """What export.py wrote, under the names of model.py. with_drafts: with the drafting block."""
    tensors = load_file(checkpoint / "model.safetensors")
    params: Params = {}
    experts: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name in tensors:
        if name.endswith(".scale") or (name.startswith("mtp.") and not with_drafts):
            continue
        value = _plain(name, tensors)
        if ".ffn.experts." in name:
            layer, _, rest = name.partition(".ffn.experts.")
            number, part, _ = rest.split(".")
            experts.setdefault(f"{layer}.ffn.experts.", {}).setdefault(int(number), {})[part] = value
        elif ".shared_experts." in name:
            layer, _, rest = name.partition(".ffn.shared_experts.")
            experts.setdefault(f"{layer}.ffn.shared.", {}).setdefault(0, {})[rest.split(".")[0]] = value
        else:
            params[name] = value
    for prefix, found in experts.items():
        w13 = torch.stack([torch.cat([found[e]["w1"], found[e]["w3"]]) for e in range(len(found))])
        w2 = torch.stack([found[e]["w2"] for e in range(len(found))])
        routed = ".experts." in prefix
        params |= {prefix + "w13": w13 if routed else w13[0], prefix + "w2": w2 if routed else w2[0]}
    return params


class Widener:
    """Parameters of twice the widths, one by one."""

    def __init__(self, streams: int, groups: int, seed: int) -> None:
        self.streams, self.groups = streams, groups
        self._generator = torch.Generator().manual_seed(seed)

    def halved(self, weight: Tensor) -> Tensor:
        """The last axis twice, for an input that comes twice: halves whose sum is the weight."""
        noise = torch.randn(weight.shape, generator=self._generator) * weight.std() / 2
        return torch.cat([weight / 2 + noise, weight / 2 - noise], -1)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        part = name.removeprefix("layers.").partition(".")[2] if name.startswith("layers.") else name
        if "hc_" in part and part.endswith("_fn"):
            return self.halved(value.unflatten(-1, (self.streams, -1))).flatten(-2)
        if part in ("embed.weight", "norm.weight", "attn_norm.weight", "ffn_norm.weight", "attn.q_norm.weight"):
            return torch.cat([value, value], -1)
        if part == "attn.wq_a.weight":
            return self.halved(torch.cat([value, value]))
        if part == "attn.wo_a.weight":
            rows = value.unflatten(0, (self.groups, -1))
            return torch.cat([rows, rows], 1).flatten(0, 1)
        if part == "attn.wo_b.weight":
            columns = torch.cat([value, value]).unflatten(-1, (self.groups, -1))
            return self.halved(columns).flatten(-2)
        if part.endswith("w13"):
            rows = value.unflatten(-2, (2, -1))
            return self.halved(torch.cat([rows, rows], -2).flatten(-3, -2))
        if part.endswith(("experts.w2", "shared.w2")):
            return self.halved(torch.cat([value, value], -2))
        if value.ndim == 2 and part.endswith(".weight") or part == "head.weight":
            return self.halved(value)  # what reads the streams or q_a, and writes what stays as wide as it is
        return value  # sinks, biases, ids, and what belongs to heads


def widen(params: Params, seed: int = 0) -> Params:
    """Of the "cpu" preset to the "wide" one."""
    wide = PRESETS["wide"]
    widener = Widener(wide["hc_mult"], wide["o_groups"], seed)
    return {name: widener(name, value).contiguous() for name, value in params.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help='of the "cpu" preset: `python -m pyflash --demo-checkpoint`')
    parser.add_argument("out", type=Path, help="folder of the new one")
    options = parser.parse_args()
    write_checkpoint(options.out, PRESETS["wide"], widen(read_params(options.checkpoint)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(options.checkpoint / name, options.out / name)


if __name__ == "__main__":
    main()
