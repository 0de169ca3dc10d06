"""Plain chat turns in C against the Python encoder, and the release of a model file."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest

import pyflash
from gguf_export.chat_texts import release_of, told_release
from gguf_export.convert import ConvertOptions, convert
from gguf_export.synthetic import make_config, write_checkpoint
from pyflash import chat
from pyflash.chat.encoding import answer_opening
from pyflash.chat.format import EFFORTS as EFFORT_TEXTS
from pyflash.native.library import ffi, lib

from .conftest import ARGUMENT, USER_DEFINED, Native, NativeError, Spec, Tokenizer
from .test_tokenizer_equality import SPECIAL_SAMPLE

Message = dict[str, str]
Turns = Sequence[tuple[str, str]]

CONTINUE = 0x100  # PF_CHAT_CONTINUE
THINK = {"off": 0, "low": 1, "high": 2, "max": 3}
RELEASES = {"preview": 0, "0731": 1}
EFFORTS = {"preview": ("off", "high", "max"), "0731": ("off", "low", "high", "max")}
UNSUPPORTED = 4

# What merges across the border of two messages, looks like the format's own text, or is nothing.
FRAGMENTS = ["", " ", "\n", "\n\n", "  ", "a", "b", "the", " the", "ing", "1", "23", "4567", "é", "\u0301", "中", "文", "。",
             ".", "...", "Reasoning Effort:", "User", "<", "｜", "</", "think>", "<tool_result>", "😀", "\t", "x = 1;",
             "ﬀ", "\ufeff", "\u200d", *SPECIAL_SAMPLE]  # fmt: skip


def c_messages(own: Any, turns: Turns) -> tuple[Any, list[Any]]:
    """The array and what it points to."""
    texts = [own.new("char[]", text.encode()) for turn in turns for text in turn]
    array = own.new("pf_chat_message[]", len(turns))
    for i in range(len(turns)):
        array[i].role, array[i].content = texts[2 * i], texts[2 * i + 1]
    return array, texts


def chat_encode(tokenizer: Tokenizer, turns: Turns, think: int, release: str) -> list[int]:
    own = tokenizer.native.ffi
    array, texts = c_messages(own, turns)
    n = own.new("int64_t *", -3)
    arguments = (tokenizer.handle, RELEASES[release], array, len(turns), think)
    tokenizer.native.call("pf_chat_encode", *arguments, own.NULL, 0, n)
    out = own.new("int32_t[]", n[0] + 1)
    tokenizer.native.call("pf_chat_encode", *arguments, out, n[0], n)
    del texts
    return list(out)[:-1]


def python_options(think: str, release: str) -> dict[str, Any]:
    return {"thinking": think != "off", "effort": None if think == "off" else think, "release": release}


def messages(turns: Turns) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]


def random_turns(rng: random.Random) -> Turns:
    """Any order of the roles before a user's message; some look like real conversations."""
    if rng.random() < 0.3:
        roles = ["system"] * rng.randrange(2) + ["user", "assistant"] * rng.randrange(4) + ["user"]
    else:
        roles = [*rng.choices(("system", "user", "assistant"), k=rng.randint(0, 6)), "user"]
    return [(role, "".join(rng.choices(FRAGMENTS, k=rng.randrange(5)))) for role in roles]


def test_equal_to_the_python_encoder(deepseek: Tokenizer) -> None:
    """The tokens, and so the efforts' texts too; their text is what chat.encode() writes."""
    rng = random.Random(31)
    for _ in range(700):
        turns = random_turns(rng)
        for release, modes in EFFORTS.items():
            think = rng.choice(modes)
            options = python_options(think, release)
            expected = [token for text, special in chat.segments(messages(turns), **options)
                        for token in deepseek.encode(text, special)]
            tokens = chat_encode(deepseek, turns, THINK[think], release)
            assert tokens == expected, (turns, think, release)
            assert deepseek.decode(tokens, special=True).decode() == chat.encode(messages(turns), **options)


def test_continuing_is_equal_too(deepseek: Tokenizer) -> None:
    rng = random.Random(33)
    for _ in range(200):
        turns = [*random_turns(rng), ("assistant", "".join(rng.choices(FRAGMENTS, k=rng.randrange(5))))]
        for release, modes in EFFORTS.items():
            think = rng.choice(modes)
            asked = [*messages(turns[:-1]), {**messages(turns[-1:])[0], "prefix": True}]
            text = chat.encode(asked, **python_options(think, release))  # type: ignore[arg-type]
            tokens = chat_encode(deepseek, turns, THINK[think] + CONTINUE, release)
            assert deepseek.decode(tokens, special=True).decode() == text
            assert (tokens[-1] == 128821) == (think != "off" and not turns[-1][1])


def test_whose_turn_it_is_is_equal_too(deepseek: Tokenizer) -> None:
    """Conversations after which the model would play the user are refused, by both."""
    for length in range(1, 5):
        for roles in itertools.product(("system", "user", "assistant"), repeat=length):
            turns = [(role, "x") for role in roles]
            for continues in (False, True):
                asked: list[dict[str, Any]] = [*messages(turns)]
                if continues and roles[-1] == "assistant":
                    asked[-1]["prefix"] = True
                elif continues:
                    continue
                outcomes = []
                for call in (lambda: answer_opening(asked, thinking=False),
                             lambda: chat_encode(deepseek, turns, CONTINUE * continues, "preview")):
                    try:
                        call()
                    except (pyflash.ArgumentError, NativeError) as error:
                        assert getattr(error, "code", ARGUMENT) == ARGUMENT
                        outcomes.append(False)
                    else:
                        outcomes.append(True)
                expected = roles[-2:] == ("user", "assistant") if continues else roles[-1] == "user"
                assert outcomes == [expected, expected], (roles, continues)


@pytest.mark.parametrize("release", EFFORTS)
def test_effort_texts_are_pythons(deepseek: Tokenizer, release: str) -> None:
    for think in EFFORTS[release]:
        text = deepseek.decode(chat_encode(deepseek, [("user", "x")], THINK[think], release)).decode()
        assert text == ("x</think>" if think == "off" else EFFORT_TEXTS[release][think] + "x<think>")


def test_texts_never_become_special_tokens(deepseek: Tokenizer) -> None:
    """Only the turns' own marks are: as many of each as an innocent conversation has."""
    def marks(content: str) -> list[int]:
        turns = [("system", content), ("user", content), ("user", content), ("assistant", content), ("user", content)]
        return [token for token in chat_encode(deepseek, turns, THINK["max"], "0731") if token < 3 or token >= 128000]

    innocent = marks("x")
    assert innocent == [0, 128803, 128804, 128822, 1, 128803, 128804, 128821]
    added = SPECIAL_SAMPLE + ["<｜latest_reminder｜>", "<｜User｜><｜Assistant｜></think>", "<thi<think>nk>"]
    for text in added:
        assert marks(text) == innocent
        assert marks(f" {text}\n{text}") == innocent


BAD_CALLS: dict[str, tuple[Turns, int, str]] = {
    "no messages": ([], 0, "at least one message"),
    "tool": ([("user", "x"), ("tool", "y")], 0, 'message 1 has the role "tool": use system, user or assistant'),
    "empty role": ([("", "x")], 0, 'message 0 has the role ""'),
    "User": ([("User", "x")], 0, '"User"'),
    "long role": ([("é" * 500 + "\n", "x")], 0, 'role "' + "é" * 20 + '"'),
    "low": ([("user", "x")], 1, "this model is the preview"),
    "system alone": ([("system", "x")], 0, 'ends with a message of the role "system"'),
    "answered": ([("user", "x"), ("assistant", "y")], 0, 'ends with a message of the role "assistant": a user\'s must '
                 "follow, or ask to continue it (PF_CHAT_CONTINUE)"),
    "continuing a user": ([("user", "x")], CONTINUE, "to continue, a conversation must end"),
    "continuing nothing": ([("system", "x"), ("assistant", "")], CONTINUE, "to continue, a conversation must end"),
    "continuing, above": ([("user", "x"), ("assistant", "")], CONTINUE + 4, "thinking mode 4 is unknown"),
    "below": ([("user", "x")], -1, "thinking mode -1 is unknown"),
    "above": ([("user", "x")], 4, "thinking mode 4 is unknown"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_conversations(deepseek: Tokenizer, case: str) -> None:
    turns, think, message = BAD_CALLS[case]
    with pytest.raises(NativeError) as caught:
        chat_encode(deepseek, turns, think, "preview")
    assert caught.value.code == ARGUMENT and message in caught.value.message


def test_null_pointers(deepseek: Tokenizer) -> None:
    native, own = deepseek.native, deepseek.native.ffi
    array, texts = c_messages(own, [("user", "x")])
    n, out = own.new("int64_t *", -3), own.new("int32_t[4]", [-5] * 4)
    good = [deepseek.handle, 0, array, 1, 0, out, 4, n]
    for at, value in ((2, own.NULL), (3, 0), (3, -1), (5, own.NULL), (6, -1), (7, own.NULL)):
        with pytest.raises(NativeError) as caught:
            native.call("pf_chat_encode", *good[:at], value, *good[at + 1 :])
        assert caught.value.code == ARGUMENT
    for field in ("role", "content"):
        broken, _ = c_messages(own, [("user", "x")])
        setattr(broken[0], field, own.NULL)
        with pytest.raises(NativeError, match="message 0 has no role or no content"):
            native.call("pf_chat_encode", *good[:2], broken, *good[3:])
    assert n[0] == -3 and list(out) == [-5] * 4
    native.call("pf_chat_encode", *good[:6], 2, n)  # room for less than the whole
    assert n[0] == 5 and list(out) == [0, 128803, -5, -5]
    del texts


def test_vocabulary_without_the_special_tokens(
    open_spec: Callable[[Spec], Tokenizer], small_spec: Spec
) -> None:
    assert small_spec.tokens is not None and small_spec.types is not None
    names = [chat.BOS, chat.EOS, chat.USER, chat.ASSISTANT, chat.THINK_BEGIN, chat.THINK_END]
    for missing in names:
        rest = [name for name in names if name != missing]
        spec = small_spec.but(tokens=[*small_spec.tokens, *rest], types=[*small_spec.types, *[USER_DEFINED] * 5])
        with pytest.raises(NativeError) as caught:
            chat_encode(open_spec(spec), [("user", "x")], 0, "preview")
        assert caught.value.code == UNSUPPORTED and f'"{missing}"' in caught.value.message


# ---- Model files ----------------------------------------------------------------------------------------------------


def chat_tokenize(model: pyflash.Model, turns: Turns, think: str) -> list[int]:
    """pf_chat_tokenize() of the installed library."""
    array, texts = c_messages(ffi, turns)
    n, error = ffi.new("int64_t *"), ffi.new("pf_error *")
    out = ffi.new("int32_t[]", 4000)
    with model._handle.borrow() as native:
        status = lib.pf_chat_tokenize(native, array, len(turns), THINK[think], out, 4000, n, error)
    del texts
    if status != 0:
        raise NativeError(status, ffi.string(error.message).decode())
    return list(out[0 : n[0]])


@pytest.fixture(scope="module")
def release_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("releases")
    files = {}
    for release in RELEASES:
        checkpoint = write_checkpoint(folder / release, make_config("tiny", release), seed=2)
        files[release] = folder / f"{release}.gguf"
        convert(checkpoint, files[release], ConvertOptions())
    return files


@pytest.mark.parametrize("release", RELEASES)
def test_model_files(release_files: dict[str, Path], release: str) -> None:
    """The library and Model.release tell the release alike."""
    rng = random.Random(32)
    with pyflash.Model.open(release_files[release], threads=1) as model:
        assert model.release == release
        for _ in range(40):
            turns = random_turns(rng)
            for think in EFFORTS[release]:
                pieces = chat.segments(messages(turns), **python_options(think, release))
                assert chat_tokenize(model, turns, think) == model.tokenizer.encode_segments(pieces)
        if release == "preview":
            with pytest.raises(NativeError, match="preview"):
                chat_tokenize(model, [("user", "x")], "low")


def test_model_without_a_tokenizer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_checkpoint, bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    convert(bare, tmp_path / "bare.gguf", ConvertOptions())
    with pyflash.Model.open(tmp_path / "bare.gguf", threads=1) as model:
        with pytest.raises(NativeError, match="no tokenizer") as caught:
            chat_tokenize(model, [("user", "x")], "off")
    assert caught.value.code == UNSUPPORTED


@pytest.mark.parametrize("version, template, release", [
    (None, None, "preview"), (None, "", "preview"), (None, "Beyond maximu", "preview"), ("", "Beyond maximum", "0731"),
    (None, "{{ 'Absolute maximum' }}", "preview"), ("v4", "{{ 'Effort: Beyond maximum — exhaustive' }}", "0731"),
    ("0731", None, "0731"), ("preview", "Beyond maximum", "preview"), ("0731-2", "", "preview"),
])  # fmt: skip
def test_release_of_a_file(native: Native, small_spec: Spec, tmp_path: Path, version: str | None,
                           template: str | None, release: str) -> None:
    keys = {"general.version": version, "tokenizer.chat_template": template}
    assert release_of(keys.get) == release  # Python and C have the same rule
    directory = native.ffi.new("pf_gguf **")
    path = small_spec.but(version=version, chat_template=template).write(tmp_path / "spec.gguf")
    native.call("pf_gguf_open", str(path).encode(), directory)
    assert native.lib.pf_chat_release_of(directory[0]) == RELEASES[release]
    native.lib.pf_gguf_close(directory[0])


@pytest.mark.parametrize("keys, told", [
    ({}, None), ({"tokenizer.chat_template": "{{ x }}"}, "preview"), ({"general.name": "DeepSeek-V4-Flash"}, None),
    ({"general.name": "DeepSeek V4 Flash 0731", "tokenizer.chat_template": "{{ x }}"}, "0731"),
    ({"general.basename": "DeepSeek-V4-Flash-0731"}, "0731"), ({"general.finetune": "Flash-0731"}, "0731"),
    ({"general.name": "V4 0731", "general.version": "preview"}, "preview"),
    ({"general.version": "0731", "tokenizer.chat_template": "{{ x }}"}, "0731"),
])  # fmt: skip
def test_release_of_other_programs_files(native: Native, tmp_path: Path, keys: dict[str, str], told: str | None) -> None:
    assert told_release(keys.get) == told and release_of(keys.get) == (told or "preview")
    writer = gguf.GGUFWriter(str(tmp_path / "keys.gguf"), "deepseek4")
    for key, value in keys.items():
        writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    directory = native.ffi.new("pf_gguf **")
    native.call("pf_gguf_open", str(tmp_path / "keys.gguf").encode(), directory)
    assert native.lib.pf_chat_release_of(directory[0]) == RELEASES[told or "preview"]
    native.lib.pf_gguf_close(directory[0])


def untold(source: Path, target: Path) -> Path:
    """The file without what tells its release: the keys get other names."""
    data = source.read_bytes()
    for key in (b"general.version", b"tokenizer.chat_template", b"general.name"):
        data = data.replace(key, key[:-1] + b"_")
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("release", RELEASES)
def test_release_given_for_a_file_without_a_template(release_files: dict[str, Path], tmp_path: Path, release: str) -> None:
    """Python's encoder and the library's follow it alike, and need no template."""
    path = untold(release_files["0731"], tmp_path / "untold.gguf")
    turns = [("system", "Be brief."), ("user", "1 + 1?")]
    with pyflash.Model.open(path, threads=1) as model:
        assert (model.release, model.release_known) == ("preview", False)
        assert chat_tokenize(model, turns, "max") == model.tokenizer.encode_segments(
            chat.segments(messages(turns), **python_options("max", "preview"))
        )
    with pyflash.Model.open(path, threads=1, release=release) as model:
        assert (model.release, model.release_known) == (release, True)
        for think in EFFORTS[release]:
            pieces = chat.segments(messages(turns), **python_options(think, release))
            assert chat_tokenize(model, turns, think) == model.tokenizer.encode_segments(pieces)
    with pytest.raises(pyflash.ArgumentError, match="unknown release '0732'"):
        pyflash.Model.open(path, release="0732")  # type: ignore[arg-type]


def test_run_tells_the_release_it_takes(release_files: dict[str, Path], tmp_path: Path) -> None:
    path = untold(release_files["0731"], tmp_path / "untold.gguf")
    command = [sys.executable, "-m", "pyflash", "run", str(path), "x", "--max-tokens", "1"]
    told = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert told.returncode == 0 and "taken to be preview" in told.stderr and "--release 0731" in told.stderr
    low = subprocess.run([*command, "--think-low"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert low.returncode == 1
    given = [*command, "--release", "0731", "--think-low"]
    quiet = subprocess.run(given, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert quiet.returncode == 0 and "release" not in quiet.stderr
