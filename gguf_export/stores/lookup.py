"""One name, or all models of this architecture, over all stores."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from gguf_export.errors import ConvertError, first_few, several
from gguf_export.metadata import ARCH
from gguf_export.stores.folders import HubCache, LMStudio
from gguf_export.stores.model import Model, Store, Stored, architecture, inspect
from gguf_export.stores.ollama import Ollama
from gguf_export.stores.repository import split_name

STORES: tuple[Store, ...] = (HubCache(), LMStudio(), Ollama())
_PREFIXES = {store.prefix: store for store in STORES}
_LIKELY = re.compile(r"gguf|deepseek", re.IGNORECASE)


@dataclass
class Listing:
    """What the stores hold. n_other: files of other architectures, by that. problems: lines on what cannot be used."""

    models: list[Model] = field(default_factory=list)
    n_other: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def is_name(text: str) -> bool:
    """Whether a text can be meant for a model's name (STORE:NAME, ORG/REPO:QUANT or ORG/REPO) and names no file.

    Of ORG/REPO that is only so where a store has it, or it looks like a repository of models: other words have a slash.
    """
    if not _may_be_name(text) or _is_there(text):
        return False
    prefix, _ = _split_prefix(text)
    split = split_name(text)
    if prefix or split is None or split[1] or _LIKELY.search(text):
        return True
    return any(store.find(text) for store in STORES)


def _is_there(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a zero byte
        return False


def _split_prefix(text: str) -> tuple[str, str]:
    prefix, colon, rest = text.partition(":")
    return (prefix, rest) if colon and prefix in _PREFIXES else ("", text)


def _may_be_name(text: str) -> bool:
    if text.lower().endswith(".gguf") and ":" not in text:
        return False
    prefix, rest = _split_prefix(text)
    return bool(prefix and rest and not re.search(r"\s", rest)) or split_name(text) is not None


def find_model(name: str) -> Path | None:
    """The GGUF file, or first shard, that a name in a store means. None for a path: one that is there, and what cannot
    be a name.

    ConvertError, with what there is, for a name that means nothing, several files, or one of which parts are missing.
    """
    if not _may_be_name(name) or _is_there(name):
        return None
    prefix, rest = _split_prefix(name)
    partial: list[Stored] = []
    for store in [_PREFIXES[prefix]] if prefix else STORES:
        found = store.find(rest)
        whole = [each for each in found if not each.missing]
        if len(whole) > 1:
            whole = [each for each in whole if _is_ours(each.path)] or whole
        if len(whole) == 1:
            return whole[0].path
        if whole:
            raise several(f"{name} is not one model of {store.title}; give one of these", [each.name for each in whole])
        partial += found
    if partial:
        lost = partial[0]
        raise ConvertError(f"{lost.name} in {lost.store} {_lacking(lost)}: download them (pyflash pull {lost.name})")
    raise _unknown(name, rest)


def _lacking(stored: Stored) -> str:
    return f"lacks {stored.missing} of its {len(stored.files) + stored.missing} shards"


def _locked_folders() -> list[str]:
    """Lines on folders of stores that this user may not read."""
    found = []
    for store in STORES:
        for folder in store.folders():
            try:
                os.listdir(folder)
            except PermissionError:
                found.append(f"{store.title} in {folder} is closed to you: change its permissions to use it")
            except OSError:
                pass
    return found


def _is_ours(path: Path) -> bool:
    try:
        return architecture(path) == ARCH
    except ConvertError:
        return False


def _unknown(name: str, rest: str) -> ConvertError:
    known = [each.name for store in STORES for each in store.walk()]
    split = split_name(rest)
    is_on_hub = split is not None and _split_prefix(name)[0] in ("", HubCache.prefix)
    pull = f"download it with pyflash pull {rest}" if is_on_hub else ""
    same = [each for each in known if split and each.lower().startswith(f"{split[0].lower()}:")]
    if same and split and split[1]:
        return ConvertError(f"{split[0]} has no {split[1]} on this machine, but {first_few(same)}: take one of these"
                            + (f", or {pull}" if pull else ""))
    meant = _nearest(name, known)
    hint = f"did you mean {meant}?" if meant else "pyflash list shows what there is"
    if pull:
        hint += f" Or {pull}" if meant else f"; {pull}"
    closed = "".join(f" ({line})" for line in _locked_folders())
    return ConvertError(f"{name} is neither a file nor a model in a local store{closed}: {hint}")


def _nearest(name: str, known: list[str]) -> str:
    """The known name that a mistyped one is most like, with its part after the last colon or without; "": none."""
    spelt: dict[str, str] = {}
    for each in known:
        spelt.setdefault(each.lower(), each)
        spelt.setdefault(each.lower().rpartition(":")[0], each)
    near = difflib.get_close_matches(name.lower(), spelt, 1, 0.75)
    return spelt[near[0]] if near else ""


def list_models() -> Listing:
    """Every model of this architecture in every store, by reading headers only."""
    listing = Listing(problems=_locked_folders())
    names: set[str] = set()
    for store in STORES:
        for stored in store.walk():
            if stored.name.lower() in names:  # what the bare name means lies in a store before
                stored = replace(stored, name=f"{store.prefix}:{stored.name}")
            _add(listing, stored, names)
    return listing


def _add(listing: Listing, stored: Stored, names: set[str]) -> None:
    if stored.missing:
        listing.problems.append(f"{stored.name} {_lacking(stored)}")
        return
    try:
        found = inspect(stored)
    except ConvertError as error:
        listing.problems.append(f"{stored.name}: {error}")
        return
    except OSError as error:
        listing.problems.append(f"{stored.name}: {error.strerror}")
        return
    if isinstance(found, str):
        listing.n_other[found] += 1
    else:
        names.add(stored.name.lower())
        listing.models.append(found)
