"""Whether two machines have the same file, as far as a stage reads it: told by digests, without reading the whole."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from gguf_export.errors import ConvertError
from gguf_export.reader import read_gguf, shard_paths
from pyflash.native.errors import FileError
from pyflash.native.values import StrPath

_SAMPLE_BYTES = 64
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class FileIdentity:
    """directory: digest of everything before the weights, of all shards. samples: of some bytes of every tensor of the
    layers that were asked for, a fine-tune having the same directory."""

    directory: str
    samples: str


def file_identity(path: StrPath, layers: tuple[int, int]) -> FileIdentity:
    """FileError for what cannot be read."""
    first = Path(path)
    directory, samples = (hashlib.blake2b(digest_size=16) for _ in range(2))
    try:
        gguf = read_gguf(first, any_type=True)
        for shard in shard_paths(first, gguf):
            own = sorted((each for each in gguf.tensors.values() if each.path == shard), key=lambda each: each.offset)
            with open(shard, "rb") as file:
                directory.update(file.read(own[0].offset) if own else b"")
                for tensor in own:
                    if _is_read(tensor.name, layers):
                        size = min(_SAMPLE_BYTES, tensor.nbytes)
                        file.seek(tensor.offset + (tensor.nbytes - size) // 2)
                        samples.update(file.read(size))
    except (ConvertError, OSError) as error:
        raise FileError(str(error)) from error
    return FileIdentity(directory.hexdigest(), samples.hexdigest())


def _is_read(tensor: str, layers: tuple[int, int]) -> bool:
    match = _LAYER.match(tensor)
    return match is not None and layers[0] <= int(match[1]) < layers[1]
