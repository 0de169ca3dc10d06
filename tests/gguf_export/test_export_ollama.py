"""export ollama: the Modelfile, its template in Go's own engine, and what is refused."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyflash
import pytest
from chats import EFFORTS, text
from gguf import GGUFWriter
from ran import Ran

from gguf_export.chat_template import chat_template
from gguf_export.convert import ConvertOptions, convert
from gguf_export.errors import ConvertError
from gguf_export.ollama import export_ollama, go_template
from gguf_export.reader import read_gguf

Convert = Callable[..., Path]
Run = Callable[..., Ran]


def parsed(modelfile: Path) -> list[tuple[str, str]]:
    """Instructions and arguments: a line each, or up to the second of two triple quotes. Comments begin lines."""
    found = []
    rest = modelfile.read_text(encoding="utf-8")
    while rest:
        line, _, after = rest.partition("\n")
        instruction, _, argument = line.partition(" ")
        if line and not line.startswith("#"):
            assert re.fullmatch("[A-Z]+", instruction), line
            if argument.startswith('"""'):
                argument, _, after = rest.partition(' """')[2].partition('"""')
                assert after.startswith("\n")
            elif argument.startswith('"'):
                assert argument.endswith('"')
                argument = argument[1:-1]
            found.append((instruction, argument))
        rest = after
    return found


def arguments(modelfile: Path, instruction: str) -> list[str]:
    return [argument for name, argument in parsed(modelfile) if name == instruction]


def resolved(modelfile: Path) -> list[Path]:
    """Where FROM leads: absolute, or from the Modelfile's folder."""
    return [Path(os.path.join(modelfile.parent, path)) for path in arguments(modelfile, "FROM")]


def test_modelfile(tmp_path: Path, tiny_model: Path, run: Run) -> None:
    ran = run("export", "ollama", tiny_model, tmp_path / "new" / "folder with blanks")
    assert ran.code == 0
    modelfile = tmp_path / "new" / "folder with blanks" / "Modelfile"
    assert os.listdir(modelfile.parent) == ["Modelfile"]
    assert "Modelfile" in ran.stderr
    assert [shlex.split(line) for line in ran.stdout.splitlines()] == [
        ["ollama", "create", "tiny-random-weights", "-f", str(modelfile)], ["ollama", "run", "tiny-random-weights"],
    ]  # fmt: skip
    assert arguments(modelfile, "FROM") == [str(tiny_model)]
    assert arguments(modelfile, "TEMPLATE") == [go_template("preview")]
    values = dict(argument.split(" ", 1) for argument in arguments(modelfile, "PARAMETER"))
    assert (float(values["temperature"]), float(values["top_p"]), int(values["top_k"])) == (1, 1, 0)
    stops = [argument for argument in arguments(modelfile, "PARAMETER") if argument.startswith("stop ")]
    assert stops == ['stop "<｜end▁of▁sentence｜>"', 'stop "<｜User｜>"']
    assert "num_ctx" not in values and "num_ctx" in modelfile.read_text(encoding="utf-8")
    assert {name for name, _ in parsed(modelfile)} == {"FROM", "TEMPLATE", "PARAMETER"}  # no licence in this file


def test_template_stays_within_what_ollama_reads() -> None:
    """Its parser keeps printable characters and line breaks, and ends the text at three quotes. Without tools in it,
    Ollama prefers the file's own template, which has them."""
    for release in EFFORTS:
        template = go_template(release)
        assert '"""' not in template and ".Tools" not in template
        assert all(character.isprintable() or character == "\n" for character in template)
        assert "tools" in chat_template(release)


@pytest.mark.parametrize("place", ["link", "copy"])
def test_shards_beside_the_modelfile(tmp_path: Path, converted: Convert, run: Run, place: str) -> None:
    first = converted(shard_bytes=100_000)
    shards = sorted(first.parent.glob("*.gguf"))
    assert len(shards) > 2
    dest = tmp_path / "out"
    done = run("export", "ollama", first, dest, f"--{place}", "--name", "me/tiny:v1", "--json").json()
    assert done["placed"] == {"link": "hard link", "copy": "copy"}[place]
    assert done["commands"][1] == "ollama run me/tiny:v1"
    modelfile = dest / "Modelfile"
    assert arguments(modelfile, "FROM") == [f"./{path.name}" for path in shards]
    for path, shard in zip(resolved(modelfile), shards, strict=True):
        assert path.read_bytes() == shard.read_bytes()
        assert os.path.samefile(path, shard) == (place == "link")
    moved = dest.rename(tmp_path / "moved")
    assert read_gguf(moved / shards[0].name).tensors.keys() == read_gguf(first).tensors.keys()


def test_shards_where_they_are(tmp_path: Path, converted: Convert) -> None:
    first = converted(shard_bytes=100_000)
    done = export_ollama(first, tmp_path)
    assert resolved(done.modelfile) == done.model_files == sorted(first.parent.glob("*.gguf"))
    with pytest.raises(ConvertError, match="give the first one"):
        export_ollama(done.model_files[1], tmp_path, force=True)


def test_relative_paths(tmp_path: Path, tiny_model: Path, run: Run) -> None:
    """Ollama would look for a relative FROM beside the Modelfile, not where the command ran."""
    shutil.copy(tiny_model, tmp_path / "model.gguf")
    assert run("export", "ollama", "model.gguf", "out", cwd=tmp_path).code == 0
    assert resolved(tmp_path / "out" / "Modelfile") == [tmp_path / "model.gguf"]


def test_nothing_is_replaced_unasked(tmp_path: Path, tiny_model: Path, run: Run) -> None:
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text("mine")
    ran = run("export", "ollama", tiny_model, tmp_path)
    assert ran.code == 1 and "--force" in ran.stderr and modelfile.read_text() == "mine"
    assert run("export", "ollama", tiny_model, tmp_path, "--force").code == 0
    assert resolved(modelfile) == [tiny_model]
    (tmp_path / "model.gguf").write_text("mine too")
    shutil.copy(tiny_model, tmp_path / "source.gguf")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ConvertError, match="the file to export itself"):
        export_ollama(tmp_path / "source.gguf", tmp_path, place="link", force=True)
    source = Path(shutil.copy(tiny_model, tmp_path / "out.gguf"))
    os.makedirs(tmp_path / "own")
    source.rename(tmp_path / "own" / "Modelfile")
    with pytest.raises(ConvertError, match="the file to export itself"):
        export_ollama(tmp_path / "own" / "Modelfile", tmp_path / "own", force=True)
    assert (tmp_path / "own" / "Modelfile").stat().st_size == tiny_model.stat().st_size
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "own"])


def test_refusals(tmp_path: Path, converted: Convert, tiny_checkpoint: Path, run: Run) -> None:
    other = tmp_path / "other.gguf"
    writer = GGUFWriter(other, arch="llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (tmp_path / "text.gguf").write_text("no model")
    main = converted(mtp=True)
    bare = Path(shutil.copytree(tiny_checkpoint, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    convert(bare, tmp_path / "bare.gguf", ConvertOptions())
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(main.read_bytes()[:-1000])
    for source, reason in (
        (converted(profile="native"), 'profile="compat"'),
        (main.with_name("mtp-tiny.gguf"), "MTP file"),
        (other, "architecture 'llama'"),
        (tmp_path / "text.gguf", "no GGUF file"),
        (tmp_path / "bare.gguf", "has no tokenizer"),
        (tmp_path / "absent.gguf", "No such file"),
        (cut, "truncated"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(ConvertError, match=reason):
            export_ollama(source, tmp_path / "new")
    ran = run("export", "ollama", converted(profile="native"), tmp_path / "new")
    assert ran.code == 1 and "--profile compat" in ran.stderr
    for name in ("", "a b", "../x", "x:", "-x", "a/b/c/d"):
        with pytest.raises(ConvertError, match="no name for Ollama"):
            export_ollama(main, tmp_path / "new", name=name)
    if hasattr(os, "mkfifo"):  # opened, it would wait for ever
        os.mkfifo(tmp_path / "pipe.gguf")
        with pytest.raises(ConvertError, match="not a regular file"):
            export_ollama(tmp_path / "pipe.gguf", tmp_path / "new")
    (tmp_path / "blocked").write_text("a file")
    for dest in (tmp_path / "blocked", tmp_path / "blocked" / "below"):
        with pytest.raises(ConvertError, match="blocked"):
            export_ollama(main, dest)
    assert not (tmp_path / "new").exists()


def test_paths_that_ollama_cannot_read(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "line\nbreak"
    folder.mkdir()
    source = Path(shutil.copy(tiny_model, folder / "model.gguf"))
    with pytest.raises(ConvertError, match="place='link'"):
        export_ollama(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    done = export_ollama(source, tmp_path / "new", place="link")
    assert arguments(done.modelfile, "FROM") == ["./model.gguf"]


# The template in Go.


@pytest.fixture(scope="module")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("go"):
        pytest.skip("the Modelfile's template is Go's: install go (1.18 or newer) to run these tests")
    folder = tmp_path_factory.mktemp("go")
    settings = {"GO111MODULE": "off", "CGO_ENABLED": "0", "GOCACHE": str(folder / "cache"), "GOFLAGS": ""}
    source = Path(__file__).with_name("ollama_render.go")
    command = ["go", "build", "-o", folder / "ollama_render", source]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "ollama_render"


def in_go(program: Path, chats: list[dict[str, Any]]) -> dict[str, Any]:
    request = {"templates": {release: go_template(release) for release in EFFORTS}, "chats": chats}
    done = subprocess.run([program], input=json.dumps(request), capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    reply: dict[str, Any] = json.loads(done.stdout)
    return reply


def conversation(rng: random.Random) -> list[dict[str, Any]]:
    """Any order of roles but neighbours that Ollama joins and the encoder does not."""
    messages: list[dict[str, Any]] = []
    for _ in range(rng.randint(1, 8)):
        last = messages[-1]["role"] if messages else None
        role = rng.choice([role for role in ("system", "user", "user", "assistant", "tool")
                           if role != last or role in ("user", "tool")])  # fmt: skip
        message = {"role": role, "content": text(rng)}
        if role == "assistant" and rng.random() < 0.7:
            message["reasoning_content"] = text(rng)
        messages.append(message)
    return messages


def test_go_template_is_the_encoding(go_program: Path) -> None:
    rng = random.Random(3)
    chats, expected = [], []
    for _ in range(800):
        messages = conversation(rng)
        release = rng.choice(list(EFFORTS))
        think = rng.choice([True, True, False, None])
        effort = rng.choice(EFFORTS[release])
        given = [
            {"Role": entry["role"], "Content": entry["content"], "Thinking": entry.get("reasoning_content", "")}
            for entry in messages
        ]
        chats.append({"template": release, "messages": given, "think": think, "level": effort or ""})
        if messages[-1]["role"] == "assistant":
            messages[-1]["wo_eos"] = True  # Ollama lets the model go on with the last message
        expected.append(pyflash.chat.encode(messages, thinking=bool(think), effort=effort, release=release))
    reply = in_go(go_program, chats)
    for chat, prompt, expected_prompt in zip(chats, reply["texts"], expected, strict=True):
        assert prompt == expected_prompt, chat


def test_ollama_finds_the_marks_around_reasoning(go_program: Path) -> None:
    """From the template; without them it shows no thinking and offers no switch for it."""
    assert in_go(go_program, [])["tags"] == {release: ["<think>", "</think>"] for release in EFFORTS}


def test_levels_between(go_program: Path) -> None:
    """Ollama's "medium", and "low" for the preview, are plain thinking."""
    chats = [
        {"template": release, "messages": [{"Role": "user", "Content": "x"}], "think": True, "level": level}
        for release in EFFORTS for level in ("low", "medium")
    ]  # fmt: skip
    plain = pyflash.chat.encode([{"role": "user", "content": "x"}], thinking=True)
    assert in_go(go_program, chats)["texts"] == [plain] * len(chats)
