"""Trained parameters to a checkpoint in the official layout: FP4 experts, FP8 linears, BF16 and float32 for the rest.

`python export.py OUT` writes OUT/checkpoint from OUT/state.pt, also while train.py is still at work.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from model import FP8_NAMES, Params
from quantise import fp4_codes, fp8_blocks

from gguf_export.outputs import write_output

_FLOAT32 = ("attn_sink", "ape", "gate.bias", "hc_attn_", "hc_ffn_", "hc_head_")


def split_stacks(params: Params) -> Iterator[tuple[str, Tensor]]:
    """The parameters under their official names: experts one by one, gate and up projections apart."""
    for name, value in params.items():
        if name.endswith("experts.w13"):
            for e, both in enumerate(value):
                for part, matrix in zip(("w1", "w3"), both.chunk(2), strict=True):
                    yield name.replace("w13", f"{e}.{part}.weight"), matrix
        elif name.endswith("experts.w2"):
            for e, matrix in enumerate(value):
                yield name.replace("w2", f"{e}.w2.weight"), matrix
        elif name.endswith("shared.w13"):
            for part, matrix in zip(("w1", "w3"), value.chunk(2), strict=True):
                yield name.replace("shared.w13", f"shared_experts.{part}.weight"), matrix
        elif name.endswith("shared.w2"):
            yield name.replace("shared.w2", "shared_experts.w2.weight"), value
        else:
            yield name, value


def _is_fp8(name: str) -> bool:
    wanted = any(f".{part}." in name for part in (*FP8_NAMES, "shared_experts"))
    return wanted and "compressor" not in name and name.endswith(".weight")


def _e8m0(scale: Tensor) -> Tensor:
    _, exponent = torch.frexp(scale)
    return (exponent - 1 + 127).to(torch.uint8).view(torch.float8_e8m0fnu)


def stored(params: Params) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint, as it is stored."""
    for name, value in split_stacks(params):
        value = value.detach().cpu()
        scale_name = name.removesuffix("weight") + "scale"
        if ".ffn.experts." in name:
            codes, scale = fp4_codes(value)
            yield name, (codes[:, 0::2] | codes[:, 1::2] << 4).view(torch.int8)
            yield scale_name, _e8m0(scale)
        elif _is_fp8(name):
            codes, scale = fp8_blocks(value)
            yield name, codes
            yield scale_name, _e8m0(scale)
        elif name.endswith("tid2eid"):
            yield name, value.long()
        else:
            yield name, value.to(torch.float32 if any(part in name for part in _FLOAT32) else torch.bfloat16)


def write_checkpoint(folder: Path, config: dict[str, Any], params: Params, stored_ones: Params | None = None) -> None:
    """Weights, index and configuration; the tokenizer's files are tokenizer.py's. stored_ones: more tensors, by their official
    names and as they are to be stored."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in stored(params)} | (stored_ones or {})
    file = "model.safetensors"
    write_output(folder / file, save(tensors), streams=False)
    size = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(sorted(tensors), file)}
    generation = {"bos_token_id": 0, "do_sample": True, "eos_token_id": 1, "temperature": 0.3, "top_p": 0.95}
    for name, content in (
        ("model.safetensors.index.json", index), ("config.json", config), ("generation_config.json", generation)
    ):  # fmt: skip
        write_output(folder / name, (json.dumps(content, indent=2) + "\n").encode("utf-8"), streams=False)


def export(out: Path) -> Path:
    """OUT/checkpoint from what train.py last saved in OUT, with the tokenizer's files."""
    state = torch.load(out / "state.pt", weights_only=True)
    folder = out / "checkpoint"
    write_checkpoint(folder, state["config"], state["params"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(out / name, folder / name)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="train.py's folder")
    print(export(parser.parse_args().out))
