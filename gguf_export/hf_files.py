"""What a native GGUF keeps of a checkpoint's files beside its tensors, so that an export gives the very files back.

The small files are texts under `pyflash.hf.NAME`. `pyflash.hf.layout` is a zlib stream of JSON: {"shards": {file name: its
safetensors header}, "index": the index or null}, all as the checkpoint has them. It is there where the GGUF has every tensor
of the checkpoint; V4-Flash's 69,187 tensors take 1 MB.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_export.checkpoint import INDEX, MOST_INDEX_BYTES, Checkpoint
from gguf_export.config import read_bytes, read_json_object
from gguf_export.errors import ConvertError
from gguf_export.safetensors_file import header_text
from gguf_export.standins import is_there
from gguf_export.writer import Metadata

# What programs that load a checkpoint read of it. Published ones have the first four.
PUBLISHED_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
SIDE_FILES = (*PUBLISHED_FILES, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "LICENSE")
SIDE_PREFIX = "pyflash.hf."
LAYOUT_KEY = f"{SIDE_PREFIX}layout"
MOST_SIDE_BYTES = 64 << 20
_MOST_LAYOUT_BYTES = 1 << 30
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\.safetensors")


@dataclass(frozen=True)
class Layout:
    """shards: the header, without its length, by the file's name. index: None for a checkpoint without one."""

    shards: Mapping[str, str]
    index: str | None


def add_side_files(metadata: Metadata, folder: Path) -> list[str]:
    """Keeps the small files that are there. Returns the names of those that programs expect and that are not.

    ConvertError for JSON that is none. Another file that is no text is left out: it is not the tokenizer's.
    """
    absent = []
    for name in SIDE_FILES:
        path = folder / name
        if not is_there(path):
            absent += [name] if name in PUBLISHED_FILES else []
            continue
        is_json = path.suffix == ".json"
        data = read_json_object(path, MOST_SIDE_BYTES)[1] if is_json else read_bytes(path, MOST_SIDE_BYTES)
        try:
            metadata.text(SIDE_PREFIX + name, data.decode("utf-8"))
        except UnicodeDecodeError:
            continue
    return absent


def add_layout(metadata: Metadata, checkpoint: Checkpoint) -> None:
    """Keeps how the tensors lie in the checkpoint's files; not of those that are not there, or have names of their own."""
    paths = {ref.path for ref in checkpoint.tensors.values() if ref.path is not None}
    names = sorted(path.name for path in paths)
    if not checkpoint.is_complete or not all(map(_SHARD_NAME.fullmatch, names)):
        return
    index = checkpoint.path / INDEX
    value = {
        "shards": {name: header_text(checkpoint.path / name) for name in names},
        "index": read_bytes(index, MOST_INDEX_BYTES).decode("utf-8") if is_there(index) else None,
    }
    metadata.blob(LAYOUT_KEY, zlib.compress(json.dumps(value, ensure_ascii=False).encode("utf-8"), 9))


def side_files(keys: Mapping[str, Any], path: Path) -> dict[str, bytes]:
    """The small files in a GGUF's keys. path: for errors."""
    files = {}
    for name in SIDE_FILES:
        text = keys.get(SIDE_PREFIX + name)
        if isinstance(text, str):
            try:
                files[name] = text.encode("utf-8")
            except UnicodeEncodeError:
                raise ConvertError(f"{path} is damaged: its {name} is not UTF-8") from None
    return files


def read_layout(keys: Mapping[str, Any], path: Path) -> Layout | None:
    """None where a GGUF has none. ConvertError for one that cannot be read. path: for errors."""
    packed = keys.get(LAYOUT_KEY)
    if packed is None:
        return None
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(bytes(packed), _MOST_LAYOUT_BYTES)
        value = json.loads(text.decode("utf-8"))
        shards, index = value["shards"], value["index"]
        known = all(isinstance(header, str) and _SHARD_NAME.fullmatch(name) for name, header in shards.items())
        if not unpacking.eof or not known or not (index is None or isinstance(index, str)):
            raise ValueError("it is no layout")
        # What no file can hold is found here, and not when the first is written.
        _ = [each.encode("utf-8") for each in (*shards.values(), index or "")]
    except (zlib.error, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ConvertError(f"{path} is damaged: how the checkpoint's files were laid out ({LAYOUT_KEY}) cannot be read; "
                           "convert or download it again") from None
    return Layout(shards, index)
