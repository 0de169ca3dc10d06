"""Prompts written with the tokens that a session already has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pyflash
import pytest

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def session(tiny_model: Path) -> Iterator[pyflash.Session]:
    with pyflash.Model.open(tiny_model) as model, model.session(context=600) as session:
        yield session


def start(session: pyflash.Session, tokens: list[int]) -> None:
    session.rollback(session.position)
    session.eval(tokens)


def in_single_bytes(session: pyflash.Session, text: str) -> list[int]:
    """The longest of all spellings."""
    tokenizer = session.model.tokenizer
    by_bytes = {tokenizer.decode_bytes([token]): token for token in range(1024)}
    return [by_bytes[bytes([byte])] for byte in text.encode()]


def test_other_spellings_of_the_same_text_are_kept(session: pyflash.Session) -> None:
    tokenizer = session.model.tokenizer
    text = "The weather is fine today, isn't it? Ünïcode too: 你好."
    spelled, canonical = in_single_bytes(session, text), tokenizer.encode(text)
    assert len(spelled) > len(canonical)
    eos = session.model.info.eos_token
    start(session, [0, *spelled, eos])
    assert session.align([0, *canonical, eos, *canonical]) == [0, *spelled, eos, *canonical]
    assert session.reuse(session.align([0, *canonical, eos, *canonical])) == session.position == len(spelled) + 2


def test_a_text_that_goes_on_differently_keeps_what_both_share(session: pyflash.Session) -> None:
    tokenizer = session.model.tokenizer
    spelled = in_single_bytes(session, "one two three")
    start(session, [0, *spelled])
    aligned = session.align([0, *tokenizer.encode("one two four")])
    assert tokenizer.decode(aligned) == "one two four"
    assert aligned[: len("one two") + 1] == [0, *spelled[: len("one two")]]


@pytest.mark.parametrize(
    ("known", "n_kept"),
    [
        ("t h e", 3), ("t h", 2), ("t", 1), ("t h e EOS", 4), ("t h e EOS more", 4), ("t h e n", 3), ("", 0),
        ("t h y", 0), ("t h EOS e", 0), ("EOS", 0),
    ],
)  # fmt: skip
def test_known_tokens_stand_for_the_same_text(session: pyflash.Session, known: str, n_kept: int) -> None:
    """Also where they end within it, as an answer does whose last token has not been evaluated."""
    tokenizer, eos = session.model.tokenizer, session.model.info.eos_token
    ids = [eos if word == "EOS" else tokenizer.encode(word)[0] for word in known.split()]
    canonical = [0, *tokenizer.encode("the"), eos]
    assert len(canonical) == 3
    start(session, [0, *ids])
    aligned = session.align(canonical)
    assert tokenizer.decode(aligned, special=True) == tokenizer.decode(canonical, special=True)
    assert aligned[: n_kept + 1] == [0, *ids[:n_kept]] and session.reuse(aligned) == min(n_kept + 1, len(aligned) - 1)
    assert n_kept > 0 or aligned == canonical


def test_the_rest_of_a_token_that_does_not_fit_is_left(session: pyflash.Session) -> None:
    """No more tokens come out than went in and are known."""
    tokenizer = session.model.tokenizer
    longest = max(range(3, 1000), key=lambda token: len(tokenizer.decode_bytes([token])))
    data = tokenizer.decode_bytes([longest])
    start(session, in_single_bytes(session, data[:1].decode()))
    aligned = session.align([longest])
    assert tokenizer.decode_bytes(aligned) == data and len(aligned) <= 2


@pytest.mark.parametrize("data", [
    b"\x80", b"a\xe4\xbd", b"\xe4\xbdx", b"\xe4\xe4\xbd\xa0", b"\xf0\x9f\x98 ok", b"\xf0\x80", b"\xed\xa0\x80", b"\xc0\xaf",
    b"\xef\xbf", b"\xef\xbfz", b"\xef\xbf\xbd", b"\xff\xfe", b"\xf4\x90\x80\x80", "�é�".encode(),
], ids=repr)  # fmt: skip
def test_bytes_that_are_no_text_count_as_what_decoding_makes_of_them(session: pyflash.Session, data: bytes) -> None:
    """An answer of such bytes is remembered with U+FFFD, and still known."""
    tokenizer, eos = session.model.tokenizer, session.model.info.eos_token
    by_bytes = {tokenizer.decode_bytes([token]): token for token in range(1024)}
    known = [0, *(by_bytes[bytes([byte])] for byte in data), eos]
    start(session, known)
    text = data.decode("utf-8", "replace")
    assert session.align([0, *tokenizer.encode(text), eos, 5]) == [*known, 5]
    other = [0, *tokenizer.encode(text.replace("\ufffd", "?") + "!"), eos]
    assert tokenizer.decode(session.align(other)) == tokenizer.decode(other)


def test_special_tokens_equal_only_themselves(session: pyflash.Session) -> None:
    tokenizer = session.model.tokenizer
    marker = pyflash.chat.THINK_END
    special = tokenizer.encode(marker, special=True)
    text = tokenizer.encode(marker)
    assert len(special) == 1 < len(text)
    start(session, [0, *text])
    assert session.align([0, *special]) == [0, *special]
    start(session, [0, *special])
    assert session.align([0, *text]) == [0, *text]


@pytest.mark.parametrize("seed", range(20))
def test_the_text_never_changes(session: pyflash.Session, seed: int) -> None:
    rng = random.Random(seed)
    n_vocab = session.model.info.n_vocab
    decode = session.model.tokenizer.decode_bytes
    known = [rng.randrange(n_vocab) for _ in range(rng.randint(1, 60))]
    start(session, known)
    text = decode(known).decode("utf-8", "ignore")
    wanted = session.model.tokenizer.encode(text[: rng.randint(0, len(text))] + rng.choice(["", "x", " and more"]))
    for prompt in (wanted, known[: rng.randint(1, len(known))] + wanted, known, [*known, 5]):
        aligned = session.align(prompt)
        assert decode(aligned, special=True) == decode(prompt, special=True)
        common = next((i for i, (a, b) in enumerate(zip(prompt, known)) if a != b), min(len(prompt), len(known)))
        assert aligned[:common] == known[:common]
    assert session.align(known) == known and session.align([]) == []
