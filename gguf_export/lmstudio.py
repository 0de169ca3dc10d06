"""A GGUF file in the folder layout that LM Studio looks for: MODELS/publisher/model/file.gguf."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gguf_export.engine import ProgressFn
from gguf_export.errors import ConvertError
from gguf_export.placing import make_folder, open_for_programs, place_files, remove_folders, text_key

DEFAULT_PUBLISHER = "deepseek-ai"
MOST_NAME = 96

# Names that Windows keeps for devices.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class LMStudioExport:
    """files: the new paths. how: "hard link", "symlink" or "copy". left_out: MTP files beside the source."""

    files: list[Path]
    how: str
    publisher: str
    model: str
    left_out: list[Path]


def folder_name(text: str) -> str:
    """The text as a folder name that every system takes, or "" where nothing of it is left."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-. ")[:MOST_NAME].rstrip("-.")
    return "" if _RESERVED.fullmatch(name) else name


def _chosen(option: str, given: str | None, *defaults: str) -> str:
    if given is None:
        return next(name for text in defaults if (name := folder_name(text)))
    if not given or folder_name(given) != given:
        raise ConvertError(f"{option} {given!r} is no plain folder name; use letters, digits, '-', '_' and '.'")
    return given


def export_lmstudio(
    source: Path, dest: Path, *, publisher: str | None = None, model: str | None = None, copy: bool = False,
    force: bool = False, progress: ProgressFn | None = None,
) -> LMStudioExport:
    """Puts the file, or all its shards, into dest/publisher/model. dest is LM Studio's folder of models.

    Hard links where the file system can, else symlinks, else copies: LM Studio's own `lms import` makes all three.
    copy: copies. publisher defaults to the file's general.organization or "deepseek-ai", model to its general.name or
    file name. ConvertError for files that llama.cpp cannot run, and for what stands in the way unless force is set.
    """
    gguf, sources = open_for_programs(source, "LM Studio")
    maker = _chosen("publisher", publisher, text_key(gguf, "general.organization"), DEFAULT_PUBLISHER)
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", source.stem)
    title = _chosen("model", model, text_key(gguf, "general.name"), stem, "deepseek-v4")
    folder = dest / maker / title
    made = make_folder(folder)
    try:
        names = [path.name for path in sources]
        if len(names) == 1 and not names[0].lower().endswith(".gguf"):  # a blob of Ollama's: LM Studio would not see it
            names = [f"{title}.gguf"]
        files, how = place_files(sources, folder, copy=copy, force=force, progress=progress, names=names)
    except BaseException:
        remove_folders(made)
        raise
    left_out = [path for path in source.parent.glob("mtp-*.gguf") if path.name.startswith(f"mtp-{stem}")]
    return LMStudioExport(files, how, maker, title, sorted(left_out))
