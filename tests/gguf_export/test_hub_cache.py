"""Checkpoints in the local cache of Hugging Face's client, laid out as it does: blobs, and links to them by commit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import small_checkpoint
from ran import Ran

from gguf_export.convert import ConvertOptions, convert
from gguf_export.errors import ConvertError
from gguf_export.hub_cache import cache_root, find_checkpoint, model_name
from gguf_export.reader import read_gguf

Run = Callable[..., Ran]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="makes links")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("hub") / "c", drafts=False)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def put(root: Path, checkpoint: Path, name: str, commit: str, main: bool = True) -> Path:
    folder = root / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for path in checkpoint.iterdir():
        blob = folder / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
    return snapshot


OLD, MAIN = "0" * 40, "9f" * 20


def test_every_way_to_say_it(root: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, checkpoint, "org/Name-V4", OLD, main=False)
    snapshot = put(root, checkpoint, "org/Name-V4", MAIN)
    (root / "models--bert").mkdir()
    (root / "datasets--org--some").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(snapshot)
    folders = (snapshot, snapshot.parent, snapshot.parent.parent, root, root.parent, tmp_path / "link")
    for given in ("org/Name-V4", *folders):
        found = find_checkpoint(given)
        assert found.resolve() == snapshot and model_name(found) == "Name-V4", given
    assert find_checkpoint(snapshot.parent / OLD).name == OLD
    assert find_checkpoint(checkpoint) == checkpoint and model_name(checkpoint) == "c"
    (tmp_path / "org" / "Name-V4").mkdir(parents=True)  # a folder of that name is what is meant
    assert find_checkpoint("org/Name-V4") == Path("org/Name-V4")


def test_name_in_the_file(root: Path, checkpoint: Path, tmp_path: Path, run: Run) -> None:
    snapshot = put(root, checkpoint, "org/Name-V4", MAIN)
    assert run("convert", "org/Name-V4", tmp_path / "a.gguf").code == 0
    assert run("convert", snapshot, tmp_path / "b.gguf", "--name", "Mine, é").code == 0
    assert [read_gguf(tmp_path / name).keys["general.name"] for name in ("a.gguf", "b.gguf")] == ["Name-V4", "Mine, é"]
    assert "Name-V4" in run("convert", "org/Name-V4", tmp_path / "c.gguf", "--dry-run").stdout
    for name in ("", " ", "a\nb", "a\x1b[2J"):
        ran = run("convert", snapshot, tmp_path / "c.gguf", "--name", name)
        assert ran.code == 1 and "can be shown" in ran.stderr and ran.stderr.count("\n") == 1
    blob = (snapshot / "config.json").resolve()
    (tmp_path / "c.gguf").symlink_to(blob)
    with pytest.raises(ConvertError, match="made from"):
        convert(snapshot, tmp_path / "c.gguf", ConvertOptions())
    assert json.loads(blob.read_text())


def test_what_is_not_clear(root: Path, checkpoint: Path, tmp_path: Path) -> None:
    put(root, checkpoint, "org/one", OLD, main=False)
    put(root, checkpoint, "org/one", MAIN, main=False)
    with pytest.raises(ConvertError, match="2 snapshots.*" + OLD):
        find_checkpoint("org/one")
    (root / "models--org--one" / "refs").mkdir()
    for text in (b"../../../..", b"\xff", b"1234567", b""):
        (root / "models--org--one" / "refs" / "main").write_bytes(text)
        with pytest.raises(ConvertError, match="2 snapshots"):
            find_checkpoint("org/one")
    with pytest.raises(ConvertError, match="none of which"):
        find_checkpoint(root)
    (root / "models--org--one" / "refs" / "main").write_text(MAIN + "\n")
    put(root, checkpoint, "org/two", MAIN)
    with pytest.raises(ConvertError, match="2 DeepSeek-V4 models.*org/one; org/two"):
        find_checkpoint(root)
    with pytest.raises(ConvertError, match="hf download org/three"):
        find_checkpoint("org/three")
    (root / "models--org--three").mkdir()
    with pytest.raises(ConvertError, match="no snapshot.*hf download org/three"):
        find_checkpoint("org/three")
    for other in ("nothing", "a/b/c", "../x", "org/two--x", str(tmp_path / "absent")):
        assert find_checkpoint(other) == Path(other)  # said to be no folder by who opens it


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", "~/hf")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "x"))
    assert cache_root() == tmp_path / "x"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    assert cache_root() == tmp_path / ".cache" / "huggingface" / "hub"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no home, no entry in passwd
    assert cache_root() is None and find_checkpoint("org/x") == Path("org/x")
