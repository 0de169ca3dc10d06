"""Model, Session and Tokenizer on a tiny model."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from pyflash import chat

pytestmark = pytest.mark.quick

LONG = [7 + i % 900 for i in range(30_000)]


# -- opening --


def test_info_describes_the_model(model: pyflash.Model) -> None:
    info = model.info
    assert (info.n_vocab, info.n_layer, info.precision, info.profile) == (1024, 6, "exact", "compat")
    assert info.layer_ratios == (0, 0, 4, 128, 4, 128)
    assert info.cpu_isa in ("scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "dotprod", "i8mm")


def test_missing_file() -> None:
    with pytest.raises(pyflash.FileError, match="no-such.gguf"):
        pyflash.Model.open("no-such.gguf")


def test_not_a_gguf(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("hello")
    with pytest.raises(pyflash.FormatError):
        pyflash.Model.open(path)


def test_zero_byte_in_path_is_not_cut_off(tiny_model: Path) -> None:
    with pytest.raises(pyflash.ArgumentError, match="zero byte"):
        pyflash.Model.open(f"{tiny_model}\0.txt")


@pytest.mark.parametrize(
    "arguments", [{"precision": "double"}, {"threads": 0}, {"device": "quantum"}, {"isa": "mmx"}], ids=str
)
def test_bad_open_arguments(tiny_model: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(pyflash.Error):
        pyflash.Model.open(tiny_model, **arguments)


def test_environment_chooses_the_kernel_set(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFLASH_CPU", "scalar")
    with pyflash.Model.open(tiny_model) as model:
        assert model.info.cpu_isa == "scalar"


def test_path_with_other_letters(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "模型 ü.gguf"
    path.write_bytes(tiny_model.read_bytes())
    with pyflash.Model.open(path) as model:
        assert model.info.n_layer == 6


# -- closed and busy objects --

SESSION_USES: dict[str, Callable[[pyflash.Session], object]] = {
    "eval": lambda s: s.eval([1]),
    "draft": lambda s: s.draft(1),
    "position": lambda s: s.position,
    "rollback": lambda s: s.rollback(0),
    "rollback_limit": lambda s: s.rollback_limit,
    "save": lambda s: s.save("x"),
    "load": lambda s: s.load("x"),
    "memory": lambda s: s.memory,
    "tokens": lambda s: s.tokens,
    "cancel": lambda s: s.cancel(),
    "set_tap": lambda s: s.set_tap(None),
    "checkpoint": lambda s: s.checkpoint(),
    "reuse": lambda s: s.reuse([1]),
    "note": lambda s: s.note,
    "set note": lambda s: setattr(s, "note", b"x"),
    "generate": lambda s: list(s.generate([1])),
    "chat": lambda s: list(s.chat([{"role": "user", "content": "hi"}])),
}


@pytest.mark.parametrize("use", SESSION_USES.values(), ids=SESSION_USES)
def test_closed_session(model: pyflash.Model, use: Callable[[pyflash.Session], object]) -> None:
    session = model.session()
    session.eval([5])
    session.close()
    session.close()
    with pytest.raises(pyflash.ClosedError):
        use(session)


MODEL_USES: dict[str, Callable[[pyflash.Model], object]] = {
    "session": lambda m: m.session(),
    "metadata": lambda m: m.metadata("general.name"),
    "encode": lambda m: m.tokenizer.encode("x"),
    "decode": lambda m: m.tokenizer.decode([5]),
    "token_id": lambda m: m.tokenizer.token_id("x"),
}


@pytest.mark.parametrize("use", MODEL_USES.values(), ids=MODEL_USES)
def test_closed_model(tiny_model: Path, use: Callable[[pyflash.Model], object]) -> None:
    model = pyflash.Model.open(tiny_model)
    model.close()
    model.close()
    with pytest.raises(pyflash.ClosedError):
        use(model)


def test_session_outlives_its_model(tiny_model: Path) -> None:
    model = pyflash.Model.open(tiny_model)
    with model.session() as session:
        first = session.eval([5, 6])
        model.close()
        session.rollback(2)
        assert np.array_equal(session.eval([5, 6]), first)
        assert list(session.generate([7], max_tokens=3)) and list(session.chat([{"role": "user", "content": "x"}],
                                                                               max_tokens=3))  # fmt: skip


def test_session_serves_one_call_at_a_time(session: pyflash.Session) -> None:
    seen: list[type[BaseException]] = []

    def tap(*_: object) -> None:
        if not seen:
            try:
                session.eval([1])
            except pyflash.Error as error:
                seen.append(type(error))

    session.set_tap(tap)
    session.eval([5])
    assert seen == [pyflash.BusyError]


def test_close_from_another_thread_ends_the_call(model: pyflash.Model) -> None:
    session = model.session(context=40_000)
    timer = threading.Timer(0.2, session.close)
    timer.start()
    with pytest.raises((pyflash.CancelledError, pyflash.ClosedError)):
        session.eval(LONG)
    timer.join()


# -- evaluation --


def test_split_calls_equal_one_call(model: pyflash.Model, session: pyflash.Session) -> None:
    tokens = LONG[:300]
    together = session.eval(tokens, all_logits=True)
    assert together.shape == (300, 1024) and together.dtype == np.float32 and np.isfinite(together).all()
    with model.session(poison=True) as other:
        assert np.array_equal(other.eval(tokens[:77]), together[76])
        assert np.array_equal(other.eval(np.array(tokens[77:], dtype=np.int64)), together[299])
        assert other.position == 300


@pytest.mark.parametrize("tokens", [[], [-1], [1024], [2**31], [1.5], [[1, 2]], ["a"]], ids=str)
def test_bad_tokens(session: pyflash.Session, tokens: Any) -> None:
    session.eval([5])
    with pytest.raises(pyflash.ArgumentError):
        session.eval(tokens)
    assert session.position == 1


def test_context_full_evaluates_nothing(model: pyflash.Model) -> None:
    with model.session(context=100, chunk=16) as session:
        session.eval(LONG[:60])
        with pytest.raises(pyflash.ContextFullError, match="larger context"):
            session.eval(LONG[:41])
        assert session.position == 60
        session.eval(LONG[:40])
        assert session.position == session.capacity == 100


def test_rollback(session: pyflash.Session) -> None:
    session.eval(LONG[:1500])
    limit = session.rollback_limit
    assert 256 <= limit < 1500 and session.tokens.tolist() == LONG[:1500]
    with pytest.raises(pyflash.RebuildError):
        session.rollback(limit + 1)
    assert session.position == 1500
    session.rollback(limit)
    assert session.position == 1500 - limit and session.tokens.tolist() == LONG[: 1500 - limit]
    session.rollback(session.position)
    assert session.position == 0


@pytest.mark.parametrize("n", [-1, 3, 2**70, -(2**70), 1.5, "x"])
def test_bad_rollbacks(session: pyflash.Session, n: Any) -> None:
    session.eval([5, 6])
    with pytest.raises(pyflash.ArgumentError):
        session.rollback(n)
    assert session.position == 2


def test_save_and_load(model: pyflash.Model, session: pyflash.Session, tmp_path: Path) -> None:
    session.eval(LONG[:333])
    session.save(tmp_path / "state")
    expected = session.eval([9])
    with model.session(context=400) as other:
        other.load(tmp_path / "state")
        assert other.position == 333 and other.tokens.tolist() == LONG[:333]
        assert np.array_equal(other.eval([9]), expected)
        (tmp_path / "state").write_bytes(b"nonsense")
        with pytest.raises(pyflash.Error):
            other.load(tmp_path / "state")
        assert other.position == 334


def test_checkpoints_reuse_and_notes(model: pyflash.Model, session: pyflash.Session, tmp_path: Path) -> None:
    session.eval(LONG[:400])
    session.checkpoint()
    session.eval(LONG[1000:2500])
    assert session.reuse(LONG[:1500]) == session.position == 400
    expected = session.eval(LONG[400:430])
    assert session.note == b""
    session.note = bytearray(b"\0 any bytes")
    session.save(tmp_path / "state")
    with model.session() as other:
        other.load(tmp_path / "state")
        assert other.note == b"\0 any bytes" and other.position == 430
        assert other.reuse(LONG[:430]) == 429
        assert np.array_equal(other.eval(LONG[429:430]), expected)
        assert other.reuse([3]) == other.position == 0
    for use in (lambda: session.reuse([]), lambda: session.reuse([-1]), lambda: setattr(session, "note", "text")):
        with pytest.raises(pyflash.ArgumentError):
            use()
    assert session.position == 430 and session.note == b"\0 any bytes"
    with model.session(checkpoints=0) as without:
        without.eval([5])
        with pytest.raises(pyflash.UnsupportedError):
            without.checkpoint()


def test_draft_without_an_mtp_block(session: pyflash.Session) -> None:
    session.eval([5])
    with pytest.raises(pyflash.UnsupportedError):
        session.draft(6)


def test_memory_counts_the_cache(model: pyflash.Model) -> None:
    with model.session(context=1000) as small, model.session(context=20_000) as large:
        assert 0 < small.memory.cache_bytes < large.memory.cache_bytes


def test_cache_precisions(tiny_model: Path) -> None:
    with pyflash.Model.open(tiny_model) as model, model.session(cache="f16") as half, \
            model.session(cache="reference") as reference:
        assert reference.memory.cache_bytes < half.memory.cache_bytes
        with model.session() as automatic:
            expected = automatic.eval(LONG[:200])
        assert np.array_equal(reference.eval(LONG[:200]), expected)
        assert not np.array_equal(half.eval(LONG[:200]), expected)
        with pytest.raises(pyflash.ArgumentError, match="cache precision"):
            model.session(cache="f64")


def test_exact_keeps_floats_unless_asked_otherwise(tiny_model: Path) -> None:
    with pyflash.Model.open(tiny_model, precision="exact") as exact:
        logits = {}
        for cache in ("auto", "f32", "f16", "reference"):
            with exact.session(cache=cache) as session:
                logits[cache] = session.eval(LONG[:200])
    assert np.array_equal(logits["auto"], logits["f32"])
    assert not np.array_equal(logits["f32"], logits["f16"]) and not np.array_equal(logits["f32"], logits["reference"])


def test_tap_sees_every_layer_and_its_exception_comes_out(session: pyflash.Session) -> None:
    seen: set[tuple[int, int]] = set()
    kinds: dict[str, np.dtype[Any]] = {}

    def tap(name: str, layer: int, position: int, data: np.ndarray[Any, Any]) -> None:
        seen.add((layer, position))
        kinds[name] = data.dtype

    session.set_tap(tap)
    session.eval([5, 6])
    assert {(layer, position) for layer in range(6) for position in range(2)} <= seen
    assert kinds["experts"] == np.int32

    def fails(*_: object) -> None:
        raise LookupError("from the tap")

    session.set_tap(fails)
    with pytest.raises(LookupError, match="from the tap"):
        session.eval([7])
    session.set_tap(None)
    session.eval([7])


# -- interruption --


def when(condition: Callable[[], bool], action: Callable[[], object], delay: float = 0) -> threading.Thread:
    """A started thread that acts `delay` seconds after the condition came true; not at all when it does not in 120."""
    def watch() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if condition():
                time.sleep(delay)
                action()
                return
            time.sleep(0.001)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_cancel_from_another_thread(model: pyflash.Model, session: pyflash.Session) -> None:
    thread = when(lambda: session.position >= 64, session.cancel)
    with pytest.raises(pyflash.CancelledError):
        session.eval(LONG)
    thread.join()
    done = session.position
    assert 64 <= done < len(LONG) and done % session.chunk == 0
    with model.session(context=40_000) as fresh:
        assert np.array_equal(session.eval(LONG[done : done + 50]), fresh.eval(LONG[: done + 50]))


@pytest.mark.skipif(sys.platform == "win32", reason="signals come as console events there")
@pytest.mark.parametrize("chunk", [64, 30_000], ids=["between steps", "within a step"])
def test_keyboard_interrupt(model: pyflash.Model, chunk: int) -> None:
    main = threading.main_thread().ident
    assert main is not None
    with model.session(context=40_000, chunk=chunk) as session:
        def is_due() -> bool:
            return session.position >= chunk if chunk < len(LONG) else session._call_lock.locked()

        with pytest.raises(KeyboardInterrupt):
            thread = when(is_due, lambda: signal.pthread_kill(main, signal.SIGINT), delay=0.1)
            session.eval(LONG)
        thread.join()
        position = session.position
        assert chunk <= position < len(LONG) if chunk < len(LONG) else position == 0
        session.eval([5])  # not cancelled by what the interrupt left behind
        assert session.position == position + 1


# -- tokenizer --


@pytest.mark.parametrize("text", ["", "Hello, world", "Grüße 漢字 🐳\n\n\t x", "a\0b", "\ud800"], ids=repr)
def test_text_comes_back(model: pyflash.Model, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    ids = model.tokenizer.encode(text)
    assert model.tokenizer.decode_bytes(ids) == data
    assert model.tokenizer.decode(ids) == data.decode("utf-8", "replace")


def test_special_tokens_only_on_request(model: pyflash.Model) -> None:
    bos = model.info.bos_token
    assert model.tokenizer.token_id(chat.BOS) == bos
    assert model.tokenizer.encode(chat.BOS, special=True) == [bos]
    assert bos not in model.tokenizer.encode(chat.BOS)
    assert model.tokenizer.decode([bos]) == "" and model.tokenizer.decode([bos], special=True) == chat.BOS
    assert model.tokenizer.token_id("no such token at all") is None
