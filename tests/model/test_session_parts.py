"""A session's cache in parts: rows and tails that go into another session give the logits of a cold run, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from gguf import GGUFReader
from tiny_models import TinyModel, make_parts_model

T = 700
CONTEXT = 800


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_parts_model(tmp_path_factory.mktemp("parts"))


class CachedModel:
    """A model whose sessions keep their cache in one of the types there are."""

    def __init__(self, model: Any, cache: str) -> None:
        self._model, self._cache = model, cache
        self.has_mtp = model.info.has_mtp

    def session(self, **options: Any) -> Any:
        return self._model.session(cache=self._cache, **{"context": CONTEXT, **options})


@pytest.fixture(scope="module", params=["exact-auto-mtp", "fast-f16", "fast-reference-mtp"])
def model(request: pytest.FixtureRequest, tiny: TinyModel) -> Iterator[CachedModel]:
    precision, cache, *mtp = request.param.split("-")
    with pyflash.Model.open(tiny.path, precision=precision, threads=1, mtp=tiny.mtp_path if mtp else None) as opened:
        yield CachedModel(opened, cache)


@pytest.fixture(scope="module")
def tokens(tiny: TinyModel) -> np.ndarray:
    return tiny.tokens(T, seed=32)


@pytest.fixture(scope="module")
def cold(model: CachedModel, tokens: np.ndarray) -> np.ndarray:
    with model.session() as session:
        return np.asarray(session.eval(tokens, all_logits=True))


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())


@pytest.mark.parametrize("position", [1, 5, 127, 128, 129, 400, 640])
def test_parts_go_into_another_session(model: CachedModel, tokens: np.ndarray, cold: np.ndarray, position: int) -> None:
    """Whose chunks and context are others, and whose memory is poisoned by another conversation's rows."""
    with model.session(chunk=64) as session:
        session.eval(tokens[:position])
        pieces = [(begin, min(begin + 128, position)) for begin in range(0, position, 128)]
        rows = [session.export_rows(*piece) for piece in pieces]
        tail = session.export_tail()
    with model.session(context=T, chunk=500) as session:
        session.eval(tokens[::-1][:300])
        session.rollback(300)
        for (begin, end), data in zip(pieces, rows, strict=True):
            session.import_rows(begin, end, data)
            assert session.position == 0
        session.import_tail(tokens[:position], tail)
        assert session.position == position and session.tokens.tolist() == tokens[:position].tolist()
        assert session.rollback_limit == min(position, 16)
        assert equal(session.eval(tokens[position:], all_logits=True), cold[position:])
        if model.has_mtp:
            session.rollback(session.position)
            session.eval(tokens[:position])
            drafted = session.draft(7)
            session.rollback(session.position)
            for (begin, end), data in zip(pieces, rows, strict=True):
                session.import_rows(begin, end, data)
            session.import_tail(tokens[:position], tail)
            assert equal(session.draft(7), drafted)


def test_a_tail_leads_back_a_little(model: CachedModel, tokens: np.ndarray, cold: np.ndarray) -> None:
    with model.session() as session:
        session.eval(tokens[:400])
        rows, tail = session.export_rows(0, 400), session.export_tail(400)
        session.rollback(400)
        session.import_rows(0, 400, rows)
        session.import_tail(tokens[:400], tail)
        with pytest.raises(pyflash.RebuildError):
            session.rollback(17)
        session.rollback(16)
        assert equal(session.eval(tokens[384:], all_logits=True), cold[384:])


def test_a_checkpoints_tail(model: CachedModel, tokens: np.ndarray, cold: np.ndarray) -> None:
    with model.session() as session:
        session.eval(tokens[:200])
        session.checkpoint()
        before = session.export_tail()
        session.eval(tokens[200:])
        assert session.export_tail(200) == before
        with pytest.raises(pyflash.ArgumentError, match="no tail"):
            session.export_tail(201)


def test_what_a_session_has_is_passed_over(model: CachedModel, tokens: np.ndarray, cold: np.ndarray) -> None:
    """Its own rows stay, and so do its checkpoints."""
    with model.session() as session:
        session.eval(tokens[:640])
        rows, tail = [session.export_rows(begin, begin + 128) for begin in range(0, 640, 128)], session.export_tail()
    with model.session() as session:
        session.eval(tokens[:130])
        session.checkpoint()
        session.eval(tokens[130:150])
        damaged = bytearray(len(rows[0]))
        with pytest.raises(pyflash.ArgumentError, match="do not follow"):
            session.import_rows(256, 384, rows[2])
        session.import_rows(0, 128, damaged)  # all of them are there
        for n in range(1, 5):
            session.import_rows(128 * n, 128 * n + 128, rows[n])
        session.import_tail(tokens[:640], tail)
        assert equal(session.eval(tokens[640:], all_logits=True), cold[640:])
        session.rollback(session.position - 130)
        assert equal(session.eval(tokens[130:], all_logits=True), cold[130:])


def test_imported_rows_are_dropped_by_what_moves_the_session(model: CachedModel, tokens: np.ndarray) -> None:
    with model.session() as session:
        session.eval(tokens[:256])
        rows, tail = session.export_rows(0, 256), session.export_tail()
        for move in (lambda: session.eval(tokens[:1]), lambda: session.rollback(0)):
            session.rollback(session.position)
            session.import_rows(0, 256, rows)
            move()
            with pytest.raises(pyflash.ArgumentError):
                session.import_tail(tokens[:256], tail)


def test_what_is_refused_changes_nothing(model: CachedModel, tokens: np.ndarray, cold: np.ndarray) -> None:
    with model.session() as session:
        session.eval(tokens[:300])
        rows, tail = session.export_rows(0, 300), session.export_tail()
        for begin, end in ((-1, 5), (5, 4), (0, 301)):
            with pytest.raises(pyflash.ArgumentError):
                session.export_rows(begin, end)
    with model.session() as session:
        session.eval(tokens[:100])
        with pytest.raises(pyflash.ArgumentError, match="bytes of rows"):
            session.import_rows(0, 300, rows[:-1])
        with pytest.raises(pyflash.ContextFullError):
            session.import_rows(0, CONTEXT + 1, rows)
        with pytest.raises(pyflash.ArgumentError, match="rows for 100"):
            session.import_tail(tokens[:300], tail)
        session.import_rows(0, 300, rows)
        with pytest.raises(pyflash.ArgumentError, match="do not begin"):
            session.import_tail(tokens[1:301], tail)
        with pytest.raises(pyflash.ArgumentError, match="vocabulary"):
            session.import_tail([*tokens[:299], 100000], tail)
        for bad in (b"", tail[:15], tail[:-1], tail + b"\0", (299).to_bytes(8, "little") + tail[8:],
                    tail[:8] + (301).to_bytes(8, "little") + tail[16:], tail[:8] + (100).to_bytes(8, "little") + tail[16:]):
            with pytest.raises(pyflash.FormatError):
                session.import_tail(tokens[:300], bad)
        assert session.position == 100 and session.rollback_limit == 100
        assert equal(session.eval(tokens[100:], all_logits=True), cold[100:])


def test_what_parts_depend_on(tiny: TinyModel, tmp_path: Path) -> None:
    def told(path: Path = tiny.path, cache: str = "auto", **options: Any) -> pyflash.PartsInfo:
        with pyflash.Model.open(path, threads=1, **options) as model, model.session(context=200, cache=cache) as session:
            return session.parts

    plain = told()
    assert plain == told() and plain.end_layer > plain.first_layer == 0 and plain.row_tokens == 128
    assert plain.arithmetic and plain.kernels
    others = [told(cache="f16"), told(precision="exact"), told(isa="scalar"), told(mtp=tiny.mtp_path)]
    assert len({plain, *others}) == 5 and others[2].kernels == "scalar" and others[3].has_mtp
    tensor = GGUFReader(tiny.path).tensors[-1]
    data = bytearray(tiny.path.read_bytes())
    data[tensor.data_offset + tensor.n_bytes // 2] ^= 1
    (tmp_path / "edited.gguf").write_bytes(data)
    assert told(tmp_path / "edited.gguf").model != plain.model
