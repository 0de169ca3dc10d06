"""Checkpoints in the local cache of Hugging Face's client: models--ORG--NAME/snapshots/COMMIT; refs/main names one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gguf_export.config import read_json_object
from gguf_export.errors import ConvertError, several
from gguf_export.outputs import check_name

PREFIX = "models--"
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"(?:{_PART}/)?{_PART}")
_COMMIT = re.compile(r"[0-9a-f]{4,64}")
_MODEL_TYPE = "deepseek_v4"


def cache_root() -> Path | None:
    """Where the client keeps its cache, by its own variables; None where there is no home folder."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"),
                            ("XDG_CACHE_HOME", "huggingface/hub")):  # fmt: skip
        if value := os.environ.get(variable):
            return Path(os.path.expanduser(value), below)
    home = os.path.expanduser("~")
    return Path(home, ".cache/huggingface/hub") if home != "~" else None


def find_checkpoint(given: Path | str) -> Path:
    """The checkpoint's folder: the one given, or a snapshot in a cache.

    That is for a model's folder in a cache, for a cache with one DeepSeek-V4 model, and for ORG/NAME where that is no
    folder. ConvertError, with the choice there is, where none is meant clearly.
    """
    folder = Path(check_name(given))
    if not folder.is_dir():
        return _by_name(folder)
    if (folder / "config.json").is_file():
        return folder
    if folder.name.startswith(PREFIX) or (folder / "snapshots").is_dir():
        return _snapshot(folder)
    if folder.name == "snapshots" and folder.absolute().parent.name.startswith(PREFIX):
        return _snapshot(folder.absolute().parent)
    for root in (folder, folder / "hub"):
        if models := sorted(path for path in root.glob(f"{PREFIX}*") if path.is_dir()):
            return _only_model(root, models)
    return folder


def _by_name(given: Path) -> Path:
    name = given.as_posix()
    root = cache_root()
    if not _REPOSITORY.fullmatch(name) or "--" in name or ".." in name or root is None or os.path.lexists(given):
        return given
    folder = root / (PREFIX + name.replace("/", "--"))
    if folder.is_dir():
        return _snapshot(folder)
    if "/" not in name:  # more likely a folder that is not there
        return given
    raise ConvertError(f"{name} is no folder, and {root} holds no model of that name: download it (hf download {name}), "
                       "or give the folder that holds config.json and the safetensors files")


def _repository(folder: Path) -> str:
    return folder.name.removeprefix(PREFIX).replace("--", "/")


def main_commit(folder: Path) -> str:
    """The commit that refs/main of a model's folder names, "" where that says nothing."""
    try:
        main = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return main if _COMMIT.fullmatch(main) else ""


def _snapshot(folder: Path) -> Path:
    """The snapshot that refs/main names, or the only one."""
    snapshots = folder / "snapshots"
    main = main_commit(folder)
    if main and (snapshots / main).is_dir():
        return snapshots / main
    found = sorted(path for path in snapshots.glob("*") if path.is_dir())
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConvertError(f"{folder} holds no snapshot; download the model again (hf download {_repository(folder)})")
    raise several(f"{folder} holds {len(found)} snapshots and refs/main names none of them; give one",
                  [str(path) for path in found])


def _only_model(root: Path, models: list[Path]) -> Path:
    found = []
    for model in models:
        try:
            snapshot = _snapshot(model)
            values, _ = read_json_object(snapshot / "config.json")
        except ConvertError:
            continue
        if values.get("model_type") == _MODEL_TYPE:
            found.append((model, snapshot))
    if len(found) == 1:
        return found[0][1]
    if not found:
        raise ConvertError(f"{root} is a cache of {len(models)} models, none of which is a DeepSeek-V4 checkpoint")
    raise several(f"{root} is a cache of {len(found)} DeepSeek-V4 models; give one by its name",
                  [_repository(model) for model, _ in found])


def model_name(folder: Path) -> str:
    """What a checkpoint is called: its folder's name, or of a commit in a cache NAME of models--ORG--NAME."""
    folder = folder.resolve()
    above = folder.parent.parent
    if folder.parent.name == "snapshots" and above.name.startswith(PREFIX):
        return above.name.split("--")[-1]
    return folder.name
