"""Sessions over stages: what moves them, ends them, and keeps them in files."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from cluster_logits import CONTEXT, same

pytestmark = pytest.mark.cluster


def test_rollback_and_checkpoints(model: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    with model.session(context=CONTEXT) as session:
        session.eval(tokens[:300])
        session.checkpoint()
        session.eval(tokens[300:310])
        session.rollback(7)
        assert session.position == 303 and session.since_checkpoint == 3
        same(session.eval(tokens[303:880], all_logits=True), reference[303:880])
        assert session.reusable([*tokens[:300].tolist(), 0]) == 300
        assert session.reuse([*tokens[:300].tolist(), 0]) == 300
        same(session.eval(tokens[300:330], all_logits=True), reference[300:330])
        session.rollback(session.position)
        same(session.eval(tokens[:2], all_logits=True), reference[:2])
        with pytest.raises(pyflash.ArgumentError):
            session.rollback(3)
        session.eval(tokens[2:800])
        limit = session.rollback_limit
        with pytest.raises(pyflash.RebuildError):
            session.rollback(limit + 200)
        assert session.position == 800
        same(session.eval(tokens[800:], all_logits=True), reference[800:])


def test_tokens_that_are_evaluated_ahead(model: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    with model.session(context=CONTEXT) as session:
        same(session.eval_ahead(tokens[:6]), reference[:6])
        assert (session.position, session.ahead) == (1, 5)
        assert session.advance() and session.advance() and session.position == 3
        same(session.eval(tokens[3:9], all_logits=True), reference[3:9])
        assert not session.advance()


def test_chat_goes_on_with_what_is_there(whole: Any, model: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    sessions = [whole.session(context=CONTEXT), model.session(context=CONTEXT)]
    for _ in range(3):
        replies = [session.chat(messages, max_tokens=24, temperature=0) for session in sessions]
        texts = [[piece.text for piece in reply] for reply in replies]
        assert texts[0] == texts[1]
        assert replies[0].n_reused == replies[1].n_reused
        messages += [replies[1].message, {"role": "user", "content": "What is 2 + 3?"}]
    for session in sessions:
        session.close()


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_cancelled_prompt_ends_where_all_stages_are(model: Any, tokens: np.ndarray, reference: np.ndarray,
                                                      after: int) -> None:
    with model.session(context=CONTEXT, chunk=64) as session:
        session.eval(tokens[:20])

        def progress(done: int, _total: int) -> None:
            if done >= 64 * after:
                session.cancel()

        with pytest.raises(pyflash.CancelledError):
            session.eval(tokens[20:], progress=progress)
        assert 20 < session.position < 900
        assert {*session.chain.ask_all("position")} == {session.position}
        same(session.eval(tokens[session.position :]), reference[-1])


def test_an_exception_of_progress_comes_out(two: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    def progress(_done: int, _total: int) -> None:
        raise KeyError("mine")

    with two.session(context=CONTEXT, chunk=100) as session:
        with pytest.raises(KeyError):
            session.eval(tokens, progress=progress)
        assert session.position in (100, 200, 300, 400)
        same(session.eval(tokens[session.position :]), reference[-1])


def test_a_cancel_from_another_thread_ends_a_step(two: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    with two.session(context=CONTEXT, chunk=32) as session:
        begun = threading.Event()

        def cancel() -> None:
            begun.wait(60)
            session.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(pyflash.CancelledError):
            while True:
                session.eval(tokens, progress=lambda *_: begun.set())
                session.rollback(session.position)
        thread.join()
        at = session.position
        same(session.eval(tokens[at:]) if at < 900 else reference[-1], reference[-1])


def test_a_file_is_that_of_local_stages_too(two: Any, demo_model: Path, tokens: np.ndarray, reference: np.ndarray,
                                            tmp_path: Path) -> None:
    with two.session(context=CONTEXT) as session:
        session.eval(tokens[:500])
        session.note = b"mine"
        session.hold(tmp_path / "chat")
        session.save(tmp_path / "chat")
        session.eval(tokens[500:520])
        session.load(tmp_path / "chat")
        assert (session.position, session.note) == (500, b"mine")
        same(session.eval(tokens[500:], all_logits=True), reference[500:])
    first, second = (stage.place.layers for stage in two.pipeline.stages)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["chat", f"chat.layers-{second[0]}-{second[1]}"]
    with pyflash.StagedModel.open(demo_model, [first, second], threads=1) as local, local.session(context=CONTEXT) as session:
        session.load(tmp_path / "chat")
        assert session.note == b"mine"
        same(session.eval(tokens[500:], all_logits=True), reference[500:])
        session.save(tmp_path / "other")
    with two.session(context=CONTEXT) as session:
        session.eval(tokens[:9])
        (tmp_path / names[1]).write_bytes((tmp_path / names[1]).read_bytes()[:-5])
        with pytest.raises(pyflash.FormatError, match="damaged"):
            session.load(tmp_path / "chat")
        with pytest.raises(pyflash.FileError):
            session.load(tmp_path / "none")
        assert session.position == 9
        session.load(tmp_path / "other")
        assert session.position == 900


def test_what_cannot_be(two: Any, tokens: np.ndarray, demo_model: Path) -> None:
    with two.session(context=64) as session:
        with pytest.raises(pyflash.ContextFullError):
            session.eval(tokens[:65])
        with pytest.raises(pyflash.ArgumentError):
            session.eval([10**6])
        with pytest.raises(pyflash.UnsupportedError, match="draft"):
            session.draft(1)
        assert session.position == 0
        session.eval(tokens[:3])
    with pytest.raises(pyflash.ClosedError):
        session.eval([1])
    for stages in (0, 6, "many", [(0, 2), (3, 5)]):
        with pytest.raises(pyflash.ArgumentError):
            pyflash.cluster.Model.open(demo_model, stages)
    with pytest.raises(pyflash.UnsupportedError, match="processor"):
        pyflash.cluster.Model.open(demo_model, 2, device="cuda")
