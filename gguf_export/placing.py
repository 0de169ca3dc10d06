"""A GGUF file, with its shards, put into another folder: hard-linked, symlinked or copied."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf_export.engine import ProgressFn
from gguf_export.errors import ConvertError, reason
from gguf_export.metadata import ARCH
from gguf_export.outputs import Place, check_name, find_place, make_room, put
from gguf_export.reader import GGUFFile, read_gguf, shard_paths
from gguf_export.workplace import Workplace, flush

_COPY_BYTES = 8 << 20


def open_for_programs(path: Path, program: str) -> tuple[GGUFFile, list[Path]]:
    """The directory and the files, shards in order, of a GGUF that llama.cpp can run. ConvertError for any other."""
    if path.is_dir():
        raise ConvertError(f"{path} is a folder; give the GGUF file")
    gguf = read_gguf(path)
    arch = gguf.keys.get("general.architecture")
    if arch != ARCH:
        raise ConvertError(f"{path} holds a model of architecture {arch!r:.40}; this exports {ARCH} files only")
    if gguf.keys.get("pyflash.profile") == "native":
        raise ConvertError(
            f"{path} is of the native profile, which {program} cannot read; "
            'convert the checkpoint with profile="compat"'
        )
    if "blk.0.attn_norm.weight" not in gguf.tensors and any(".nextn." in name for name in gguf.tensors):
        raise ConvertError(f"{path} is an MTP file, which is no model by itself; give the model's own file")
    if "tokenizer.ggml.tokens" not in gguf.keys:
        raise ConvertError(
            f"{path} has no tokenizer, which {program} needs; convert the checkpoint again with its tokenizer.json"
        )
    return gguf, shard_paths(path, gguf)


def text_key(gguf: GGUFFile, key: str) -> str:
    """A string value of the metadata, "" where there is none. Bytes that are not UTF-8 become question marks."""
    value = gguf.keys.get(key)
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def number_key(gguf: GGUFFile, key: str, default: float) -> float:
    value: Any = gguf.keys.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else default


def replaceable(target: Path, sources: Sequence[Path], force: bool, *, streams: bool = False) -> Place:
    """Where target goes. ConvertError where that would replace something that it must not.

    A link, hard or symbolic, to a file to export is how an earlier export may have placed it: the link is replaced.
    Others are followed.
    """
    entry = Place(str(target), os.path.realpath(target.parent), target.name, replaces_link=True)
    if entry.real in [os.path.realpath(source) for source in sources]:
        raise ConvertError(f"{target} is the file to export itself; choose another place")
    if os.path.lexists(target) and not target.is_dir() and not force:
        raise ConvertError(f"{target} exists already; force=True replaces it")
    with contextlib.suppress(OSError):
        if any(os.path.samefile(target, source) for source in sources):
            return entry
    return find_place(target, streams=streams)


def make_folder(folder: Path) -> list[Path]:
    """Makes the folder and those above it. Returns the new ones, the outermost first, for remove_folders()."""
    missing: list[Path] = []
    folder = current = Path(os.path.realpath(check_name(folder)))
    while not os.path.lexists(current):
        missing.append(current)
        current = current.parent
    made: list[Path] = []
    try:
        for path in reversed(missing):
            path.mkdir()
            made.append(path)
        if not folder.is_dir():
            raise ConvertError(f"{current} is no folder; choose another place")
    except OSError as error:
        remove_folders(made)
        raise ConvertError(f"cannot make the folder {folder}: {reason(error)}") from None
    except ConvertError:
        remove_folders(made)
        raise
    return made


def remove_folders(folders: Sequence[Path]) -> None:
    """Removes folders that are still empty, the innermost first."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _try_link(source: Path, target: str) -> str | None:
    """How target came to stand for source: "hard link" or "symlink"; None where the file system has neither."""
    try:
        os.link(os.path.realpath(source), target)
        return "hard link"
    except OSError:
        pass
    try:
        os.symlink(os.path.realpath(source), target)
        return "symlink"
    except (OSError, NotImplementedError):  # Windows lets only some users make symlinks
        return None


def _copy(source: Path, target: str, done: int, total: int, progress: ProgressFn | None) -> int:
    with open(source, "rb") as reader, open(target, "xb") as writer:
        while chunk := reader.read(_COPY_BYTES):
            writer.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    status = os.stat(source)
    with contextlib.suppress(OSError):  # some file systems have no such things
        os.chmod(target, stat.S_IMODE(status.st_mode) & 0o777 | stat.S_IWUSR)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    return done


def place_files(
    sources: Sequence[Path], folder: Path, *, copy: bool, force: bool, progress: ProgressFn | None = None,
    names: Sequence[str] | None = None,
) -> tuple[list[Path], str]:
    """Puts the files into an existing folder under their own names, or those given. Returns their new paths and how
    they got there.

    copy: copy them; else hard link where the file system can, else symlink, else copy ("hard link", "symlink",
    "copy"). progress(done, total) gets the bytes copied. force: replace files that stand there. Each file gets its name
    only when all of them are there; until then an error or Ctrl-C leaves nothing.
    """
    targets = [folder / name for name in names or [path.name for path in sources]]
    places = [replaceable(target, sources, force) for target in targets]
    with contextlib.ExitStack() as stack:
        try:
            works = [stack.enter_context(Workplace(place.folder, place.name)).file(0) for place in places]
            how = None if copy else _link_all(sources, works)
            if how is None:
                how = "copy"
                _copy_all(sources, works, places, progress)
            for work, place in zip(works, places, strict=True):
                put(work, place, is_link=how != "copy")
        except OSError as error:
            raise ConvertError(f"cannot put {sources[0].name} into {folder}: {reason(error)}") from None
    return targets, how


def _copy_all(
    sources: Sequence[Path], works: Sequence[str], places: Sequence[Place], progress: ProgressFn | None
) -> None:
    sizes = [path.stat().st_size for path in sources]
    make_room(places, sizes)
    done = 0
    for source, work in zip(sources, works, strict=True):
        done = _copy(source, work, done, sum(sizes), progress)
    for work in works:  # before the first has its name: flushing can take minutes
        flush(work)


def _link_all(sources: Sequence[Path], targets: Sequence[str]) -> str | None:
    how = None
    for source, target in zip(sources, targets, strict=True):
        how = _try_link(source, target)
        if how is None:
            for path in targets:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            return None
    return how
