"""Session.generate(): sampling options, limits, stop strings, log-probabilities, text."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyflash
from pyflash.engine.generation import StopStrings

pytestmark = pytest.mark.quick

Say = Callable[..., list[int]]  # the fixture's

PROMPT = [7 + i % 900 for i in range(30)]


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def texts(pieces: list[pyflash.Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_greedy_generation_takes_the_likeliest(model: pyflash.Model, session: pyflash.Session) -> None:
    pieces = list(session.generate(PROMPT, max_tokens=12, temperature=0))
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish == ("stop" if pieces[-1].token == model.info.eos_token else "length")
    with model.session() as other:
        logits = other.eval(PROMPT)
        for piece in pieces:
            assert piece.token == int(np.argmax(logits))
            assert piece.logprob == pytest.approx(log_softmax(logits)[piece.token], abs=1e-4)
            assert piece.top == ()
            logits = other.eval([piece.token])
    assert texts(pieces) == model.tokenizer.decode([piece.token for piece in pieces])


def test_seed_repeats_and_limits_hold(session: pyflash.Session) -> None:
    def sample(seed: int) -> list[int]:
        session.rollback(session.position)
        return [piece.token for piece in session.generate([5, 6], max_tokens=30, seed=seed)]

    first = sample(1)
    assert len(first) <= 30 and first == sample(1) and first != sample(2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": "x"}, {"seed": 1.5}, {"top_k": 2**70}, {"top_k": "x"}, {"top_k": -1}, {"top_p": "x"}, {"top_p": -0.5},
        {"temperature": 10**400}, {"temperature": -1}, {"temperature": float("nan")}, {"temperature": None},
        {"min_p": 2}, {"repetition_penalty": 0}, {"repetition_penalty": "1"}, {"presence_penalty": float("inf")},
        {"frequency_penalty": [1]}, {"penalty_last_n": -2}, {"penalty_last_n": 1.0}, {"max_tokens": 0},
        {"max_tokens": "many"}, {"logprobs": 21}, {"logprobs": -1}, {"stop": ""}, {"stop": ["a", ""]}, {"stop": [1]},
    ],
    ids=lambda arguments: str(arguments)[:30],
)  # fmt: skip
def test_bad_arguments_are_named_at_once(session: pyflash.Session, arguments: dict[str, Any]) -> None:
    with pytest.raises(pyflash.ArgumentError, match=next(iter(arguments))) as caught:
        session.generate([5], **arguments)
    assert "\n" not in str(caught.value)
    with pytest.raises(pyflash.ArgumentError, match=next(iter(arguments))):
        session.chat([{"role": "user", "content": "x"}], **arguments)
    assert session.position == 0


def test_unknown_option_is_a_type_error(session: pyflash.Session) -> None:
    with pytest.raises(TypeError, match="temprature"):
        session.generate([5], temprature=1)  # type: ignore[call-arg]


def test_generation_ends_with_the_context(model: pyflash.Model) -> None:
    with model.session(context=40) as session:
        pieces = list(session.generate(PROMPT, temperature=0))
        assert pieces[-1].finish in ("length", "stop") and len(pieces) <= 11
        with pytest.raises(pyflash.ContextFullError):
            list(session.generate(PROMPT, temperature=0))


# -- penalties --


def pick_after(session: pyflash.Session, say: Say, **penalties: float) -> int:
    """What comes after PROMPT when its last token is much the likeliest to follow."""
    say(session, [PROMPT[-1]], end=False)
    piece = next(session.generate(PROMPT, temperature=0, **penalties))  # type: ignore[arg-type]
    return piece.token


def test_penalties_see_the_prompt(session: pyflash.Session, say: Say) -> None:
    assert pick_after(session, say) == PROMPT[-1]


@pytest.mark.parametrize("penalties", [{"presence_penalty": 60.0}, {"frequency_penalty": 60.0}], ids=str)
def test_penalties_forbid_what_was_there(session: pyflash.Session, say: Say, penalties: dict[str, float]) -> None:
    assert pick_after(session, say, **penalties) not in PROMPT


def test_penalties_see_what_the_session_held_before(session: pyflash.Session, say: Say) -> None:
    say(session, [0, 9], end=False)  # what follows the first call, and the second
    session.eval([9, 10, 11])
    piece = next(session.generate([12], temperature=0, presence_penalty=60.0))
    assert piece.token not in (9, 10, 11, 12)


def test_penalties_forget(session: pyflash.Session, say: Say) -> None:
    assert pick_after(session, say, presence_penalty=60.0, penalty_last_n=0) == PROMPT[-1]


def test_repetition_penalty_changes_the_order(session: pyflash.Session) -> None:
    plain = [piece.token for piece in session.generate(PROMPT, max_tokens=40, temperature=0)]
    session.rollback(session.position)
    options = {"temperature": 0, "repetition_penalty": 100.0, "penalty_last_n": -1}
    kept = [piece.token for piece in session.generate(PROMPT, max_tokens=40, **options)]  # type: ignore[arg-type]
    assert len(set(kept)) == len(kept) and not set(kept) & set(PROMPT) and kept != plain


# -- stop strings --


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one two three", "two", "one "),
        ("one two three", ["three", "two"], "one "),
        ("one two three", ["tw", "two"], "one "),
        ("one two three", "four", "one two three"),
        ("aab aaab", "aaab", "aab "),
        ("abcabd", "abd", "abc"),
        ("one", "one", ""),
        ("ends with on", "one", "ends with on"),
        ("Grüße an alle", "ße", "Grü"),
        ("漢字🐳 x", "🐳", "漢字"),
        ("a\n\nb", "\n\n", "a"),
    ],
)  # fmt: skip
def test_stop_strings(session: pyflash.Session, say: Say, text: str, stop: str | list[str], shown: str) -> None:
    ids = say(session, text)
    pieces = list(session.generate([5], stop=stop))
    assert texts(pieces) == shown
    assert pieces[-1].finish == "stop" and all(piece.finish is None for piece in pieces[:-1])
    assert [piece.token for piece in pieces] == ids[: len(pieces)]
    assert session.position == len(pieces)  # the prompt and all but the last


def test_text_that_may_become_a_stop_string_waits(session: pyflash.Session, say: Say,
                                                  model: pyflash.Model) -> None:
    say(session, [token for letter in "xstay stop" for token in model.tokenizer.encode(letter)])
    assert [piece.text for piece in session.generate([5], stop="stop")] == [
        "x", "", "", "sta", "y", " ", "", "", "", ""]  # fmt: skip


def test_held_text_comes_when_the_answer_ends(session: pyflash.Session, say: Say) -> None:
    say(session, "go on st", end=True)
    assert texts(list(session.generate([5], stop="stop"))) == "go on st"
    session.rollback(session.position)
    say(session, "go on st", end=False)
    n = len(session.model.tokenizer.encode("go on st"))
    pieces = list(session.generate([5], stop="stop", max_tokens=n))
    assert texts(pieces) == "go on st" and pieces[-1].finish == "length"


def test_stop_strings_do_not_depend_on_how_text_is_cut() -> None:
    rng = random.Random(7)
    for _ in range(3000):
        strings = ["".join(rng.choices("ab", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        text = "".join(rng.choices("abc", k=rng.randint(0, 14)))
        whole, stopped = StopStrings(strings).feed(text, final=True)
        stops, out, at = StopStrings(strings), "", 0
        while at <= len(text):
            n = rng.randint(1, 4)
            given, done = stops.feed(text[at : at + n], final=at + n > len(text))
            out, at = out + given, at + n
            assert not any(string in out for string in strings)
            if done:
                break
        assert (out, done) == (whole, stopped), (strings, text)
        # By definition: the text up to the earliest place at which one of the strings is complete.
        ends = [end for end in range(len(text) + 1) if text[:end].endswith(tuple(strings))]
        assert stopped == bool(ends)
        if ends:
            assert whole == min((text[: ends[0]].removesuffix(string) for string in strings
                                 if text[: ends[0]].endswith(string)), key=len)  # fmt: skip
        else:
            assert whole == text


# -- log-probabilities --


def test_top_logprobs(model: pyflash.Model, session: pyflash.Session) -> None:
    pieces = list(session.generate(PROMPT, max_tokens=5, temperature=0, logprobs=20))
    with model.session() as other:
        logits = other.eval(PROMPT)
        for piece in pieces:
            expected = log_softmax(logits)
            order = sorted(range(len(expected)), key=lambda token: (-logits[token], token))[:20]
            assert [top.token for top in piece.top] == order and piece.top[0].token == piece.token
            assert [top.logprob for top in piece.top] == pytest.approx(expected[order], abs=1e-4)
            assert [top.text for top in piece.top] == [model.tokenizer.decode([token], special=True) for token in order]
            logits = other.eval([piece.token])


def test_logprobs_are_those_before_any_filter(session: pyflash.Session) -> None:
    plain = next(session.generate(PROMPT, temperature=0, logprobs=3))
    session.rollback(session.position)
    filtered = next(session.generate(PROMPT, top_k=1, temperature=3.0, logprobs=3, presence_penalty=2.0))
    assert plain.top == filtered.top
    assert filtered.logprob == pytest.approx(dict((top.token, top.logprob) for top in plain.top).get(
        filtered.token, filtered.logprob))  # fmt: skip


# -- text --


def test_text_waits_for_whole_characters(model: pyflash.Model, session: pyflash.Session, say: Say) -> None:
    """A four-byte character in single-byte tokens comes out once, complete; an unfinished one as U+FFFD at the end."""
    singles = {model.tokenizer.decode_bytes([token]): token for token in range(1024)}
    wanted = [singles[bytes([byte])] for byte in "🐳".encode() + "é".encode() + b"\xe2\x82"]
    say(session, wanted, end=False)
    shown = [piece.text for piece in session.generate([5], max_tokens=len(wanted))]
    assert shown == ["", "", "", "🐳", "", "é", "", "\ufffd"]


# -- the iterator --


def test_closing_keeps_what_was_generated(model: pyflash.Model, session: pyflash.Session) -> None:
    pieces = session.generate(PROMPT, temperature=0)
    got = [next(pieces).token for _ in range(4)]
    del pieces
    assert session.tokens.tolist() == PROMPT + got[:3]
    again = session.generate([got[3]], max_tokens=4, temperature=0)
    with model.session() as other:
        whole = [piece.token for piece in other.generate(PROMPT, max_tokens=8, temperature=0)]
    assert got + [piece.token for piece in again] == whole


def test_one_generation_at_a_time(session: pyflash.Session) -> None:
    prompt = session.model.tokenizer.encode("some words")
    first = session.generate(prompt, max_tokens=5)
    next(first)
    session.rollback(session.position)
    second = session.generate(prompt, max_tokens=5)
    next(second)  # as far as the first one was
    with pytest.raises(pyflash.BusyError, match="something else"):
        next(first)
    assert len(list(second)) == 4


def test_progress_counts_the_prompt(model: pyflash.Model) -> None:
    calls: list[tuple[int, int]] = []
    with model.session(chunk=10) as session:
        list(session.generate(PROMPT[:25], max_tokens=3, progress=lambda done, total: calls.append((done, total))))
        assert calls == [(10, 25), (20, 25), (25, 25)]
        calls.clear()
        session.eval(PROMPT[:11], progress=lambda done, total: calls.append((done, total)))
        assert calls == [(10, 11), (11, 11)]


def test_exception_in_progress_comes_out(model: pyflash.Model) -> None:
    def fails(done: int, _total: int) -> None:
        if done >= 20:
            raise LookupError("enough")

    with model.session(chunk=10) as session:
        with pytest.raises(LookupError, match="enough"):
            session.eval(PROMPT, progress=fails)
        assert session.position == 20
        with model.session() as other:
            assert np.array_equal(session.eval(PROMPT[20:]), other.eval(PROMPT))
