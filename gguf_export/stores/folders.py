"""Stores whose models are repositories, ORG/REPO: Hugging Face's cache and LM Studio's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from gguf_export.hub_cache import PREFIX, cache_root, main_commit
from gguf_export.stores.model import Stored
from gguf_export.stores.repository import FileSet, choose, file_sets, label, split_name

Tree = dict[str, Path]  # files by their paths in the repository


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; nothing where it is not there or cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _tree(folder: Path) -> Tree:
    """The GGUF files below a folder that are there: a link may lead to a file that has been removed."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if name.lower().endswith(".gguf") and os.path.isfile(path):
                found[path.relative_to(folder).as_posix()] = path
    return found


class _Repositories:
    """What both have in common. A repository's trees: its versions, the one that counts first."""

    prefix = ""
    title = ""

    def folders(self) -> list[Path]:
        raise NotImplementedError

    def repositories(self) -> Iterator[tuple[str, list[Tree]]]:
        raise NotImplementedError

    def find(self, name: str) -> list[Stored]:
        split = split_name(name)
        if split is None:
            return []
        repository, quant = split
        for found, trees in self.repositories():
            if found.lower() == repository.lower():
                sets = _file_sets(trees)
                chosen = choose(list(sets.values()), quant)
                return [self._stored(found, trees, sets, stem) for stem, each in sets.items() if each in chosen]
        return []

    def walk(self) -> Iterator[Stored]:
        for repository, trees in self.repositories():
            sets = _file_sets(trees)
            for stem in sets:
                yield self._stored(repository, trees, sets, stem)

    def _stored(self, repository: str, trees: list[Tree], sets: dict[str, FileSet], stem: str) -> Stored:
        found = sets[stem]
        tree = next(each for each in trees if all(path in each for path in found.files))
        files = tuple(tree[path] for path in found.files)
        return Stored(f"{repository}:{label(found, list(sets.values()))}", self.title, files[0], files, found.missing)


def _file_sets(trees: list[Tree]) -> dict[str, FileSet]:
    """By stem: that of the first version which has it whole, or has it at all."""
    sets: dict[str, FileSet] = {}
    for tree in trees:
        for each in file_sets(tree):
            if each.stem not in sets or (sets[each.stem].missing and not each.missing):
                sets[each.stem] = each
    return sets


class HubCache(_Repositories):
    """models--ORG--REPO/snapshots/COMMIT/..., links to blobs; llama.cpp downloads to the same, or to LLAMA_CACHE."""

    prefix = "hf"
    title = "Hugging Face's cache"

    def folders(self) -> list[Path]:
        named = os.environ.get("LLAMA_CACHE")
        found = [cache_root(), Path(os.path.expanduser(named)) if named else None]
        return list(dict.fromkeys(each for each in found if each is not None))

    def repositories(self) -> Iterator[tuple[str, list[Tree]]]:
        for folder in (folder for root in self.folders() for folder in entries(root)):
            if folder.name.startswith(PREFIX) and folder.name.count("--") >= 2:
                main = main_commit(folder)
                snapshots = sorted(entries(folder / "snapshots"), key=lambda path: (path.name != main, -_changed(path)))
                yield folder.name.removeprefix(PREFIX).replace("--", "/", 1), [_tree(each) for each in snapshots]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


class LMStudio(_Repositories):
    """MODELS/ORG/REPO/*.gguf."""

    prefix = "lmstudio"
    title = "LM Studio's folder"

    def folders(self) -> list[Path]:
        home = Path(os.path.expanduser("~"))
        if not home.is_absolute():
            return []
        own = home / ".lmstudio"
        pointed = _first_line(home / ".lmstudio-home-pointer")  # where somebody moved it to
        homes = [*([Path(pointed)] if pointed else []), own, home / ".cache" / "lm-studio"]
        return list(dict.fromkeys(folder for each in homes for folder in (*_chosen_folder(each), each / "models")))

    def repositories(self) -> Iterator[tuple[str, list[Tree]]]:
        for publisher in (publisher for root in self.folders() for publisher in entries(root)):
            if not publisher.name.startswith("."):
                for folder in entries(publisher):
                    if tree := _tree(folder):
                        yield f"{publisher.name}/{folder.name}", [tree]


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, ValueError):
        return ""


def _chosen_folder(home: Path) -> list[Path]:
    """The folder of models that LM Studio's settings name."""
    try:
        found = json.loads((home / "settings.json").read_text(encoding="utf-8"))["downloadsFolder"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return [Path(found)] if isinstance(found, str) and os.path.isabs(found) else []
