"""convert and the exports where something else stands at the output's name: nothing is lost, and no work is left."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import small_checkpoint
from ran import Ran

from gguf_export import outputs
from gguf_export.convert import ConvertOptions, convert, export_hf
from gguf_export.errors import ConvertError
from gguf_export.lmstudio import export_lmstudio
from gguf_export.ollama import export_ollama
from gguf_export.reader import read_gguf
from gguf_export.synthetic import write_checkpoint

Run = Callable[..., Ran]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, links and permissions are POSIX's")
PLAIN = ConvertOptions()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("places") / "c")


@pytest.fixture(scope="module")
def native(checkpoint: Path) -> Path:
    return convert(checkpoint, checkpoint.parent / "native.gguf", ConvertOptions(profile="native")).files[0]


def names(folder: Path) -> list[str]:
    return sorted(os.path.relpath(os.path.join(place, name), folder)
                  for place, folders, files in os.walk(folder) for name in folders + files)


def hinder(path: Path, what: str) -> str:
    """Puts something there. Returns what an error says of it."""
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("no device can be made here")
    elif what == "folder":
        path.mkdir()
    elif what == "read-only":
        path.touch(0o444)
    else:
        path.symlink_to(path.name)
        return "circle"
    return f"is a {what}" if what != "read-only" else "is read-only"


HINDRANCES = ["pipe", "device", "folder", "read-only", "circle"]


def unread(_done: int, _total: int) -> None:
    raise AssertionError("it has begun")


@pytest.mark.parametrize("what", HINDRANCES)
@pytest.mark.parametrize("name, options", [
    ("m.gguf", PLAIN), ("mtp-m.gguf", ConvertOptions(mtp=True)),
    ("m-00002-of-00008.gguf", ConvertOptions(shard_bytes=100_000))])  # fmt: skip
def test_convert_refuses(tmp_path: Path, checkpoint: Path, what: str, name: str, options: ConvertOptions) -> None:
    if name.startswith("m-"):
        shards = convert(checkpoint, tmp_path / "m.gguf", options).files
        name = shards[1].name
        for path in shards:
            path.unlink()
    said = hinder(tmp_path / name, what)
    before = os.lstat(tmp_path / name)
    with pytest.raises(ConvertError, match=f"{name}.*{said}|{said}.*{name}"):
        convert(checkpoint, tmp_path / "m.gguf", options, progress=unread)
    assert os.lstat(tmp_path / name)[:6] == before[:6] and names(tmp_path) == [name]


def test_convert_follows_links(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To another disk, say: the space is asked for there, and the work is there."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").mkdir()
    out = tmp_path / "here" / "m.gguf"
    out.symlink_to("../disk/real.bin")
    (tmp_path / "here" / "mtp-m.gguf").symlink_to(tmp_path / "disk" / "mtp")
    (tmp_path / "disk" / "mtp").touch(0o640)
    asked: list[str] = []

    def usage(folder: str) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(free=10**12)

    def progress(done: int, total: int) -> None:
        seen.update(entry.parent.name for entry in tmp_path.rglob(".*.part"))

    seen: set[str] = set()
    monkeypatch.setattr(outputs.shutil, "disk_usage", usage)
    report = convert(checkpoint, out, ConvertOptions(mtp=True), progress=progress)
    assert asked == [str(tmp_path / "disk")] and seen == {"disk"}
    assert report.files == [out, out.with_name("mtp-m.gguf")] and out.is_symlink() and report.files[1].is_symlink()
    assert names(tmp_path) == ["disk", "disk/mtp", "disk/real.bin", "here", "here/m.gguf", "here/mtp-m.gguf"]
    assert read_gguf(out).tensors and stat.S_IMODE((tmp_path / "disk" / "mtp").stat().st_mode) == 0o640
    (tmp_path / "here" / "mtp-m.gguf").unlink()
    (tmp_path / "here" / "mtp-m.gguf").symlink_to(out)
    with pytest.raises(ConvertError, match="lead to the same file"):
        convert(checkpoint, out, ConvertOptions(mtp=True), progress=unread)


@pytest.mark.parametrize("name", ["x" * 250 + ".gguf", "é" * 125 + ".gguf", os.fsdecode(b"\xe9\xff") * 100 + ".gguf"])
def test_convert_to_long_and_odd_names(tmp_path: Path, checkpoint: Path, name: str) -> None:
    convert(checkpoint, tmp_path / name, PLAIN)
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(ConvertError, match="too long"):  # and before anything is read
        convert(checkpoint, tmp_path / (name[:-5] + "y" * 60 + ".gguf"), PLAIN, progress=unread)
    with pytest.raises(ConvertError, match="zero byte"):
        convert(checkpoint, f"{tmp_path}/a\0b.gguf", PLAIN, progress=unread)
    assert os.listdir(tmp_path) == [name]


KILLED = """
import os, signal, sys
from gguf_export import convert, hf
def end(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
convert.run_jobs = hf.run_jobs = end
from pyflash.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["convert", "hf"])
def test_after_a_kill(tmp_path: Path, checkpoint: Path, native: Path, command: str, run: Run) -> None:
    words = {"convert": ["convert", str(checkpoint), "m.gguf", "--split-max-size", "100K"],
             "hf": ["export", "hf", str(native), "m.gguf"]}[command]
    (tmp_path / ".other.gguf.01234567.part").mkdir()
    done = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=tmp_path, timeout=60)
    assert done.returncode == -signal.SIGKILL and [name for name in names(tmp_path) if ".m.gguf." in name]
    assert run(*words, cwd=tmp_path).code == 0
    assert not [name for name in names(tmp_path) if name.startswith(".m.") or "/." in name]
    assert (tmp_path / ".other.gguf.01234567.part").is_dir()


# -- exports --


@pytest.mark.parametrize("what", HINDRANCES)
def test_files_are_not_placed_over(tmp_path: Path, tiny_model: Path, what: str) -> None:
    said = hinder(tmp_path / tiny_model.name, what)
    for copy in (False, True):
        with pytest.raises(ConvertError, match=said):
            export_ollama(tiny_model, tmp_path, place="copy" if copy else "link", force=True)
        assert names(tmp_path) == [tiny_model.name]


def test_a_copy_follows_a_link(tmp_path: Path, tiny_model: Path) -> None:
    place = tmp_path / "models" / "deepseek-ai" / "tiny-random-weights" / tiny_model.name
    place.parent.mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    place.symlink_to(tmp_path / "disk" / "real.gguf")
    with pytest.raises(ConvertError, match="force=True"):
        export_lmstudio(tiny_model, tmp_path / "models", copy=True)
    for _ in range(2):
        assert export_lmstudio(tiny_model, tmp_path / "models", copy=True, force=True).files == [place]
        assert place.is_symlink() and (tmp_path / "disk" / "real.gguf").read_bytes() == tiny_model.read_bytes()
    assert len(names(tmp_path)) == 6


def test_a_link_to_a_folder_that_is_not_there_yet(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "models").symlink_to("real/models")
    assert export_lmstudio(tiny_model, tmp_path / "models").files[0].is_file()
    assert (tmp_path / "models").is_symlink() and (tmp_path / "real" / "models" / "deepseek-ai").is_dir()
    with pytest.raises(ConvertError, match="zero byte"):
        export_lmstudio(tiny_model, Path(f"{tmp_path}/a\0b"))


@pytest.mark.parametrize("what", ["pipe", "link to a pipe"])
def test_modelfile_through_a_pipe(tmp_path: Path, tiny_model: Path, what: str) -> None:
    pipe = tmp_path / ("Modelfile" if what == "pipe" else "pipe")
    os.mkfifo(pipe)
    if what != "pipe":
        (tmp_path / "Modelfile").symlink_to("pipe")
    before = names(tmp_path)
    with pytest.raises(ConvertError, match="force=True"):
        export_ollama(tiny_model, tmp_path)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text(encoding="utf-8")), daemon=True)
    reader.start()
    export_ollama(tiny_model, tmp_path, force=True)
    reader.join(20)
    assert f"FROM {tiny_model}" in found[0] and names(tmp_path) == before and stat.S_ISFIFO(os.stat(pipe).st_mode)


@pytest.mark.parametrize("what", ["device", "folder", "read-only", "circle"])
def test_modelfile_over_other_things(tmp_path: Path, tiny_model: Path, what: str) -> None:
    said = hinder(tmp_path / "Modelfile", what)
    try:
        export_ollama(tiny_model, tmp_path, force=True)
        assert what == "device"
    except ConvertError as error:
        assert said in str(error) or what == "device"  # one mounted without devices
    assert names(tmp_path) == ["Modelfile"]
    assert stat.S_ISCHR(os.lstat(tmp_path / "Modelfile").st_mode) == (what == "device")


def test_modelfile_through_a_link(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    (tmp_path / "dotfiles" / "mine").touch(0o600)
    (tmp_path / "Modelfile").symlink_to("dotfiles/mine")
    export_ollama(tiny_model, tmp_path, force=True)
    assert (tmp_path / "Modelfile").is_symlink() and "FROM" in (tmp_path / "dotfiles" / "mine").read_text("utf-8")
    assert stat.S_IMODE((tmp_path / "dotfiles" / "mine").stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["new", "empty", "link", "dangling link", "this folder"])
def test_checkpoint_into_a_folder(tmp_path: Path, native: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is there is kept: it may be another disk's root."""
    dest, real = tmp_path / "dest", tmp_path / "real"
    if kind in ("empty", "this folder"):
        real = dest
    if kind not in ("new", "dangling link"):
        real.mkdir(0o750)
    if "link" in kind:
        dest.symlink_to("real")
    before = real.stat().st_ino if real.exists() else None
    if kind == "this folder":
        monkeypatch.chdir(dest)
    files = export_hf(native, "." if kind == "this folder" else dest)
    assert all(path.is_file() for path in files) and sorted(os.listdir(dest)) == sorted(path.name for path in files)
    assert before in (None, dest.stat().st_ino) and dest.is_symlink() == ("link" in kind)
    if before is not None:
        assert stat.S_IMODE(dest.stat().st_mode) == 0o750


@pytest.mark.parametrize("what", ["pipe", "device", "read-only", "circle"])
def test_checkpoint_over_other_things(tmp_path: Path, native: Path, what: str) -> None:
    hinder(tmp_path / "dest", what)
    with pytest.raises(ConvertError, match="dest"):
        export_hf(native, tmp_path / "dest")
    assert names(tmp_path) == ["dest"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_synthetic_checkpoints(tmp_path: Path, checkpoint: Path, name: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConvertError, match=f"{name} is a pipe"):
        write_checkpoint(tmp_path, config, sharded=False, tokenizer=True)
    assert stat.S_ISFIFO(os.stat(tmp_path / name).st_mode) and not [each for each in names(tmp_path) if each[0] == "."]


def test_a_synthetic_checkpoint_does_not_mix_with_another(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for dest in (tmp_path, tmp_path / "config.json"):
        command = [sys.executable, "-m", "gguf_export.synthetic", str(dest)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and "not an empty folder" in done.stderr and names(tmp_path) == ["config.json"]
