"""Local stores of models, laid out as the programs do that keep them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "LLAMA_CACHE", "OLLAMA_MODELS")
COMMIT = "9f" * 20


def at_home(patch: pytest.MonkeyPatch, home: Path) -> Path:
    """Makes home the user's, with nothing in the environment that names a store elsewhere."""
    home.mkdir(exist_ok=True)
    for variable in VARIABLES:
        patch.delenv(variable, raising=False)
    patch.setenv("HOME", str(home))
    patch.setenv("USERPROFILE", str(home))
    return home


def put_in_hub(home: Path, repository: str, path: str, content: Path | bytes, commit: str = COMMIT,
               main: bool = True) -> Path:
    folder = home / ".cache" / "huggingface" / "hub" / f"models--{repository.replace('/', '--')}"
    data = content if isinstance(content, bytes) else content.read_bytes()
    blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    link = folder / "snapshots" / commit / path
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
    return link


def put_in_lmstudio(models: Path, repository: str, path: str, content: Path) -> Path:
    place = models / repository / path
    place.parent.mkdir(parents=True, exist_ok=True)
    os.link(content, place)
    return place


def put_in_ollama(models: Path, name: str, content: Path | bytes, separator: str = "-") -> Path:
    """name: HOST/NAMESPACE/NAME/TAG."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    blob = models / "blobs" / f"sha256{separator}{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    manifest = models / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({
        "schemaVersion": 2, "config": {"mediaType": "application/vnd.docker.container.image.v1+json"},
        "layers": [
            {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64, "size": 1},
            {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(data)},
        ],
    }))
    return blob
