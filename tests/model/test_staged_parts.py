"""The parts of a session in stages, joined: they go into another session of the same cut, bit for bit, or into none."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from pyflash.engine import stage_parts
from tiny_models import TinyModel, make_parts_model

T = 500
CONTEXT = 600


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_parts_model(tmp_path_factory.mktemp("staged-parts"))


def opened(path: Path, n: int, mtp: Path | None) -> Any:
    return pyflash.StagedModel.open(path, n, threads=1, mtp=mtp)


@pytest.fixture(scope="module", params=[1, 2, 3], ids=["1 stage", "2 stages", "3 stages"])
def model(request: pytest.FixtureRequest, tiny: TinyModel) -> Iterator[Any]:
    with opened(tiny.path, request.param, tiny.mtp_path) as staged:
        yield staged


@pytest.fixture(scope="module")
def tokens(tiny: TinyModel) -> np.ndarray:
    return tiny.tokens(T, seed=32)


@pytest.fixture(scope="module")
def cold(tiny: TinyModel, tokens: np.ndarray) -> np.ndarray:
    with pyflash.Model.open(tiny.path, threads=1, mtp=tiny.mtp_path) as whole, whole.session(context=CONTEXT) as session:
        return np.asarray(session.eval(tokens, all_logits=True))


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())


def parts(session: Any, n: int) -> tuple[list[bytearray], bytearray]:
    return [session.export_rows(begin, min(begin + 128, n)) for begin in range(0, n, 128)], session.export_tail(n)


def give(session: Any, ids: np.ndarray, rows: list[bytearray], tail: Any) -> None:
    for i, data in enumerate(rows):
        session.import_rows(128 * i, min(128 * i + 128, len(ids)), data)
    session.import_tail(ids, tail)


@pytest.mark.parametrize("position", [1, 127, 128, 300])
def test_parts_go_into_another_session(model: Any, tokens: np.ndarray, cold: np.ndarray, position: int) -> None:
    with model.session(context=CONTEXT, chunk=64) as session:
        session.eval(tokens[:position])
        session.checkpoint()
        session.eval(tokens[position : position + 90])
        rows, tail = parts(session, position)  # of a checkpoint
        assert struct.unpack_from("<qq", tail) == (position, max(0, position - 16))
    with model.session(context=CONTEXT) as session:
        session.eval(tokens[::-1][:200])
        session.rollback(200)
        give(session, tokens[:position], rows, tail)
        assert session.position == position and session.tokens.tolist() == tokens[:position].tolist()
        assert session.origin.n_foreign == 0
        drafted = session.draft(7)
        assert equal(session.eval(tokens[position:], all_logits=True), cold[position:])
        session.rollback(session.position)
        session.eval(tokens[:position])
        assert equal(session.draft(7), drafted)


def test_another_cut_is_refused(model: Any, tiny: TinyModel, tokens: np.ndarray) -> None:
    with model.session(context=CONTEXT) as session:
        session.eval(tokens[:200])
        rows, tail = parts(session, 200)
        told = session.parts
    with opened(tiny.path, model.n_stages + 1, tiny.mtp_path) as other, other.session(context=CONTEXT) as session:
        assert session.parts != told
        with pytest.raises(pyflash.FormatError, match="no part of a session"):
            session.import_rows(0, 128, rows[0])
        with pytest.raises(pyflash.FormatError, match="no part of a session"):
            session.import_tail(tokens[:200], tail)
        assert session.position == 0


def test_what_one_stage_refuses_no_stage_has(model: Any, tokens: np.ndarray, cold: np.ndarray) -> None:
    """Also where the others have taken it already."""
    with model.session(context=CONTEXT) as session:
        session.eval(tokens[:300])
        rows, tail = parts(session, 300)
    each = stage_parts.split(tail, model.n_stages)
    with model.session(context=CONTEXT) as session:
        session.eval(tokens[:100])
        for at in range(model.n_stages):
            damaged = stage_parts.join_tails([part[:-1] if i == at else part for i, part in enumerate(each)])
            with pytest.raises(pyflash.FormatError, match="no tail"):
                give(session, tokens[:300], rows, damaged)
            assert session.position == 100 and {stage.position for stage in session.stages} == {100}
        for cut in (tail[:-1], tail[:19], tail + b"\0", b""):
            with pytest.raises(pyflash.FormatError):
                session.import_tail(tokens[:300], cut)
        session.rollback(0)  # drops the rows
        with pytest.raises(pyflash.ArgumentError, match="rows for 100"):
            session.import_tail(tokens[:300], tail)
        assert equal(session.eval(tokens[100:], all_logits=True), cold[100:])


def test_tails_of_different_positions_are_not_joined() -> None:
    with pytest.raises(pyflash.FormatError, match="different positions"):
        stage_parts.join_tails([struct.pack("<qq", 5, 0), struct.pack("<qq", 6, 0)])
