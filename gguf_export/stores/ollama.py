"""Ollama's store: manifests/HOST/NAMESPACE/NAME/TAG is JSON that names blobs, blobs/sha256-... are the files."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from gguf_export.stores.folders import entries
from gguf_export.stores.model import Stored

_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MOST_MANIFEST = 1 << 20
# Where installations for the whole system keep theirs.
_SYSTEM_FOLDERS = ("/usr/share/ollama/.ollama/models", "/var/lib/ollama/models", "/var/snap/ollama/common/models")


class Ollama:
    prefix = "ollama"
    title = "Ollama's store"

    def folders(self) -> list[Path]:
        if named := os.environ.get("OLLAMA_MODELS"):
            return [Path(os.path.expanduser(named))]
        home = Path(os.path.expanduser("~"))
        own = [home / ".ollama" / "models"] if home.is_absolute() else []
        return own + ([] if sys.platform == "win32" else [Path(folder) for folder in _SYSTEM_FOLDERS])

    def find(self, name: str) -> list[Stored]:
        parts = _split(name)
        if parts is None:
            return []
        for root in self.folders():
            found = _folded(root / "manifests", parts)
            if found is not None and (stored := self._stored(root, found)):
                return [stored]
        return []

    def walk(self) -> Iterator[Stored]:
        for root in self.folders():
            for manifest in _manifests(root / "manifests"):
                if stored := self._stored(root, manifest):
                    yield stored

    def _stored(self, root: Path, manifest: Path) -> Stored | None:
        """None where the manifest names no GGUF, or one that is not there."""
        blobs = [blob for digest in _model_digests(manifest) if (blob := _blob(root, digest)) is not None]
        if not blobs:
            return None
        *place, tag = manifest.relative_to(root / "manifests").parts
        if place[0] == _HOST:
            place = place[2:] if place[1] == _NAMESPACE else place[1:]
        name = f"{self.prefix}:{'/'.join(place)}" + ("" if tag == _TAG else f":{tag}")
        return Stored(name, self.title, blobs[0], (blobs[0],))


def _split(name: str) -> list[str] | None:
    """NAME, NAMESPACE/NAME or HOST/NAMESPACE/NAME, and after a colon the tag -> the parts of the manifest's path."""
    path, _, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    parts = [*(path.split("/") if path else []), last]
    parts = [*[_HOST, _NAMESPACE][: max(0, 3 - len(parts))], *parts, tag or _TAG]
    good = all(_PART.fullmatch(part) for part in parts[1:]) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:-]*", parts[0])
    return parts if good and len(parts) == 4 else None


def _folded(folder: Path, parts: list[str]) -> Path | None:
    """The file below folder with these names, in letters of either case as Ollama takes them."""
    for part in parts:
        names = entries(folder)
        found = [path for path in names if path.name == part] or [
            path for path in names if path.name.lower() == part.lower()]
        if not found:
            return None
        folder = found[0]
    return folder


def _manifests(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if len(path.relative_to(folder).parts) == 4 and not name.startswith("."):
                yield path


def _model_digests(manifest: Path) -> list[str]:
    try:
        with open(manifest, "rb") as file:
            layers = json.loads(file.read(_MOST_MANIFEST))["layers"]
        named = [layer["digest"] for layer in layers if layer["mediaType"] == _MODEL_LAYER]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return [match[1] for digest in named if isinstance(digest, str) and (match := _DIGEST.fullmatch(digest))]


def _blob(root: Path, digest: str) -> Path | None:
    for separator in ("-", ":"):  # the colon: before 2024
        path = root / "blobs" / f"sha256{separator}{digest}"
        if os.path.isfile(path):
            return path
    return None
