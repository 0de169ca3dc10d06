"""export lmstudio: the layout, links and copies, and what is refused."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyflash
import pytest
from ran import Ran
from gguf import GGUFReader

from gguf_export import outputs
from gguf_export.errors import ConvertError
from gguf_export.lmstudio import export_lmstudio, folder_name

Convert = Callable[..., Path]
Run = Callable[..., Ran]


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def refuse(*_arguments: Any) -> None:
    raise OSError(errno.EPERM, "not here")


def test_layout(tmp_path: Path, tiny_model: Path, run: Run) -> None:
    ran = run("export", "lmstudio", tiny_model, tmp_path / "models")
    assert ran.code == 0 and "hard link" in ran.stderr
    path = tmp_path / "models" / "deepseek-ai" / "tiny-random-weights" / tiny_model.name
    assert ran.stdout == f"{path}\n"
    assert files_below(tmp_path / "models") == [str(path.relative_to(tmp_path / "models"))]
    assert os.path.samefile(path, tiny_model)
    with pyflash.Model.open(path) as model, model.session(context=8) as session:
        assert session.eval([1, 2]).shape == (model.info.n_vocab,)


def test_shards_and_names(tmp_path: Path, converted: Convert, run: Run) -> None:
    first = converted(shard_bytes=100_000, mtp=True)
    shards = sorted(first.parent.glob("tiny-*.gguf"))
    sidecars = sorted(first.parent.glob("mtp-*.gguf"))
    assert len(shards) > 2 and sidecars
    ran = run("export", "lmstudio", first, tmp_path, "--publisher", "me", "--model", "V4.mini", "--copy", "--json")
    done = ran.json()
    assert (done["placed"], done["publisher"], done["model"]) == ("copy", "me", "V4.mini")
    assert files_below(tmp_path) == [f"me/V4.mini/{path.name}" for path in shards]
    assert done["left_out"] == [str(path) for path in sidecars] and "stays out" in ran.stderr
    for path, shard in zip(done["files"], shards, strict=True):
        assert Path(path).read_bytes() == shard.read_bytes() and not os.path.samefile(path, shard)


def test_symlink_where_hard_links_are_impossible(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse)
    done = export_lmstudio(tiny_model, tmp_path / "models")
    assert done.how == "symlink" and done.files[0].is_symlink()
    assert os.readlink(done.files[0]) == os.path.realpath(tiny_model)  # wherever it is looked at from
    again = export_lmstudio(tiny_model, tmp_path / "models", force=True, copy=True)
    assert again.how == "copy" and not again.files[0].is_symlink() and tiny_model.stat().st_size > 1e6


def test_copy_where_no_links_are_possible(tmp_path: Path, converted: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    first = converted(shard_bytes=100_000)
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "symlink", refuse)
    seen: list[tuple[int, int]] = []
    done = export_lmstudio(first, tmp_path, progress=lambda count, total: seen.append((count, total)))
    total = sum(path.stat().st_size for path in first.parent.glob("*.gguf"))
    assert done.how == "copy" and seen[-1] == (total, total) and seen == sorted(seen) and len(seen) >= len(done.files)
    assert sum(path.stat().st_size for path in done.files) == total


def test_a_link_among_files_that_cannot_be_linked(
    tmp_path: Path, converted: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the shards linked and half not would be a mess: all are copied."""
    first = converted(shard_bytes=100_000)
    count = 0
    link = os.link

    def link_once(source: str, target: Path) -> None:
        nonlocal count
        count += 1
        refuse() if count > 1 else link(source, target)

    monkeypatch.setattr(os, "link", link_once)
    monkeypatch.setattr(os, "symlink", refuse)
    done = export_lmstudio(first, tmp_path)
    assert done.how == "copy" and all(path.stat().st_nlink == 1 for path in done.files)


def test_nothing_is_left_of_a_copy_that_fails(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_lmstudio(tiny_model, tmp_path / "models", copy=True, progress=interrupt)
    assert not (tmp_path / "models").exists()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda _folder: usage._replace(free=1000))
    with pytest.raises(ConvertError, match=r"1\.0 kB free and the output needs 2"):
        export_lmstudio(tiny_model, tmp_path / "models", copy=True)
    assert not (tmp_path / "models").exists()
    assert export_lmstudio(tiny_model, tmp_path / "models").how == "hard link"  # takes no space


def test_nothing_is_replaced_unasked(tmp_path: Path, tiny_model: Path, run: Run) -> None:
    place = tmp_path / "deepseek-ai" / "tiny-random-weights" / tiny_model.name
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    ran = run("export", "lmstudio", tiny_model, tmp_path)
    assert ran.code == 1 and "--force" in ran.stderr and place.read_text() == "mine"
    for _ in range(2):
        assert run("export", "lmstudio", tiny_model, tmp_path, "--force").code == 0
        assert os.path.samefile(place, tiny_model) and os.listdir(place.parent) == [tiny_model.name]
    renamed = tmp_path / "deepseek-ai" / "tiny-random-weights" / "own.gguf"
    shutil.copy(tiny_model, renamed)
    with pytest.raises(ConvertError, match="the file to export itself"):
        export_lmstudio(renamed, tmp_path, force=True)
    assert renamed.stat().st_size == tiny_model.stat().st_size
    place.unlink()
    place.mkdir()
    with pytest.raises(ConvertError, match="is a folder"):
        export_lmstudio(tiny_model, tmp_path, force=True)


def test_refusals(tmp_path: Path, converted: Convert, tiny_model: Path, run: Run) -> None:
    ran = run("export", "lmstudio", converted(profile="native"), tmp_path / "new")
    assert ran.code == 1 and "LM Studio cannot read" in ran.stderr and "--profile compat" in ran.stderr
    for option in ("publisher", "model"):
        for name in ("", "..", "a/b", "a b", "nul", "x."):
            with pytest.raises(ConvertError, match=f"^{option} "):
                export_lmstudio(tiny_model, tmp_path / "new", **{option: name})
    assert not (tmp_path / "new").exists()
    assert run("export", "lmstudio", tiny_model).code == 2


@pytest.mark.skipif(os.name == "nt", reason="the home folder is named by another variable")
def test_home_folder(tmp_path: Path, tiny_model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every shell knows "~"."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert run("export", "lmstudio", tiny_model, "~/models", cwd=tmp_path).code == 0
    assert os.listdir(tmp_path) == ["home"] and files_below(tmp_path / "home" / "models")


@pytest.mark.parametrize(
    "text, name",
    [("DeepSeek-V4-Flash", "DeepSeek-V4-Flash"), ("a/b\\c: d?", "a-b-c-d"), (" ..weiß.. ", "wei"), ("con", ""),
     ("COM1.txt", ""), ("", ""), ("日本", ""), ("x" * 300, "x" * 96)],
)  # fmt: skip
def test_folder_names(text: str, name: str) -> None:
    assert folder_name(text) == name


def test_metadata_names_the_folders(tmp_path: Path, converted: Convert) -> None:
    path = converted()
    title = GGUFReader(path).fields["general.name"].contents()
    done = export_lmstudio(path, tmp_path)
    assert (done.publisher, done.model) == ("deepseek-ai", folder_name(title))
