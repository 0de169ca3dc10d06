"""A checkpoint on disk: its config, where every tensor is, and whether they are what the config says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_export.config import ModelConfig, parse_config, read_json_object
from gguf_export.dialect import published_config, published_tensors
from gguf_export.errors import ConvertError, several
from gguf_export.inventory import E8M0, SCALED, Weight, draft_weights, main_weights, tensors_of
from gguf_export.safetensors_file import TensorRef, read_header, tensor_bytes
from gguf_export.standins import is_there
from quantize.plan import Form

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MOST_INDEX_BYTES = 256 << 20

FLOATS = {"BF16": Form.BF16, "F16": Form.F16, "F32": Form.F32}

_EXPERT = re.compile(r"\.ffn\.experts\.\d+\.w[123]\.(weight|scale)$")
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """What the files say. `tensors` holds all of them, also those that a conversion leaves out, by published names.

    drafts: "none", "mtp" (the MTP block) or "dspark" (the 0731 release's stages). expert_form is how most routed
    experts are stored: Form.FP4, Form.FP8, or as floats; expert_scale the dtype of FP8 experts' scales.
    """

    path: Path
    config: ModelConfig
    tensors: dict[str, TensorRef]
    drafts: str
    expert_form: Form
    expert_scale: str
    is_complete: bool  # False: planned from config.json and the index, because shards are absent
    notes: tuple[str, ...] = ()  # what a person should know, a line each

    @property
    def release(self) -> str:
        """Whose chat encoding it was trained on: "0731" where the config or tensors have DSpark stages, or "preview"."""
        return "0731" if self.config.dspark is not None or self.drafts == "dspark" else "preview"

    @property
    def is_as_published(self) -> bool:
        """Whether every tensor has the name and the dtype of published checkpoints."""
        has_names = all(ref.name == name for name, ref in self.tensors.items())
        return has_names and all(weight.stored is None for weight in self.main_weights() + self.draft_weights())

    def main_weights(self) -> list[Weight]:
        return [self._as_stored(weight) for weight in main_weights(self.config, self._published_experts)]

    def draft_weights(self) -> list[Weight]:
        if self.drafts == "none":
            return []
        return [self._as_stored(weight) for weight in draft_weights(self.config, self._published_experts)]

    @property
    def _published_experts(self) -> Form:
        return self.expert_form if self.expert_form in SCALED else Form.FP8

    def _as_stored(self, weight: Weight) -> Weight:
        """Floats of any width do for every weight but ids; of the experts as long as most of them are floats."""
        ref = self.tensors.get(weight.data_name)
        form = FLOATS.get(ref.dtype) if ref is not None else None
        if weight.form is Form.I64 or (weight.is_expert and self.expert_form in SCALED):
            return weight
        if ref is None and weight.form in SCALED and self.expert_form not in SCALED:
            form = self.expert_form  # so that one tensor is missed, not its scale too
        return weight if form in (None, weight.form) else replace(weight, stored=form)

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


def _shards_by_name(folder: Path) -> list[str]:
    """The files of a checkpoint without an index, by Hugging Face's names; [SINGLE] where none is there."""
    found = [match for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name))]
    counts = sorted({match[2] for match in found})
    if not counts:
        return [SINGLE]
    if len(counts) > 1 or is_there(folder / SINGLE):
        kinds = [f"shards of {int(count)}" for count in counts] + [SINGLE] * is_there(folder / SINGLE)
        raise ConvertError(
            f"{folder} holds {' and '.join(kinds)} and no {INDEX}: two downloads lie there; keep the files of one"
        )
    return [f"model-{number:05d}-of-{counts[0]}.safetensors" for number in range(1, int(counts[0]) + 1)]


def _read_shards(folder: Path, shards: list[str], places: dict[str, str] | None) -> dict[str, TensorRef]:
    """The tensors of all shards. places: the index's; without one each tensor lies where it is found, once."""
    tensors: dict[str, TensorRef] = {}
    problems = []
    for shard in shards:
        for name, ref in read_header(folder / shard).items():
            other = tensors.get(name)
            if places is not None and places.get(name) != shard:
                problems.append(f"{name} is in {shard}, but the index says {places.get(name, 'no file')}")
            elif other is not None and other.path is not None:
                problems.append(f"{name} is in {other.path.name} and in {shard}")
            else:
                tensors[name] = ref
    absent = [name for name in places or () if name not in tensors]
    problems += [f"{name} is not in {(places or {})[name]}, where the index says" for name in absent]
    if problems:
        fault = f"do not fit {INDEX}" if places is not None else "do not belong together"
        raise several(f"the shards in {folder} {fault}; download the checkpoint again", problems)
    return tensors


def _guess_tensors(
    config: ModelConfig, form: Form, names: Iterable[str] | None, drafts: bool = True
) -> dict[str, TensorRef]:
    """The config's inventory with sizes but no places; restricted to the index's names where there is one."""
    weights = [*main_weights(config, form), *(draft_weights(config, form) if drafts else ())]
    if not config.is_quantized:
        weights = [replace(weight, stored=Form.BF16) if weight.form in SCALED else weight for weight in weights]
        names = None  # other programs' names do not tell experts apart
    known = {name: (dtype, shape) for weight in weights for name, dtype, shape in tensors_of(weight)}
    tensors = {}
    for name in known if names is None else names:
        dtype, shape = known.get(name, ("U8", (0,)))
        tensors[name] = TensorRef(name, dtype, shape, None, 0, tensor_bytes(dtype, shape))
    return tensors


def _require_config(folder: Path) -> None:
    if not folder.is_dir():
        raise ConvertError(f"{folder} is no folder; give the folder that holds config.json and the safetensors files")
    if is_there(folder / "config.json"):
        return
    if is_there(folder / "adapter_config.json"):
        raise ConvertError(f"{folder} holds an adapter, not a model: merge it into its model, and save that")
    raise ConvertError(f"{folder} has no config.json, so it is no checkpoint in Hugging Face's layout")


def _absent(folder: Path, shards: list[str]) -> list[str]:
    absent = [shard for shard in shards if not is_there(folder / shard)]
    if absent == [SINGLE] and (any(folder.glob("pytorch_model*.bin")) or any(folder.glob("*.pt"))):
        raise ConvertError(f"{folder} holds pickled weights; save the model with safetensors (safe_serialization)")
    return absent


def open_checkpoint(path: Path | str, allow_absent: bool = False) -> Checkpoint:
    """Reads config.json and every shard's header, no weights.

    With allow_absent, shards that are not there are taken to be as config.json says. Raises ConvertError for anything
    missing, damaged or not supported; check_tensors() compares the tensors with the config.
    """
    folder = Path(path)
    _require_config(folder)
    values, _ = read_json_object(folder / "config.json")
    config = parse_config(published_config(values))
    places = _read_index(folder / INDEX) if is_there(folder / INDEX) else None
    shards = sorted(set(places.values())) if places is not None else _shards_by_name(folder)
    absent = _absent(folder, shards)
    if absent and not allow_absent:
        raise several(
            f"{len(absent)} of the checkpoint's files are not in {folder}; download the checkpoint again", absent
        )
    notes = []
    if absent:
        form = Form.FP8 if config.expert_dtype == "fp8" else Form.FP4
        tensors = _guess_tensors(config, form, places)
    else:
        tensors = published_tensors(_read_shards(folder, shards, places), config.is_tied)
        if places is None and shards != [SINGLE]:
            notes.append(f"there is no {INDEX}; the headers of the {len(shards)} shards say where each tensor is")
    form, scale = _expert_format(tensors)
    return Checkpoint(folder, config, tensors, _drafts(config, tensors), form, scale, not absent, tuple(notes))


def with_drafts_of(target: Checkpoint, folder: Path) -> Checkpoint:
    """The target with what drafts for it in another folder, such as stages that were trained alone: of that folder only
    config.json and the files with mtp.* tensors, by their published names, are read.

    Raises ConvertError where they are absent, or were made for a model of other sizes.
    """
    _require_config(folder)
    values, _ = read_json_object(folder / "config.json")
    config = parse_config(published_config(values))
    if _without_drafts(config) != _without_drafts(target.config):
        raise ConvertError(f"what drafts in {folder} is for a model of other sizes than that in {target.path}: "
                           "compare their config.json")
    places = _read_index(folder / INDEX) if is_there(folder / INDEX) else None
    shards = _shards_by_name(folder)
    if places is not None:
        shards = sorted({shard for name, shard in places.items() if name.startswith("mtp.")})
    absent = _absent(folder, shards)
    if absent:
        raise several(f"{len(absent)} of the files that draft are not in {folder}; download them again", absent)
    headers = (read_header(folder / shard) for shard in shards)
    found = {name: ref for header in headers for name, ref in header.items() if name.startswith("mtp.")}
    if not found:
        raise ConvertError(f"{folder} has no mtp.* tensors, so nothing in it drafts")
    kept = {name: ref for name, ref in target.tensors.items() if not name.startswith("mtp.")}
    return replace(target, config=config, tensors=kept | found, drafts=_drafts(config, found))


def _without_drafts(config: ModelConfig) -> ModelConfig:
    ratios = config.compress_ratios[: config.n_layers]
    return replace(config, compress_ratios=ratios, n_mtp=0, dspark=None, expert_dtype=None)  # tensors tell the experts' dtype


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
    if dtype in FLOATS:
        return FLOATS[dtype], E8M0
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
                problems.append(f"{ref.name} is {ref.dtype}, expected {dtype}")
            elif ref.shape != shape:
                problems.append(f"{ref.name} has shape {list(ref.shape)}, expected {list(shape)}")
    for name, ref in checkpoint.tensors.items():
        if name not in expected and (with_drafts or not name.startswith("mtp.")):
            problems.append(f"{ref.name} is not a tensor of this model")
    if problems:
        raise several(f"the tensors in {checkpoint.path} do not fit its config.json", problems)
