"""Models on this machine: GGUF files by their names in the stores of Hugging Face, LM Studio and Ollama."""

from __future__ import annotations

import os
from pathlib import Path

from pyflash.native.errors import FileError
from pyflash.native.values import StrPath


def find_model(name: StrPath) -> Path:
    """The GGUF file, or the first of its shards, that a name means: "ORG/REPO:QUANT" or "ORG/REPO" in Hugging Face's
    cache or LM Studio's folder, "ollama:NAME" or "ollama:NAME:TAG" in Ollama's store.

    A path stays what it is. FileError, with what there is, where a name means no file or several. Uses no network.
    """
    return Path(model_path(os.fsdecode(name)))


def model_path(text: str) -> str:
    """The same for texts: what is no name is returned as it was given."""
    from gguf_export.errors import ConvertError
    from gguf_export.stores import lookup

    try:
        found = lookup.find_model(text)
    except ConvertError as error:
        raise FileError(str(error)) from error
    return text if found is None else os.fspath(found)
