"""What a repository of GGUF files holds, and which file a name such as ":Q4_K_M" means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gguf_export.units import gigabytes

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_NAME = re.compile(rf"(?P<repository>{REPOSITORY.pattern})(?::(?P<quant>[^:\s]+))?")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
_TYPE = re.compile(r"(?:^|[-._])((?:UD-)?(?:I?Q[1-8]|TQ[12]|B?F16|F32|MXFP4|NVFP4)[A-Z0-9_]*)(?=$|[-.])", re.IGNORECASE)
# Files beside a model, by a part of their names. "imatrix" is also in the names of models that were made with one.
_BESIDE = frozenset(("mmproj", "mtp", "eagle3", "dflash", "dspark"))


def split_name(name: str) -> tuple[str, str] | None:
    """("ORG/REPO", "QUANT" or "") of a name, None for any other text."""
    match = _NAME.fullmatch(name)
    return (match["repository"], match["quant"] or "") if match else None


@dataclass(frozen=True)
class FileSet:
    """A GGUF of a repository: one file, or its shards in order.

    stem: its path in the repository, with slashes, without the number of a shard and the ending. files: the paths that
    are there. missing: how many shards are not.
    """

    stem: str
    files: tuple[str, ...]
    missing: int = 0

    @property
    def name(self) -> str:
        return self.stem.rpartition("/")[2]

    @property
    def type_name(self) -> str:
        """The type in its name, as publishers write it ("UD-IQ2_XXS"), "" where there is none."""
        found = _TYPE.findall(self.name)
        return found[-1] if found else ""

    @property
    def is_model(self) -> bool:
        """By its name: no projector, importance matrix or draft."""
        parts = re.split(r"[^a-z0-9]+", self.name.lower())
        if parts[0] == "imatrix" or ("imatrix" in parts and not self.type_name):
            return False
        return not _BESIDE.intersection(parts)


def file_sets(paths: Iterable[str]) -> list[FileSet]:
    """The GGUF files among a repository's, by their stems; shards of one set together."""
    sets: dict[tuple[str, int], dict[int, str]] = {}
    for path in sorted(paths):
        if not path.lower().endswith(".gguf"):
            continue
        stem = path[: -len(".gguf")]
        match = _SHARD.fullmatch(stem)
        number, count = (int(match[2]), int(match[3])) if match else (1, 1)
        if match and 1 <= number <= count:
            sets.setdefault((match[1], count), {})[number] = path
        else:
            sets.setdefault((stem, 1), {})[1] = path
    return [FileSet(stem, tuple(found[number] for number in sorted(found)), count - len(found))
            for (stem, count), found in sorted(sets.items())]


def choose(sets: Sequence[FileSet], quant: str) -> list[FileSet]:
    """The files that QUANT means: one where it is clear. "": every model.

    A file's whole name means it, whatever it is. Else a model whose type or folder has that name, or else one that has
    it among the parts of its path; letters in either case.
    """
    wanted = quant.lower()
    models = [each for each in sets if each.is_model]
    if not wanted:
        return models
    if wanted.endswith(".gguf"):
        return [each for each in sets
                if wanted in [name for path in each.files for name in (path.lower(), path.lower().rpartition("/")[2])]]
    named = [each for each in models
             if wanted == each.type_name.lower() or wanted in each.stem.lower().split("/")]
    part = re.compile(rf"(?:^|[-._/]){re.escape(wanted)}(?:$|[-./])", re.IGNORECASE)
    return named or [each for each in models if part.search(each.stem)]


def label(of: FileSet, sets: Sequence[FileSet]) -> str:
    """The shortest of the usual names after the colon that means this one alone."""
    folder = of.stem.rpartition("/")[0].rpartition("/")[2]
    for name in (of.type_name, folder, of.name):
        if name and choose(sets, name) == [of]:
            return name
    return of.files[0]


def labels(chosen: Sequence[FileSet], sets: Sequence[FileSet], sizes: dict[str, int] | None = None) -> list[str]:
    """For messages: ":UD-IQ2_XXS (91.00 GB)". sizes: bytes by path."""
    return [f":{label(each, sets)}" + (f" ({gigabytes(sum(sizes[path] for path in each.files))})" if sizes else "")
            for each in chosen]
