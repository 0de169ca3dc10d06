"""A model's file on other machines: what of it is copied, how a copy goes on, and what is taken for the file."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyflash
import pytest

from gguf_export.errors import ConvertError
from gguf_export.reader import read_gguf
from pyflash.cluster import files
from pyflash.cluster.files import Found, LocalSource, Piece, fetch, locate
from pyflash.cluster.identity import FileDirectory
from pyflash.machine.layer_tensors import is_opened

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stages on several machines are Linux's")

TOKENS = [5, 9, 2, 7, 1, 8]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYFLASH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in several files."""
    from gguf_export.convert import ConvertOptions, convert
    from gguf_export.synthetic import make_config, write_checkpoint

    folder = tmp_path_factory.mktemp("sharded")
    checkpoint = write_checkpoint(folder / "checkpoint", make_config("tiny"), seed=4)
    made = convert(checkpoint, folder / "tiny.gguf", ConvertOptions(shard_bytes=200_000)).files
    assert len(made) > 3
    return made[0]


def names_of(path: Path, layers: tuple[int, int]) -> list[str]:
    with pyflash.Model.open(path, layers=layers) as model:
        return [name for name in read_gguf(path).tensors if is_opened(name, model.info)]


def copy(path: Path, layers: tuple[int, int], source: files.Source | None = None, **more: object) -> Path:
    identity = FileDirectory(path).identity(layers)
    names = names_of(path, layers)
    return fetch(source or LocalSource(path), identity.directory, layers, names, **more)  # type: ignore[arg-type]


def disk_bytes(folder: Path) -> int:
    return sum(each.stat().st_blocks * 512 for each in folder.rglob("*") if each.is_file())


@pytest.mark.parametrize("which", ["one file", "shards"])
def test_stages_of_copies_have_the_bits_of_the_whole(tiny_model: Path, sharded: Path, which: str) -> None:
    path = tiny_model if which == "one file" else sharded
    with pyflash.Model.open(path) as whole, whole.session(context=64) as session:
        expected, n_layer = session.eval(TOKENS), whole.info.n_layer
    ranges = [(0, 1), (1, n_layer)]
    stages = [pyflash.Model.open(copy(path, layers), layers=layers) for layers in ranges]
    with pyflash.StagedModel(stages) as model, model.session(context=64) as session:
        assert np.array_equal(session.eval(TOKENS), expected)


def test_only_what_the_stage_reads_is_on_the_disk(tiny_model: Path, own_cache: Path) -> None:
    made = copy(tiny_model, (1, 2))
    refs, n_read = read_gguf(tiny_model).tensors, 0
    original, copied = tiny_model.read_bytes(), made.read_bytes()
    assert len(copied) == len(original)
    for name, ref in refs.items():
        part = slice(ref.offset, ref.offset + ref.nbytes)
        if name in names_of(tiny_model, (1, 2)):
            n_read += ref.nbytes
            assert copied[part] == original[part]
        else:
            assert not any(copied[part])
    begin = min(ref.offset for ref in refs.values())
    assert copied[:begin] == original[:begin]
    assert disk_bytes(own_cache) < begin + n_read + 4096 * (len(refs) + 8) < len(original)


class Breaking(LocalSource):
    """Ends after so many pieces, and counts what it was asked for."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path)
        self.left, self.asked = most, list[Piece]()

    def read(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
        def noted() -> Iterator[Piece]:
            for piece in pieces:
                if self.left == 0:
                    raise pyflash.DeviceError("the link is cut")
                self.left -= 1
                self.asked.append(piece)
                yield piece

        yield from super().read(noted())


def test_a_broken_copy_goes_on(tiny_model: Path, own_cache: Path) -> None:
    first, second = Breaking(tiny_model, 7), Breaking(tiny_model, 10**6)
    with pytest.raises(pyflash.DeviceError, match="the link is cut"):
        copy(tiny_model, (1, 2), first)
    assert not list(own_cache.rglob("*.gguf"))  # nothing that could be taken for the file
    seen: list[tuple[int, int]] = []
    made = copy(tiny_model, (1, 2), second, progress=lambda done, total: seen.append((done, total)))
    names = names_of(tiny_model, (1, 2))
    assert {piece.tensor for piece in first.asked} | {piece.tensor for piece in second.asked} == set(names)
    assert len(second.asked) == len(names) - 7  # each is one piece here
    sizes = {name: ref.nbytes for name, ref in read_gguf(tiny_model).tensors.items()}
    assert seen[0] == (sum(sizes[piece.tensor] for piece in first.asked), sum(sizes[name] for name in names))
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)
    assert FileDirectory(made).identity((1, 2)) == FileDirectory(tiny_model).identity((1, 2))
    assert [each.name for each in made.parent.iterdir()] == [made.name]  # the workplace is gone


def test_pieces_of_large_tensors(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE_BYTES", 1000)
    made = copy(tiny_model, (0, 1))
    for name in names_of(tiny_model, (0, 1)):
        ref = read_gguf(tiny_model).tensors[name]
        part = slice(ref.offset, ref.offset + ref.nbytes)
        assert made.read_bytes()[part] == tiny_model.read_bytes()[part]


class Damaging(LocalSource):
    def read(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
        for n, data in enumerate(super().read(pieces)):
            yield data if n != 3 else bytes([data[0] ^ 1]) + data[1:]


def test_damage_on_the_way_is_found(tiny_model: Path, own_cache: Path) -> None:
    with pytest.raises(ConvertError, match="arrived damaged: its checksum"):
        copy(tiny_model, (1, 2), Damaging(tiny_model))
    assert not list(own_cache.rglob("*.gguf"))
    copy(tiny_model, (1, 2))


def test_files_whose_checksums_are_of_another_are_copied_as_they_are(tiny_model: Path, tmp_path: Path) -> None:
    """Edited after its conversion: the checksums in its directory are not its own."""
    edited = Path(shutil.copy(tiny_model, tmp_path / "edited.gguf"))
    ref = read_gguf(edited).tensors["blk.1.attn_norm.weight"]
    with open(edited, "r+b") as file:
        file.seek(ref.offset)
        file.write(b"\0\0\0?")
    made = copy(edited, (1, 2))
    assert made.read_bytes()[ref.offset : ref.offset + 4] == b"\0\0\0?"


def test_what_is_found(tiny_model: Path, tmp_path: Path) -> None:
    wanted = {layers: FileDirectory(tiny_model).identity(layers) for layers in ((0, 1), (1, 2), (1, 3), (2, 3))}
    assert locate(tiny_model, wanted[1, 2], (1, 2)) == Found("here", str(tiny_model))
    absent = tmp_path / tiny_model.name
    assert locate(absent, wanted[1, 2], (1, 2)) == Found("missing", None)
    made = copy(tiny_model, (1, 3))
    for layers in ((1, 2), (2, 3), (1, 3)):
        assert locate(absent, wanted[layers], layers) == Found("copied", str(made))
    assert locate(absent, wanted[0, 1], (0, 1)) == Found("missing", None)
    absent.write_bytes(b"GGUF, but no")
    assert locate(absent, wanted[0, 1], (0, 1)) == Found("other", None)


def test_a_fine_tune_is_another_file(tiny_model: Path, tmp_path: Path) -> None:
    """The same directory, other weights."""
    other = Path(shutil.copy(tiny_model, tmp_path / "other.gguf"))
    ref = read_gguf(other).tensors["blk.1.ffn_down_exps.weight"]
    with open(other, "r+b") as file:
        file.seek(ref.offset)
        file.write(os.urandom(ref.nbytes))
    assert locate(other, FileDirectory(tiny_model).identity((1, 2)), (1, 2)).state == "other"


def test_a_full_disk_is_told_before(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    usage = shutil.disk_usage(tiny_model.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(ConvertError, match="free some space or choose another disk"):
        copy(tiny_model, (1, 2))
    assert not list(own_cache.rglob("*.gguf"))
