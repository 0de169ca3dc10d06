"""Errors as people meet them: exit code 1, exactly one line on stderr, and the line names the way out."""

from __future__ import annotations

import functools
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are set as Linux has them")
MB = 10**6


def run(
    *arguments: object, cwd: Path, limits: dict[str, int] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """pyflash in a process of its own; limits by the names that the resource module has."""
    return subprocess.run(
        [sys.executable, "-m", "pyflash", *map(str, arguments)], cwd=cwd, capture_output=True, encoding="utf-8",
        timeout=300, env={**os.environ, **env}, preexec_fn=functools.partial(set_limits, limits) if limits else None,
    )


def set_limits(limits: dict[str, int]) -> None:
    import resource

    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))


def assert_told(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.startswith("pyflash: error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


# -- files that are no model --

SAFETENSORS_HEADER = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()

NO_MODEL = {
    "missing": (None, ["no such file", "check the path"]),
    "empty": (b"", ["empty", "download it again"]),
    "text": (b"just a text\n" * 10, ["not a GGUF file", "pyflash convert FOLDER"]),
    "zip": (b"PK\3\4" + bytes(200), ["zip archive", "unpack"]),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(200), ["gzip archive", "unpack"]),
    "safetensors": (struct.pack("<Q", len(SAFETENSORS_HEADER)) + SAFETENSORS_HEADER + bytes(4),
                    ["safetensors", "pyflash convert FOLDER"]),
    "page": (b"<!DOCTYPE html>\n<html><head><title>Not found</title>", ["web page", "download the file itself"]),
    "page_later": (b"\xef\xbb\xbf \r\n<HTML lang=en>", ["web page", "download the file itself"]),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", ["git lfs pull"]),
    "session": (b"PFSESSIO" + bytes(100), ["saved session", "--session"]),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_MODEL)
def test_files_that_are_no_model(tmp_path: Path, name: str) -> None:
    data, words = NO_MODEL[name]
    if data is not None:
        (tmp_path / "m.gguf").write_bytes(data)
    assert_told(run("run", "m.gguf", "Hi", cwd=tmp_path), "m.gguf", *words)
    assert_told(run("info", "m.gguf", "--json", cwd=tmp_path), "m.gguf", *words)


def test_folder_in_place_of_a_model(tmp_path: Path, tiny_checkpoint: Path) -> None:
    assert_told(run("run", tiny_checkpoint, "Hi", cwd=tmp_path), "folder", "pyflash convert")
    assert_told(run("info", tiny_checkpoint, cwd=tmp_path), "folder", "pyflash convert")


@pytest.mark.parametrize("command", ["hf", "ollama", "lmstudio"])
def test_export_of_what_is_no_model(tmp_path: Path, command: str) -> None:
    (tmp_path / "text.gguf").write_bytes(b"a text")
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    assert_told(run("export", command, "text.gguf", "out", cwd=tmp_path), "text.gguf", "no GGUF file", "convert")
    assert_told(run("export", command, "page.gguf", "out", cwd=tmp_path), "page.gguf", "web page", "download it again")
    assert_told(run("export", command, "none.gguf", "out", cwd=tmp_path), "none.gguf", "check the path")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.gguf", "text.gguf"]


def test_convert_of_what_is_no_checkpoint(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "folder").mkdir()
    for source, words in (("none", ["none", "config.json"]), (tiny_model, [tiny_model.name, "folder"]),
                          ("folder", ["folder", "config.json"])):
        assert_told(run("convert", source, "out.gguf", cwd=tmp_path), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# -- models that cannot be run --


def test_another_architecture(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(tiny_model.read_bytes().replace(b"deepseek4", b"deepseek2"))
    assert_told(run("run", "m.gguf", "Hi", cwd=tmp_path), '"deepseek2"', "llama.cpp")


@pytest.mark.parametrize(
    ("version", "words"),
    [(struct.pack("<I", 4), ["version 4", "update pyflash"]), (struct.pack("<I", 1), ["version 1", "convert"]),
     (struct.pack(">I", 3), ["big-endian", "convert"])],
    ids=["newer", "older", "big-endian"],
)
def test_other_kinds_of_gguf(tmp_path: Path, tiny_model: Path, version: bytes, words: list[str]) -> None:
    data = tiny_model.read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[:4] + version + data[8:])
    assert_told(run("run", "m.gguf", "Hi", cwd=tmp_path), "m.gguf", *words)


@pytest.mark.parametrize("share", [0.0000015, 0.0001, 0.005, 0.05, 0.5, 0.9999997])
def test_download_that_stopped(tmp_path: Path, tiny_model: Path, share: float) -> None:
    """Within the header, the keys, the tokenizer, the tensor list or the weights."""
    data = tiny_model.read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[: int(share * len(data))])
    words = ["m.gguf", "truncated", "download it again"]
    assert_told(run("run", "m.gguf", "Hi", cwd=tmp_path), *words, *([str(len(data))] if share > 0.04 else []))


def test_shards_that_are_not_there(tmp_path: Path, tiny_checkpoint: Path) -> None:
    assert run("convert", tiny_checkpoint, "m.gguf", "--split-max-size", "1M", cwd=tmp_path).returncode == 0
    shards = sorted(path.name for path in tmp_path.iterdir())
    assert len(shards) >= 3
    assert_told(run("run", shards[1], "Hi", cwd=tmp_path), shards[1], "open the first")
    half = (tmp_path / shards[1]).read_bytes()
    (tmp_path / shards[1]).write_bytes(half[: len(half) // 2])
    assert_told(run("run", shards[0], "Hi", cwd=tmp_path), shards[1], "truncated", "download it again")
    (tmp_path / shards[1]).unlink()
    assert_told(run("run", shards[0], "Hi", cwd=tmp_path), "shard 2 of", "is missing", shards[1])


def test_model_without_a_tokenizer(tmp_path: Path) -> None:
    from gguf_export.convert import ConvertOptions, convert
    from gguf_export.synthetic import make_config, write_checkpoint

    checkpoint = write_checkpoint(tmp_path / "checkpoint", make_config("tiny"), seed=3, tokenizer=False)
    convert(checkpoint, tmp_path / "m.gguf", ConvertOptions())
    assert_told(run("run", "m.gguf", "Hi", cwd=tmp_path), "no tokenizer", "tokenizer.json")
    assert run("info", "m.gguf", cwd=tmp_path).returncode == 0


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads every file")
@pytest.mark.skipif(sys.platform == "win32", reason="permissions are set as Unix has them")
def test_file_without_permission(tmp_path: Path, tiny_model: Path) -> None:
    shutil.copy(tiny_model, tmp_path / "m.gguf")
    (tmp_path / "m.gguf").chmod(0)
    for command in (["run", "m.gguf", "Hi"], ["info", "m.gguf"], ["export", "ollama", "m.gguf", "out"]):
        assert_told(run(*command, cwd=tmp_path), "m.gguf", "permission")


# -- settings --


@pytest.mark.parametrize("isa", ["mmx", "AVX2"])
def test_unknown_kernel_set(tmp_path: Path, tiny_model: Path, isa: str) -> None:
    assert_told(run("run", tiny_model, "Hi", cwd=tmp_path, PYFLASH_CPU=isa), isa, "pyflash doctor")


@pytest.mark.parametrize("command", [["run", "{model}", "Hi", "-c", "70000"], ["info", "{model}", "-c", "70000"]],
                         ids=["run", "info"])
def test_context_beyond_the_model(tmp_path: Path, tiny_model: Path, command: list[str]) -> None:
    arguments = [word.format(model=tiny_model) for word in command]
    assert_told(run(*arguments, cwd=tmp_path), "70000", "1 to 65536")


def test_prompt_beyond_the_context(tmp_path: Path, tiny_model: Path) -> None:
    assert_told(run("run", tiny_model, "word " * 50, "-c", 20, cwd=tmp_path), "the context holds 20", "-c")


def test_prompt_files_that_cannot_be_read(tmp_path: Path, tiny_model: Path) -> None:
    assert_told(run("run", tiny_model, "-f", "none.txt", cwd=tmp_path), "none.txt", "check the path")
    assert_told(run("run", tiny_model, "-f", tmp_path, cwd=tmp_path), "folder", "give a file")


# -- memory --


@linux_only
def test_address_space_for_too_small_a_context(tmp_path: Path, tiny_model: Path) -> None:
    """Between what Python and numpy need and what a session needs, the line says what to lower."""
    told = []
    for megabytes in range(140, 900, 10):
        done = run("run", tiny_model, "Hi", "-n", 1, cwd=tmp_path, limits={"RLIMIT_AS": megabytes * MB},
                   OPENBLAS_NUM_THREADS="1")
        if done.returncode == 0:
            break
        if done.stderr.startswith("pyflash: "):
            assert_told(done, "memory")
            told.append(done.stderr)
    assert any("smaller" in line and "context" in line for line in told), told


def test_context_that_no_machine_holds(tmp_path: Path) -> None:
    """Memory is taken as it is used, so that the system itself would refuse nothing before it is too late."""
    from gguf_export.convert import ConvertOptions, convert
    from gguf_export.synthetic import make_config, write_checkpoint

    config = make_config("tiny", max_position_embeddings=1 << 30)
    convert(write_checkpoint(tmp_path / "checkpoint", config, seed=3), tmp_path / "m.gguf", ConvertOptions())
    done = run("run", "m.gguf", "Hi", "-c", 1 << 30, cwd=tmp_path)
    assert_told(done, "context", "memory", "smaller")
    report = json.loads(run("info", "m.gguf", "-c", 8192, "--json", cwd=tmp_path).stdout)
    assert report["fits"] and report["most_tokens"] < 1 << 30
    assert run("run", "m.gguf", "Hi", "-n", 1, "-c", 8192, cwd=tmp_path).returncode == 0


@linux_only
def test_address_space_for_too_large_a_model(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny_model.read_bytes()
    with open(tmp_path / "m.gguf", "wb") as file:
        file.write(data)
        file.truncate(64 * 10**9)  # takes no disk space
    done = run("info", "m.gguf", cwd=tmp_path, limits={"RLIMIT_AS": 8 * 10**9})
    assert_told(done, "m.gguf", "not enough memory or address space", "ulimit -v")


# -- disks --


@linux_only
def test_files_larger_than_allowed(
    tmp_path: Path, demo_checkpoint: Path, tiny_checkpoint: Path
) -> None:
    small = {"RLIMIT_FSIZE": MB // 50}
    assert_told(run("convert", tiny_checkpoint, "m.gguf", cwd=tmp_path, limits=small), "File too large", "ulimit -f")
    assert_told(run("run", "Hi", cwd=tmp_path, limits=small, PYFLASH_CACHE=str(tmp_path / "cache")), "PYFLASH_CACHE")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if not sys.platform.startswith("linux") or mount is None:
        pytest.skip("mounts a small disk as Linux does")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True)
    if done.returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk(small_disk: Path, tiny_checkpoint: Path, tiny_model: Path) -> None:
    """Nothing half-written stays; a session's file is kept as it was."""
    words = ["kB free", "free some space or choose another disk"]
    assert_told(run("convert", tiny_checkpoint, small_disk / "m.gguf", cwd=small_disk.parent), *words)
    assert list(small_disk.iterdir()) == []
    import pyflash

    with pyflash.Model.open(tiny_model) as model, model.session(context=4096) as session:
        session.eval(list(range(2, 40)))
        session.save(small_disk / "s")
        before = (small_disk / "s").read_bytes()
        session.eval(list(range(2, 902)))
        with pytest.raises(pyflash.FileError, match="the disk is full: free some space"):
            session.save(small_disk / "s")
    assert [path.name for path in small_disk.iterdir()] == ["s"] and (small_disk / "s").read_bytes() == before


# -- everything together: no text of an error is a traceback, whatever the bytes --


def damaged(data: bytes, seed: int) -> bytes:
    """A few bytes of the keys and the tensor list overwritten."""
    import random

    dice = random.Random(seed)
    found = bytearray(data)
    for _ in range(3):
        found[dice.randrange(8, len(data) // 50)] = dice.randrange(256)
    return bytes(found)


def test_random_damage_is_one_line(tmp_path: Path, tiny_model: Path) -> None:
    """`info` reads a file twice, by the library and by the converter's reader, so that both have to take it."""
    data = tiny_model.read_bytes()
    failed = 0
    for seed in range(12):
        (tmp_path / "m.gguf").write_bytes(damaged(data, seed))
        done = run("info", "m.gguf", cwd=tmp_path)
        assert "Traceback" not in done.stderr
        if done.returncode != 0:
            assert_told(done)
            failed += 1
    assert failed > 0
