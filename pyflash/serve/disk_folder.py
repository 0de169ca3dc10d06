"""The prefix cache's folder: what is there, of which models, and what goes when it is full.

A model's files are in a folder of their own. Whoever uses a file sets its time, and that of all files before it in the
conversation; so what was used longest ago is never what something newer needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pyflash.serve import disk_files
from pyflash.serve.disk_files import PART, Tail

USUAL_LIMIT = 16 << 30
_SHARE_OF_FREE = 10
_MOST_FILES = 50_000
_LEFT_BY_THE_DEAD = 3600.0  # seconds after which a file that was never finished is nobody's
_ABOUT, _TURNS = "about.json", "turns.log"
_OLD = ("*.index", "*.session", "*.turns", "*.part")  # of versions that kept whole sessions


@dataclass(frozen=True)
class Stored:
    """A file of the cache. end: the position that it reaches. used: when, seconds since 1970."""

    path: Path
    end: int
    n_bytes: int
    used: float
    tail: Tail | None


def model_folders(folder: Path) -> list[Path]:
    """Those of the models, which their files about them tell."""
    with contextlib.suppress(OSError):
        return sorted(each for each in folder.iterdir() if (each / _ABOUT).is_file())
    return []


def make_model_folder(folder: Path, key: str, name: str) -> Path:
    """The folder of a model, the user's alone. OSError."""
    path = folder / key
    if not folder.is_dir():
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    if not (path / _ABOUT).is_file():
        disk_files.write_private(path / _ABOUT, [json.dumps({"model": name}).encode()])
    return path


def model_name(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((path / _ABOUT).read_bytes())["model"])
    return "?"


def turns_log(path: Path) -> Path:
    return path / _TURNS


def names(path: Path) -> set[str]:
    """What the files of a model's folder are called."""
    with contextlib.suppress(OSError):
        return set(os.listdir(path))
    return set()


def stored(folder: Path) -> Iterator[Stored]:
    """All files of all models; unfinished ones of long ago are deleted on the way."""
    now = time.time()
    for path in model_folders(folder):
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                what = disk_files.read_name(entry.name)
                with contextlib.suppress(OSError):
                    state = entry.stat(follow_symlinks=False)
                    if what is not None:
                        tail = what if isinstance(what, Tail) else None
                        end = what.end if isinstance(what, Tail) else what
                        yield Stored(path / entry.name, end, state.st_size, state.st_mtime, tail)
                    elif entry.name.endswith(PART) and now - state.st_mtime > _LEFT_BY_THE_DEAD:
                        os.unlink(entry.path)


def touch(paths: Iterable[Path]) -> list[Path]:
    """Sets the time of files that belong together to now; returns those that are not there."""
    now, missing = time.time(), []
    for path in paths:
        try:
            os.utime(path, (now, now))
        except OSError:
            missing.append(path)
    return missing


def usual_limit(folder: Path) -> int:
    """16 GiB, or a tenth of what the disk has free, which what the cache has there counts as."""
    held = sum(each.n_bytes for each in stored(folder))
    at = folder
    while not at.is_dir() and at != at.parent:
        at = at.parent
    try:
        free = shutil.disk_usage(at).free
    except OSError:
        return USUAL_LIMIT
    return min(USUAL_LIMIT, (free + held) // _SHARE_OF_FREE)


def shrink(folder: Path, limit: int) -> int:
    """Deletes what was used longest ago until the files have at most limit bytes together, a little less where something
    has to go. Of files used at the same time the last ones of the conversation go first. Returns the bytes that are left."""
    every = list(stored(folder))
    total, count = sum(each.n_bytes for each in every), len(every)
    if total <= limit and count <= _MOST_FILES:
        return total
    every.sort(key=lambda each: (each.used, -each.end))
    for each in every:
        if total <= limit - limit // 32 and count <= _MOST_FILES - _MOST_FILES // 32:
            break
        with contextlib.suppress(FileNotFoundError):
            try:
                each.path.unlink()
            except PermissionError:  # another process reads it (Windows)
                continue
        total, count = total - each.n_bytes, count - 1
    return total


def clear(folder: Path) -> int:
    """Deletes all that is kept; returns the bytes that it had."""
    freed = 0
    files = [each for pattern in _OLD for each in folder.glob(pattern)]
    for path in model_folders(folder):
        files += [path / name for name in sorted(names(path), key=lambda name: name == _ABOUT)]
    for file in files:
        with contextlib.suppress(OSError):
            size = file.stat().st_size
            file.unlink()
            freed += size
    for path in {file.parent for file in files} - {folder}:
        with contextlib.suppress(OSError):
            path.rmdir()
    return freed
