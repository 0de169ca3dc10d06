"""Files of a release with something wrong in them."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

Change = Callable[[dict[str, bytes]], None]


def contents(path: Path) -> dict[str, bytes]:
    """The files of a zip or a wheel."""
    with zipfile.ZipFile(path) as archive:
        return {item.filename: archive.read(item) for item in archive.infolist() if not item.is_dir()}


def write(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def with_record(files: dict[str, bytes]) -> dict[str, bytes]:
    """A wheel's files with the RECORD that fits them."""
    (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.writerow((name, f"sha256={digest}", len(data)) if name != record else (name, "", ""))
    return {**files, record: text.getvalue().encode()}


def changed_wheel(wheel: Path, folder: Path, change: Change, *, name: str | None = None, record: bool = True) -> Path:
    """A copy of the wheel in the folder, its files changed. name: another one; record: RECORD is made to fit."""
    files = contents(wheel)
    change(files)
    return write(folder / (name or wheel.name), with_record(files) if record else files)


def replace(name: str, old: bytes, new: bytes) -> Change:
    """Bytes of the file whose name ends so. The old ones have to be there."""

    def change(files: dict[str, bytes]) -> None:
        (own,) = (file for file in files if file.endswith(name))
        assert old in files[own], (name, old)
        files[own] = files[own].replace(old, new)

    return change


def remove(name: str) -> Change:
    def change(files: dict[str, bytes]) -> None:
        del files[next(file for file in files if file.endswith(name))]

    return change


def add(name: str, data: bytes = b"") -> Change:
    def change(files: dict[str, bytes]) -> None:
        files[name] = data

    return change


def edit(name: str, how: Callable[[bytes], bytes]) -> Change:
    """The file whose name ends so."""

    def change(files: dict[str, bytes]) -> None:
        (own,) = (file for file in files if file.endswith(name))
        files[own] = how(files[own])

    return change
