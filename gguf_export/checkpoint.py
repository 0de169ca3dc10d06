"""A checkpoint on disk: its config, where every tensor is, and whether they are what the config says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gguf_export.config import ModelConfig, parse_config, read_json_object
from gguf_export.errors import ConvertError, several
from gguf_export.inventory import E8M0, Weight, draft_weights, main_weights, tensors_of
from gguf_export.safetensors_file import TensorRef, read_header, tensor_bytes
from quantize.plan import Form

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MOST_INDEX_BYTES = 256 << 20

_EXPERT = re.compile(r"\.ffn\.experts\.\d+\.w[123]\.(weight|scale)$")


@dataclass(frozen=True)
class Checkpoint:
    """What the files say. `tensors` holds all of them, also those that a conversion leaves out.

    drafts: "none", "mtp" (the MTP block) or "dspark" (the 0731 release's stages). expert_form is Form.FP4 or
    Form.FP8, expert_scale the dtype of FP8 experts' scales.
    """

    path: Path
    config: ModelConfig
    tensors: dict[str, TensorRef]
    drafts: str
    expert_form: Form
    expert_scale: str
    is_complete: bool  # False: planned from config.json and the index, because shards are absent

    @property
    def release(self) -> str:
        """Whose chat encoding it was trained on: "0731" where the config or tensors have DSpark stages, or "preview"."""
        return "0731" if self.config.dspark is not None or self.drafts == "dspark" else "preview"

    def main_weights(self) -> list[Weight]:
        return list(main_weights(self.config, self.expert_form))

    def draft_weights(self) -> list[Weight]:
        return list(draft_weights(self.config, self.expert_form)) if self.drafts != "none" else []

    def draft_names(self) -> list[str]:
        return [name for name in self.tensors if name.startswith("mtp.")]

    def scale_ref(self, weight: Weight) -> TensorRef | None:
        return self.tensors[weight.scale_name] if weight.is_scaled else None


def _read_index(path: Path) -> dict[str, str]:
    index, _ = read_json_object(path, MOST_INDEX_BYTES)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ConvertError(f"{path} is damaged: no weight_map")
    for name, shard in places.items():
        if not isinstance(shard, str) or shard != Path(shard).name or not shard.endswith(".safetensors"):
            raise ConvertError(f"{path} is damaged: tensor {name:.200} is said to be in {shard!r:.80}")
    return places


def _read_shards(folder: Path, places: dict[str, str]) -> dict[str, TensorRef]:
    tensors: dict[str, TensorRef] = {}
    problems = []
    for shard in sorted(set(places.values())):
        for name, ref in read_header(folder / shard).items():
            if places.get(name) == shard:
                tensors[name] = ref
            else:
                where = places.get(name, "no file")
                problems.append(f"{name} is in {shard}, but the index says {where}")
    problems += [f"{name} is not in {places[name]}, where the index says" for name in places if name not in tensors]
    if problems:
        raise several(f"the shards in {folder} do not fit {INDEX}", problems)
    return tensors


def _guess_tensors(
    config: ModelConfig, form: Form, names: Iterable[str] | None, drafts: bool = True
) -> dict[str, TensorRef]:
    """The config's inventory with sizes but no places; restricted to the index's names where there is one."""
    weights = [*main_weights(config, form), *(draft_weights(config, form) if drafts else ())]
    known = {name: (dtype, shape) for weight in weights for name, dtype, shape in tensors_of(weight)}
    tensors = {}
    for name in known if names is None else names:
        dtype, shape = known.get(name, ("U8", (0,)))
        tensors[name] = TensorRef(name, dtype, shape, None, 0, tensor_bytes(dtype, shape))
    return tensors


def open_checkpoint(path: Path | str, allow_absent: bool = False) -> Checkpoint:
    """Reads config.json and every shard's header, no weights.

    With allow_absent, shards that are not there are taken to be as config.json says. Raises ConvertError for anything
    missing, damaged or not supported; check_tensors() compares the tensors with the config.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConvertError(f"{folder} is no folder; give the folder that holds config.json and the safetensors files")
    if not (folder / "config.json").is_file():
        raise ConvertError(f"{folder} has no config.json, so it is no checkpoint in Hugging Face's layout")
    values, _ = read_json_object(folder / "config.json")
    config = parse_config(values)
    places = _read_index(folder / INDEX) if (folder / INDEX).is_file() else None
    if places is not None:
        absent = sorted(shard for shard in set(places.values()) if not (folder / shard).is_file())
    else:
        absent = [] if (folder / SINGLE).is_file() else [SINGLE]
    if absent and not allow_absent:
        raise several(
            f"{len(absent)} of the checkpoint's files are not in {folder}; download the checkpoint again", absent
        )
    if absent:
        form = Form.FP8 if config.expert_dtype == "fp8" else Form.FP4
        tensors = _guess_tensors(config, form, places)
    elif places is not None:
        tensors = _read_shards(folder, places)
    else:
        tensors = read_header(folder / SINGLE)
    form, scale = _expert_format(tensors)
    return Checkpoint(folder, config, tensors, _drafts(config, tensors), form, scale, not absent)


def _drafts(config: ModelConfig, tensors: dict[str, TensorRef]) -> str:
    if not any(name.startswith("mtp.") for name in tensors):
        return "none"
    is_dspark = config.dspark is not None or "mtp.0.main_proj.weight" in tensors
    return "dspark" if is_dspark else "mtp"


def _expert_format(tensors: dict[str, TensorRef]) -> tuple[Form, str]:
    """By the dtype most routed experts have, so that a single odd one is reported and not taken as the rule."""
    votes: dict[tuple[str, str], int] = {}
    for name, ref in tensors.items():
        if name.startswith("layers.") and name.endswith(".w1.weight") and _EXPERT.search(name):
            scale = tensors.get(name.removesuffix("weight") + "scale")
            vote = (ref.dtype, scale.dtype if scale else E8M0)
            votes[vote] = votes.get(vote, 0) + 1
    dtype, scale_dtype = max(votes, key=lambda vote: votes[vote]) if votes else ("I8", E8M0)
    if dtype == "F8_E4M3" and scale_dtype in (E8M0, "F32"):
        return Form.FP8, scale_dtype
    return Form.FP4, E8M0


def check_tensors(checkpoint: Checkpoint, with_drafts: bool) -> None:
    """Raises one ConvertError naming every tensor that is missing, misnamed, mistyped or misshaped (the first few).

    Drafting blocks that are left out are not looked at.
    """
    problems = []
    expected: set[str] = set()
    weights = checkpoint.main_weights() + (checkpoint.draft_weights() if with_drafts else [])
    for weight in weights:
        scale = checkpoint.tensors.get(weight.scale_name) if weight.is_scaled else None
        scale_dtype = E8M0
        if weight.is_expert:
            scale_dtype = checkpoint.expert_scale
        elif scale is not None and scale.dtype == "F32":
            scale_dtype = "F32"  # block scales are e8m0 or float32, whichever the file has
        for name, dtype, shape in tensors_of(weight, scale_dtype):
            expected.add(name)
            ref = checkpoint.tensors.get(name)
            if ref is None:
                problems.append(f"{name} is missing")
            elif ref.dtype != dtype:
                problems.append(f"{name} is {ref.dtype}, expected {dtype}")
            elif ref.shape != shape:
                problems.append(f"{name} has shape {list(ref.shape)}, expected {list(shape)}")
    for name in checkpoint.tensors:
        if name not in expected and (with_drafts or not name.startswith("mtp.")):
            problems.append(f"{name} is not a tensor of this model")
    if problems:
        raise several(f"the tensors in {checkpoint.path} do not fit its config.json", problems)
