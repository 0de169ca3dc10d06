"""GGUF files by their names in local stores, and `pyflash list`."""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ran import Ran
from stores import COMMIT, at_home, put_in_hub, put_in_lmstudio, put_in_ollama

import pyflash
from gguf_export.convert import ConvertOptions, convert
from gguf_export.errors import ConvertError
from gguf_export.quantizing import QuantizeOptions, plan_quantization
from gguf_export.stores.lookup import is_name, list_models
from gguf_export.stores.repository import choose, file_sets, label, split_name
from pyflash import FileError, find_model
from pyflash.machine.models import model_path

Run = Callable[..., Ran]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="makes links")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return at_home(monkeypatch, tmp_path / "home")


@pytest.fixture(scope="module")
def shards(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("shards") / "m.gguf"
    return convert(tiny_checkpoint, out, ConvertOptions(shard_bytes=400_000)).files


def other_model(architecture: str = "llama") -> bytes:
    """A GGUF with one key and no tensor."""
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    return (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("general.architecture") + struct.pack("<I", 8)
            + text(architecture) + bytes(64))


# -- what a name means --

UNSLOTH = [f"UD-IQ2_XXS/Flash-UD-IQ2_XXS-0000{i}-of-00002.gguf" for i in (1, 2)] + [
    "Flash-IQ2_XXS.gguf", "Flash-Q4_K_M.gguf", "Flash-Q4_K_S.gguf", "BF16/Flash-BF16.gguf", "mmproj-F16.gguf",
    "mtp-Flash-Q8_0.gguf", "imatrix_unsloth.gguf", "Flash-imatrix.gguf", "Flash.imatrix.gguf", "README.md",
    "Flash-DSpark-Q4_0.gguf"]
DS4 = ["Flash-IQ2XXS-w2Q2K-AProjQ8-SExpQ8-OutQ8-chat-v2-imatrix.gguf", "Flash-Q4KExperts-F16HC-chat-v2.gguf",
       "Flash-MTP-Q4K-Q8_0-F32.gguf"]


@pytest.mark.parametrize(("paths", "quant", "stems"), [
    (UNSLOTH, "UD-IQ2_XXS", ["UD-IQ2_XXS/Flash-UD-IQ2_XXS"]),
    (UNSLOTH, "iq2_xxs", ["Flash-IQ2_XXS"]),
    (UNSLOTH, "q4_k_m", ["Flash-Q4_K_M"]),
    (UNSLOTH, "Q4_K", []),
    (UNSLOTH, "Q4", []),
    (UNSLOTH, "bf16", ["BF16/Flash-BF16"]),
    (UNSLOTH, "F16", []),  # mmproj's
    (UNSLOTH, "Q8_0", []),  # mtp's
    (UNSLOTH, "mmproj-F16.gguf", ["mmproj-F16"]),  # a whole name means what it says
    (UNSLOTH, "Flash-UD-IQ2_XXS-00001-of-00002.gguf", ["UD-IQ2_XXS/Flash-UD-IQ2_XXS"]),
    (UNSLOTH, "Flash", ["BF16/Flash-BF16", "Flash-IQ2_XXS", "Flash-Q4_K_M", "Flash-Q4_K_S",
                        "UD-IQ2_XXS/Flash-UD-IQ2_XXS"]),
    (UNSLOTH, "", ["BF16/Flash-BF16", "Flash-IQ2_XXS", "Flash-Q4_K_M", "Flash-Q4_K_S", "UD-IQ2_XXS/Flash-UD-IQ2_XXS"]),
    (DS4, "IQ2XXS", [DS4[0][:-5]]),
    (DS4, "chat-v2-imatrix", [DS4[0][:-5]]),
    (DS4, "q4kexperts", [DS4[1][:-5]]),
    (DS4, "", [DS4[0][:-5], DS4[1][:-5]]),
    (["a/x-Q4_0.gguf", "b/x-Q4_0.gguf"], "Q4_0", ["a/x-Q4_0", "b/x-Q4_0"]),
    (["a/x-Q4_0.gguf", "b/x-Q4_0.gguf"], "b", ["b/x-Q4_0"]),
])  # fmt: skip
def test_choice_by_name(paths: list[str], quant: str, stems: list[str]) -> None:
    assert [each.stem for each in choose(file_sets(paths), quant)] == stems


@pytest.mark.parametrize("paths", [UNSLOTH, DS4, ["a/x-Q4_0.gguf", "b/x-Q4_0.gguf"], ["model.gguf"],
                                   ["Q4_0.gguf", "q4_0/a.gguf"]])
def test_every_file_has_a_name_of_its_own(paths: list[str]) -> None:
    sets = file_sets(paths)
    for each in sets:
        assert choose(sets, label(each, sets)) == [each]


def test_shards_belong_together() -> None:
    found = file_sets([f"m-0000{part}.gguf" for part in ("2-of-00003", "1-of-00003", "1-of-00002", "9-of-00002")])
    assert [(each.stem, len(each.files), each.missing) for each in found] == [
        ("m", 1, 1), ("m", 2, 1), ("m-00009-of-00002", 1, 0)]


def test_names_and_other_texts() -> None:
    assert split_name("org/Repo-GGUF:UD-Q4_K_XL") == ("org/Repo-GGUF", "UD-Q4_K_XL")
    assert split_name("a/b") == ("a/b", "")
    for text in ("a/b/c", "./a/b", "~/a", "a", "a/b:", "a/b:c:d", "a/b :c", "/a/b", "C:/a", "a/b:c d", "../x", "a/"):
        assert split_name(text) is None, text


# -- stores --


def test_hub_cache(home: Path, tiny_model: Path, shards: list[Path]) -> None:
    one = put_in_hub(home, "org/Flash-GGUF", "UD-Q4/Flash-UD-Q4_K_XL.gguf", tiny_model)
    put_in_hub(home, "org/Flash-GGUF", "mmproj-F16.gguf", b"GGUF")
    assert find_model("org/Flash-GGUF") == find_model("ORG/flash-gguf:ud-q4_k_xl") == one
    assert find_model("hf:org/Flash-GGUF:UD-Q4") == one
    for shard in shards:
        put_in_hub(home, "org/Flash-GGUF", f"Q8_0/{shard.name}", shard)
    found = find_model("org/Flash-GGUF:Q8_0")
    assert found.name == shards[0].name and found.parent.name == "Q8_0"
    with pytest.raises(FileError, match=r"org/Flash-GGUF is not one model.*:Q8_0; org/Flash-GGUF:UD-Q4_K_XL"):
        find_model("org/Flash-GGUF")
    with pytest.raises(FileError, match=r"no Q2_K on this machine, but org/.*pyflash pull org/Flash-GGUF:Q2_K"):
        find_model("org/Flash-GGUF:Q2_K")
    found.unlink()
    with pytest.raises(FileError, match=r"lacks 1 of its \d+ shards: .*pyflash pull org/Flash-GGUF:Q8_0"):
        find_model("org/Flash-GGUF:Q8_0")
    assert find_model("org/Flash-GGUF") == one  # the only whole one


def test_the_commit_that_counts(home: Path, tiny_model: Path) -> None:
    old = put_in_hub(home, "org/m", "m-Q8_0.gguf", tiny_model, commit="0" * 40, main=False)
    only_old = put_in_hub(home, "org/m", "m-F16.gguf", tiny_model, commit="0" * 40, main=False)
    assert find_model("org/m:Q8_0") == old
    new = put_in_hub(home, "org/m", "m-Q8_0.gguf", tiny_model)
    assert find_model("org/m:Q8_0") == new and find_model("org/m:F16") == only_old
    new.unlink()
    new.symlink_to("../../blobs/removed")
    assert find_model("org/m:Q8_0") == old


def test_where_the_stores_are(home: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = put_in_hub(tmp_path / "x", "org/moved", "m.gguf", tiny_model)
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "x" / ".cache" / "huggingface" / "hub"))
    assert find_model("org/moved") == link
    for models in (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models", tmp_path / "chosen",
                   tmp_path / "lm" / "models"):
        place = put_in_lmstudio(models, f"org/{models.parent.name}", "m-Q8_0.gguf", tiny_model)
        (home / ".lmstudio" / "settings.json").write_text(f'{{"downloadsFolder": "{tmp_path / "chosen"}"}}')
        (home / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'lm'}\n")
        if models.parent.name[0] != ".":
            assert find_model(f"org/{models.parent.name}:q8_0") == place
    for broken in (b"", b"\xff", b"{", b"[]", b'{"downloadsFolder": 3}', b'{"downloadsFolder": "x"}'):
        (home / ".lmstudio" / "settings.json").write_bytes(broken)
        assert find_model("lmstudio:org/lm-studio").is_file()


def test_ollama(home: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = home / ".ollama" / "models"
    blob = put_in_ollama(models, "registry.ollama.ai/library/flash/latest", tiny_model)
    put_in_ollama(models, "registry.ollama.ai/library/flash/q8", tiny_model)
    put_in_ollama(models, "registry.ollama.ai/me/flash/latest", tiny_model)
    put_in_ollama(models, "hf.co/org/Flash-GGUF/Q8_0", tiny_model)
    for name in ("flash", "FLASH:latest", "flash:q8", "me/flash", "hf.co/org/flash-gguf:q8_0", "library/flash"):
        assert find_model(f"ollama:{name}") == blob, name
    with pyflash.Model.open(find_model("ollama:flash")) as model:
        assert model.info.n_layer > 0
    for name in ("flash:q9", "you/flash", "x", "../flash", "a/b/c/d", ":", "flash:../q8"):
        with pytest.raises(FileError, match="neither a file nor a model"):
            find_model(f"ollama:{name}")
    manifest = models / "manifests/registry.ollama.ai/library/flash/latest"
    digests = [b"", b"\xff", b"[]", b"{}", b'{"layers": 3}', b'{"layers": [3]}', b'{"layers": [{"digest": "x"}]}',
               b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../x"}]}',
               b"[" * 100_000]
    for broken in digests:
        manifest.write_bytes(broken)
        with pytest.raises(FileError, match="did you mean ollama:"):
            find_model("ollama:flash")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))
    old = put_in_ollama(tmp_path / "elsewhere", "registry.ollama.ai/library/old/latest", tiny_model, separator=":")
    assert find_model("ollama:old") == old


def test_a_path_is_the_path(home: Path, tiny_model: Path, tmp_path: Path) -> None:
    put_in_hub(home, "org/m", "m.gguf", tiny_model)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "m").write_bytes(b"")
    (tmp_path / "ollama:x").write_bytes(b"")
    for path in ("org/m", "ollama:x", "nothing.gguf", "org/nothing.gguf", "../x", "/x/y", "x", "", "a b", "x:y", "./m", "\0"):
        assert find_model(path) == Path(path) and model_path(path) == path
        assert not is_name(path)
    assert find_model(tmp_path / "org" / "m") == tmp_path / "org" / "m"


def test_a_typo_is_told(home: Path, tiny_model: Path) -> None:
    put_in_hub(home, "unsloth/DeepSeek-V4-Flash-GGUF", "F-UD-IQ2_XXS.gguf", tiny_model)
    for typed in ("unslot/DeepSeek-V4-Flash-GGUF:UD-IQ2_XXS", "unsloth/DeepSeek-V4-Flsh-GGUF",
                  "unsloth/deepseekv4flash-gguf"):
        with pytest.raises(FileError, match="did you mean unsloth/DeepSeek-V4-Flash-GGUF:UD-IQ2_XXS"):
            find_model(typed)
    with pytest.raises(FileError, match="pyflash list shows .* pyflash pull some/thing"):
        find_model("some/thing")


# -- the command line --


def test_commands_take_names(home: Path, tiny_model: Path, demo_model: Path, run: Run) -> None:
    put_in_hub(home, "org/tiny-GGUF", "tiny-Q8_0.gguf", tiny_model)
    put_in_ollama(home / ".ollama" / "models", "registry.ollama.ai/library/demo/latest", demo_model)
    assert run("info", "org/tiny-GGUF:Q8_0", "--json").json()["file"].endswith("tiny-Q8_0.gguf")
    ran = run("run", "ollama:demo", "hello", "-n", "2", "--temp", "0")
    assert ran.code == 0 and ran.stdout
    assert run("run", "-m", "ollama:demo", "hello", "-n", "2", "--temp", "0").stdout == ran.stdout
    assert run("bench", "org/tiny-gguf", "--prompt", "4", "--gen", "1", "--repeat", "1", "--json").json()
    assert run("export", "ollama", "org/tiny-GGUF", home / "out", "--json").json()["model_files"]
    done = run("export", "lmstudio", "ollama:demo", home / "lm", "--model", "demo", "--json").json()
    assert [Path(path).name for path in done["files"]] == ["demo.gguf"]  # which LM Studio looks for
    for command in (("info", "org/tiny-GGUF:Q9"), ("run", "org/tiny-GGUF:Q9"), ("run", "org/tinny-GGUF"),
                    ("run", "ollama:demmo"), ("run", "-m", "ollama:demmo", "hello"), ("bench", "org/tinny-GGUF")):
        ran = run(*command)
        assert ran.code == 1 and re.search("org/tiny-GGUF|ollama:demo", ran.stderr), ran


def test_a_prompt_with_a_slash_is_one(home: Path, tiny_model: Path, run: Run, demo_model: Path) -> None:
    put_in_hub(home, "yes/no", "tiny-Q8_0.gguf", tiny_model)
    assert is_name("yes/no") and not is_name("and/or") and not is_name("ollama: what is it?")
    assert is_name("some/Model-GGUF") and is_name("ollama:x") and is_name("a/b:c")
    assert run("run", "and/or", "-n", "1").code == 0


def test_a_name_in_the_environment(home: Path, tiny_model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_hub(home, "org/tiny-GGUF", "tiny-Q8_0.gguf", tiny_model)
    monkeypatch.setenv("PYFLASH_MODEL", "org/tiny-GGUF")
    assert not re.search("warning +PYFLASH_MODEL|problem +PYFLASH_MODEL", run("doctor").stdout)
    assert run("run", "hello", "-n", "1", "--verbose").code == 0
    monkeypatch.setenv("PYFLASH_MODEL", "org/tinny-GGUF")
    told = run("doctor")
    assert told.code == 1 and "PYFLASH_MODEL" in told.stderr and "org/tiny-GGUF" in told.stderr


def test_list(home: Path, tiny_model: Path, shards: list[Path], run: Run) -> None:
    put_in_hub(home, "org/one", "one-Q8_0.gguf", tiny_model)
    for shard in shards:
        put_in_hub(home, "org/two", shard.name, shard)
    put_in_hub(home, "org/half", shards[0].name, shards[0])
    put_in_hub(home, "org/broken", "x-Q8_0.gguf", tiny_model.read_bytes()[:5000])
    put_in_hub(home, "org/broken", "\x1b[2J.gguf", b"no GGUF")
    put_in_hub(home, "org/llama", "x.gguf", other_model())
    put_in_lmstudio(home / ".lmstudio" / "models", "org/one", "one-Q8_0.gguf", tiny_model)
    put_in_ollama(home / ".ollama" / "models", "registry.ollama.ai/library/flash/latest", tiny_model)
    put_in_ollama(home / ".ollama" / "models", "registry.ollama.ai/library/llama/latest", other_model())
    found = run("list", "--json").json()
    names = {each["name"]: each for each in found["models"]}
    assert list(names) == ["org/one:Q8_0", "org/two:m", "lmstudio:org/one:Q8_0", "ollama:flash"]
    for name, each in names.items():
        assert str(find_model(name)) == each["path"] == each["files"][0]
        assert each["bytes"] == sum(os.path.getsize(path) for path in each["files"]) and each["bytes_by_type"]
    assert len(names["org/two:m"]["files"]) == len(shards)
    assert found["other_architectures"] == {"llama": 2}
    problems = "\n".join(found["problems"])
    assert "org/half:m lacks" in problems and problems.count("org/broken") >= 2
    ran = run("list")
    assert ran.code == 0 and ran.stdout.splitlines()[0].split() == ["name", "types", "size", "path"]
    assert len(ran.stdout.splitlines()) == 5 and COMMIT in ran.stdout
    assert "2 files of other architectures: llama 2" in ran.stderr and "\x1b" not in ran.stderr


def test_list_of_nothing(home: Path, run: Run) -> None:
    ran = run("list")
    assert ran.code == 0 and not ran.stdout and "pyflash pull" in ran.stderr
    assert run("list", "--json").json()["models"] == []


def test_a_closed_store(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, real = home / ".ollama" / "models", os.listdir

    def listdir(path: Path) -> list[str]:
        if path == closed:
            raise PermissionError
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert any(str(closed) in line and "closed to you" in line for line in list_models().problems)
    with pytest.raises(FileError, match="closed to you"):
        find_model("ollama:x")


# -- names as what is quantised --


def test_quantize_takes_names(home: Path, converted: Callable[..., Path]) -> None:
    file = converted()
    in_lmstudio = put_in_lmstudio(home / ".lmstudio" / "models", "us/Flash-GGUF", "Flash-MXFP4.gguf", file)
    blob = put_in_ollama(home / ".ollama" / "models", "registry.ollama.ai/library/flash/latest", file)
    for name, path in {"us/Flash-GGUF:MXFP4": in_lmstudio, "us/Flash-GGUF": in_lmstudio, "ollama:flash": blob}.items():
        assert os.path.samefile(plan_quantization(name, QuantizeOptions()).source.path, path)
    with pytest.raises(ConvertError, match="neither a file nor a model in a local store"):
        plan_quantization("ollama:other", QuantizeOptions())
    with pytest.raises(ConvertError, match="hf download"):
        plan_quantization("us/none", QuantizeOptions())
