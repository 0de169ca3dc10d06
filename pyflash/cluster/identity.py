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

ALL_LAYERS = (0, 1 << 30)
_SAMPLE_BYTES = 64
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class FileIdentity:
    """directory: digest of everything before the weights, of all shards. samples: of some bytes of every tensor of the
    layers that were asked for, a fine-tune having the same directory."""

    directory: str
    samples: str


class FileDirectory:
    """A file's shards, and where in them the tensors are; read once."""

    def __init__(self, path: StrPath) -> None:
        """FileError for what cannot be read."""
        first = Path(path)
        try:
            gguf = read_gguf(first, any_type=True)
        except ConvertError as error:
            raise FileError(str(error)) from error
        tensors = sorted(gguf.tensors.values(), key=lambda tensor: tensor.offset)
        self._tensors = {shard: [tensor for tensor in tensors if tensor.path == shard] for shard in shard_paths(first, gguf)}

    def identity(self, layers: tuple[int, int]) -> FileIdentity:
        directory, samples = (hashlib.blake2b(digest_size=16) for _ in range(2))
        try:
            for shard, tensors in self._tensors.items():
                with open(shard, "rb") as file:
                    directory.update(file.read(tensors[0].offset) if tensors else b"")
                    for tensor in tensors:
                        if _is_read(tensor.name, layers):
                            size = min(_SAMPLE_BYTES, tensor.nbytes)
                            file.seek(tensor.offset + (tensor.nbytes - size) // 2)
                            samples.update(file.read(size))
        except OSError as error:
            raise FileError(f"cannot read {error.filename}: {error.strerror}") from error
        return FileIdentity(directory.hexdigest(), samples.hexdigest())

    @property
    def is_whole(self) -> bool:
        """Whether this machine has all of the shards' bytes, rather than files with holes."""
        found = [shard.stat() for shard in self._tensors]
        return all(each.st_blocks * 512 >= each.st_size for each in found)


def _is_read(tensor: str, layers: tuple[int, int]) -> bool:
    match = _LAYER.match(tensor)
    return match is not None and layers[0] <= int(match[1]) < layers[1]
