"""`convert --verify`: files against the checksums that the hub's client leaves beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import small_checkpoint
from ran import Ran

from gguf_export.checkpoint import open_checkpoint
from gguf_export.errors import ConvertError
from gguf_export.published import published_hash, verify_files

Run = Callable[..., Ran]
LARGE = "model-00003-of-00006.safetensors"


def hub_hash(data: bytes, is_large: bool) -> str:
    return hashlib.sha256(data).hexdigest() if is_large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def in_cache(tmp_path: Path) -> Path:
    """A snapshot in the client's cache: links to blobs."""
    source = small_checkpoint(tmp_path / "plain")
    root = tmp_path / "models--org--name"
    snapshot = root / "snapshots" / ("ab" * 20)
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for path in source.iterdir():
        data = path.read_bytes()
        name = hub_hash(data, path.suffix == ".safetensors")
        (root / "blobs" / name).write_bytes(data)
        try:
            (snapshot / path.name).symlink_to(f"../../blobs/{name}")
        except OSError:
            pytest.skip("no symlinks here")
    return snapshot


def in_folder(tmp_path: Path) -> Path:
    """A download into a folder, with the client's records."""
    folder = small_checkpoint(tmp_path / "folder")
    records = folder / ".cache" / "huggingface" / "download"
    records.mkdir(parents=True)
    for path in [path for path in folder.iterdir() if path.is_file()]:
        etag = hub_hash(path.read_bytes(), path.suffix == ".safetensors")
        (records / f"{path.name}.metadata").write_text(f"{'cd' * 20}\n{etag}\n1764000000.5\n", encoding="utf-8")
    return folder


KINDS = {"cache": in_cache, "folder": in_folder}


@pytest.mark.parametrize("kind", KINDS)
def test_files_as_published(tmp_path: Path, kind: str) -> None:
    folder = KINDS[kind](tmp_path)
    calls: list[tuple[int, int]] = []
    found = verify_files(open_checkpoint(folder), lambda done, total: calls.append((done, total)))
    assert set(found.verified) == {path.name for path in folder.iterdir() if path.is_file()} and found.unknown == ()
    assert calls[-1][0] == calls[-1][1] == sum((folder / name).stat().st_size for name in found.verified)
    assert found.summary() == f"{len(found.verified)} files are as published"


@pytest.mark.parametrize("name", ["generation_config.json", LARGE])
@pytest.mark.parametrize("kind", KINDS)
def test_files_that_differ_are_named(tmp_path: Path, kind: str, name: str, run: Run) -> None:
    folder = KINDS[kind](tmp_path)
    path = (folder / name).resolve()
    data = bytearray(path.read_bytes())
    at = len(data) - 5 if name == LARGE else data.index(b"1")
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConvertError, match=f"not as published.*download them again: {name}$"):
        verify_files(open_checkpoint(folder))
    out = tmp_path / "m.gguf"
    ran = run("convert", folder, out, "--verify")
    assert ran.code == 1 and name in ran.stderr and not out.exists()
    assert run("convert", folder, out).code == 0


def test_no_or_few_checksums_are_told(tmp_path: Path, run: Run) -> None:
    folder = small_checkpoint(tmp_path / "c")
    ran = run("convert", folder, tmp_path / "m.gguf", "--verify", "--json")
    assert ran.code == 0 and "nothing could be verified" in ran.stderr
    assert ran.json()["verified_files"] == [] and LARGE in ran.json()["unverified_files"]
    folder = in_folder(tmp_path)
    (folder / ".cache/huggingface/download" / f"{LARGE}.metadata").unlink()
    ran = run("convert", folder, tmp_path / "m.gguf", "--verify", "--dry-run")
    assert ran.code == 0 and f"no published checksum is left for {LARGE}" in ran.stderr and "total:" in ran.stdout


@pytest.mark.parametrize("record", ["", "one line", "a\nno hash\n1", "a\n" + "0" * 39 + "\n1", "a\n" + "g" * 64 + "\n"])
def test_records_that_say_nothing(tmp_path: Path, record: str) -> None:
    records = tmp_path / ".cache" / "huggingface" / "download"
    records.mkdir(parents=True)
    (records / "f.metadata").write_text(record, encoding="utf-8")
    assert published_hash(tmp_path, "f") is None
    (records / "f.metadata").write_text(f'a\nW/"{"AB" * 32}"\n1', encoding="utf-8")
    assert published_hash(tmp_path, "f") == "ab" * 32
