"""The tokenizer by itself: any bytes, special tokens, small buffers, threads, and damaged files."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .conftest import ARGUMENT, FORMAT, UNSUPPORTED, USER_DEFINED, Native, NativeError, Spec, Tokenizer

pytestmark = pytest.mark.quick

OpenSpec = Callable[[Spec], Tokenizer]

ILL_FORMED = [
    b"\x80", b"\xff", b"\xc0\xaf", b"\xc1\xbf", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
    b"\xf8\x88\x80\x80\x80", b"\xc3", b"a\xc3", b"\xc3 ", b"\xe4\xb8", b"\xe4\xb8\xad\xe4\xb8", b"\xf0\x9f\x98",
    b"\xf0\x9f\x98 x", b"\x00\xfe\x00", b"12\xb2", b" \xa0 \x85", b"\xef\xbd", b"<\xef\xbd\x9cUser\xef\xbd", b"",
]


def random_bytes(rng: random.Random) -> bytes:
    """Noise, or UTF-8 text with some bytes changed or taken out."""
    if rng.random() < 0.5:
        return rng.randbytes(rng.randint(0, 40))
    data = bytearray("".join(rng.choices("aé中😀 \n1,｜<>", k=rng.randint(1, 30))).encode())
    for _ in range(rng.randint(1, 3)):
        if data:
            at = rng.randrange(len(data))
            data[at:at + 1] = rng.choice((b"", bytes([rng.randrange(256)])))
    return bytes(data)


@pytest.mark.parametrize("data", ILL_FORMED)
def test_ill_formed_utf8_survives(deepseek: Tokenizer, data: bytes) -> None:
    for special in (False, True):
        assert deepseek.decode(deepseek.encode(data, special), special) == data


def test_random_bytes_survive(deepseek: Tokenizer) -> None:
    rng = random.Random(7)
    for _ in range(30_000):
        data = random_bytes(rng)
        special = rng.random() < 0.5
        assert deepseek.decode(deepseek.encode(data, special), special) == data, data


def test_well_formed_text_around_ill_formed_bytes_is_cut_as_usual(deepseek: Tokenizer) -> None:
    """A bad byte stands like a character without a class, so whole lines around it are encoded as without it."""
    left, right = "The quick brown fox.\n", "\n汉字 and 1234 numbers"
    middle = deepseek.encode(b"\xff\xfe")
    assert deepseek.encode(left.encode() + b"\xff\xfe" + right.encode()) == [
        *deepseek.encode(left), *middle, *deepseek.encode(right)]


def test_special_tokens_only_when_asked(open_spec: OpenSpec, small_spec: Spec) -> None:
    tokenizer = open_spec(small_spec)
    text = "ab<tag>abc<｜end｜>"
    assert tokenizer.encode(text, special=True) == [256, 259, 257, 258]
    plain = tokenizer.encode(text)
    assert plain[0] == 256 and max(plain) < 258
    assert tokenizer.decode(plain) == text.encode()
    assert tokenizer.decode([256, 259, 257, 258], special=True) == text.encode()


def test_user_defined_tokens_are_text(open_spec: OpenSpec, small_spec: Spec, deepseek: Tokenizer) -> None:
    """They are written always; control tokens only when asked for."""
    assert open_spec(small_spec).decode([256, 259, 257, 258]) == b"ab<tag>abc"
    for text in ("<think>", "</think>", "｜DSML｜", "<dsml:", "</dsml:"):
        assert deepseek.decode([deepseek.token_id(text)]).decode() == text
    for text in ("<｜User｜>", "<｜end▁of▁sentence｜>", "<｜action｜>", "<｜place▁holder▁no▁0｜>"):
        assert deepseek.decode([deepseek.token_id(text)]) == b""


def test_longest_special_token_that_starts_first(open_spec: OpenSpec, small_spec: Spec) -> None:
    extra = ["<x", "<xy", "<xyz>", "y<", "b<x"]  # ids from 261
    assert small_spec.tokens is not None and small_spec.types is not None
    tokenizer = open_spec(small_spec.but(tokens=[*small_spec.tokens, *extra],
                                         types=[*small_spec.types, *[USER_DEFINED] * len(extra)]))
    for text, expected in {"<x": [261], "<xy": [262], "<xyz": [262, ord("z")], "<xyz>": [263], "<xy<x": [262, 261],
                           "y<xy": [264, ord("x"), ord("y")], "ab<xyz>": [ord("a"), 265, ord("y"), ord("z"), ord(">")],
                           "<": [ord("<")], "<tag": [ord(c) for c in "<tag"]}.items():
        assert tokenizer.encode(text, special=True) == expected, text  # a byte's id is its value


def test_unused_tokens_never_appear(open_spec: OpenSpec, small_spec: Spec) -> None:
    tokenizer = open_spec(small_spec)
    assert 260 not in tokenizer.encode("[PAD]", special=True)
    assert tokenizer.decode([260]) == b""


def test_token_id(deepseek: Tokenizer) -> None:
    assert deepseek.token_id("<think>") == 128821
    assert deepseek.encode(" the") == [deepseek.token_id(" the")]
    assert deepseek.token_id(b"\xff") >= 0
    assert deepseek.token_id("") == -1
    assert deepseek.token_id("no such token is in there") == -1
    lib = deepseek.native.lib
    assert (lib.pf_tokenizer_bos(deepseek.handle), lib.pf_tokenizer_eos(deepseek.handle)) == (0, 1)
    assert lib.pf_tokenizer_n_tokens(deepseek.handle) == 129280


def test_every_token_decodes_to_the_text_that_names_it(deepseek: Tokenizer) -> None:
    for id_ in range(0, 129280, 7):
        assert deepseek.token_id(deepseek.decode([id_], special=True)) == id_


def test_small_buffers(open_spec: OpenSpec, small_spec: Spec, native: Native) -> None:
    tokenizer = open_spec(small_spec)
    ffi = native.ffi
    n = ffi.new("int64_t *")
    tokens = ffi.new("int32_t[4]", [-5] * 4)
    native.call("pf_tokenizer_encode", tokenizer.handle, b"abcxyz", 6, 0, tokens, 2, n)
    assert n[0] == 4 and list(tokens) == [257, tokenizer.token_id("x"), -5, -5]
    native.call("pf_tokenizer_encode", tokenizer.handle, b"abcxyz", 6, 0, ffi.NULL, 0, n)
    assert n[0] == 4
    native.call("pf_tokenizer_encode", tokenizer.handle, ffi.NULL, 0, 0, ffi.NULL, 0, n)
    assert n[0] == 0

    length = ffi.new("size_t *")
    out = ffi.new("char[8]", b"????????")
    native.call("pf_tokenizer_decode", tokenizer.handle, ffi.new("int32_t[]", [257, 257]), 2, 0, out, 4, length)
    assert length[0] == 6 and bytes(ffi.buffer(out)) == b"abca????"


def test_bad_arguments_change_nothing(open_spec: OpenSpec, small_spec: Spec, native: Native) -> None:
    tokenizer = open_spec(small_spec)
    ffi = native.ffi
    n = ffi.new("int64_t *", -9)
    length = ffi.new("size_t *", 77)
    tokens = ffi.new("int32_t[2]", [257, 261])
    out = ffi.new("char[8]", b"????????")
    calls = [("pf_tokenizer_encode", b"a", 1, 2, tokens, 2, n), ("pf_tokenizer_encode", ffi.NULL, 1, 0, tokens, 2, n),
             ("pf_tokenizer_encode", b"a", 1, 0, ffi.NULL, 2, n), ("pf_tokenizer_encode", b"a", 1, 0, tokens, -1, n),
             ("pf_tokenizer_encode", b"a", 2**31, 0, tokens, 2, n),
             ("pf_tokenizer_decode", tokens, 2, 0, out, 8, length),
             ("pf_tokenizer_decode", tokens, 1, 2, out, 8, length),
             ("pf_tokenizer_decode", ffi.new("int32_t[]", [-1]), 1, 0, out, 8, length),
             ("pf_tokenizer_decode", ffi.NULL, 1, 0, out, 8, length)]
    for function, *arguments in calls:
        with pytest.raises(NativeError) as caught:
            native.call(function, tokenizer.handle, *arguments)
        assert caught.value.code == ARGUMENT
    assert n[0] == -9 and length[0] == 77 and list(tokens) == [257, 261] and bytes(ffi.buffer(out)) == b"????????"
    assert "261" in _message(native, tokenizer, tokens, out, length)


def _message(native: Native, tokenizer: Tokenizer, tokens: object, out: object, length: object) -> str:
    with pytest.raises(NativeError) as caught:
        native.call("pf_tokenizer_decode", tokenizer.handle, tokens, 2, 0, out, 8, length)
    return caught.value.message


def test_threads_share_a_tokenizer(deepseek: Tokenizer) -> None:
    rng = random.Random(11)
    words = [deepseek.decode([rng.randrange(3, 128000)]) for _ in range(3000)]
    texts = [b"".join(rng.choices(words, k=200)) for _ in range(64)]
    with ThreadPoolExecutor(4) as pool:  # cffi releases the interpreter's lock
        together = list(pool.map(deepseek.encode, texts))
    assert together == [deepseek.encode(text) for text in texts]
    assert all(deepseek.decode(ids) == text for ids, text in zip(together, texts, strict=True))


@pytest.mark.parametrize("model", [None, "none", "no_vocab"])
def test_no_tokenizer(open_spec: OpenSpec, model: str | None) -> None:
    assert not open_spec(Spec(None, None, None, model=model, pre=None)).present


def _without(items: Iterable[Any] | None, index: int) -> list[Any]:
    result = list(items or ())
    del result[index]
    return result


def _with(items: Iterable[Any] | None, index: int, value: object) -> list[Any]:
    result = list(items or ())
    result[index] = value
    return result


DAMAGES: dict[str, tuple[Callable[[Spec], Spec], int, str]] = {
    "model missing": (lambda s: s.but(model=None), FORMAT, "tokenizer.ggml.model is missing"),
    "model": (lambda s: s.but(model="llama"), UNSUPPORTED, '"llama"'),
    "pre missing": (lambda s: s.but(pre=None), FORMAT, "tokenizer.ggml.pre is missing"),
    "pre": (lambda s: s.but(pre="gpt-2"), UNSUPPORTED, '"gpt-2"'),
    "no tokens": (lambda s: s.but(tokens=None), FORMAT, "tokenizer.ggml.tokens is missing"),
    "no types": (lambda s: s.but(types=None), FORMAT, "tokenizer.ggml.token_type is missing"),
    "no merges": (lambda s: s.but(merges=None), FORMAT, "tokenizer.ggml.merges is missing"),
    "types too short": (lambda s: s.but(types=_without(s.types, 5)), FORMAT, "261 tokens, but 260 entries"),
    "unknown type": (lambda s: s.but(types=_with(s.types, 7, 2)), FORMAT, "token 7 has type 2"),
    "empty token": (lambda s: s.but(tokens=_with(s.tokens, 258, "")), FORMAT, "token 258 is empty"),
    "repeated token": (lambda s: s.but(tokens=_with(s.tokens, 259, "<｜end｜>")), FORMAT, "token 259 repeats token 258"),
    "outside the alphabet": (lambda s: s.but(tokens=_with(s.tokens, 257, "a b")), FORMAT, "token 257 is not written"),
    "ill-formed UTF-8": (lambda s: s.but(tokens=_with(s.tokens, 257, b"\xc4")), FORMAT, "token 257 is not written"),
    "byte missing": (lambda s: s.but(types=_with(s.types, 65, USER_DEFINED)), FORMAT, "byte 0x41"),
    "merge of one": (lambda s: s.but(merges=["ab"]), FORMAT, "merge 0 is not two tokens"),
    "merge of three": (lambda s: s.but(merges=["a b", "a b c"]), FORMAT, "merge 1 is not two tokens"),
    "empty merge": (lambda s: s.but(merges=["a b", ""]), FORMAT, "merge 1 is not two tokens"),
    "merge of nothing": (lambda s: s.but(merges=[" b"]), FORMAT, "merge 0 is not two tokens"),
    "merge of unknown": (lambda s: s.but(merges=["a b", "ab cd"]), FORMAT, "merge 1 names or makes"),
    "merge to unknown": (lambda s: s.but(merges=["a b", "x y"]), FORMAT, "merge 1 names or makes"),
    "merge to special": (lambda s: s.but(merges=["a b", "<tag >"]), FORMAT, "merge 1 names or makes"),
    "repeated merge": (lambda s: s.but(merges=["a b", "ab c", "a b"]), FORMAT, "merge 2 repeats merge 0"),
    "bos": (lambda s: s.but(bos=261), FORMAT, "bos_token_id"),
    "eos": (lambda s: s.but(eos=2**32 - 1), FORMAT, "eos_token_id"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(open_spec: OpenSpec, small_spec: Spec, damage: str) -> None:
    change, code, message = DAMAGES[damage]
    with pytest.raises(NativeError) as caught:
        open_spec(change(small_spec))
    assert caught.value.code == code
    assert message in caught.value.message
