"""A cancelled step leaves the session as it was: the same position, and the same bits ever after."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from tiny_models import TinyModel, make_tiny_model

T = 460
CUT = 150  # the step that is cancelled starts here, inside an open window of either ratio


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(tmp_path_factory.mktemp("cancel"), seed=31, dense="q8_0", mtp=True, profile="native")


def cancel_in_layer(session: Any, layer: int, name: str) -> Any:
    """A tap that cancels as the step passes a place of the network."""
    def tap(tap_name: str, tap_layer: int, _position: int, _value: np.ndarray) -> None:
        if (tap_name, tap_layer) == (name, layer):
            session.cancel()

    return tap


@pytest.mark.parametrize("precision", ["exact", "fast", "int8"])
@pytest.mark.parametrize("step", [1, 100, 129, 300])
def test_cancelled_step_changes_nothing(tiny: TinyModel, precision: str, step: int) -> None:
    tokens = tiny.tokens(T, 32)
    with pyflash.Model.open(tiny.path, precision=precision, threads=2) as model:
        with model.session(context=T, chunk=T) as session:
            expected = session.eval(tokens, all_logits=True)[CUT:]
        for layer, name in ((0, "attn_norm"), (3, "ffn_norm"), (tiny.config.num_hidden_layers - 1, "attn_o")):
            with model.session(context=T, chunk=300, poison=True) as session:
                session.eval(tokens[:CUT])
                session.set_tap(cancel_in_layer(session, layer, name))
                with pytest.raises(pyflash.CancelledError):
                    session.eval(tokens[CUT : CUT + step])
                session.set_tap(None)
                assert session.position == CUT
                actual = session.eval(tokens[CUT:], all_logits=True)
            np.testing.assert_array_equal(actual, expected)


def test_rollback_after_a_cancelled_step(tiny: TinyModel) -> None:
    """What rollback_limit promises after a cancelled step holds: short steps keep the whole reach, long ones none."""
    tokens, cut = tiny.tokens(T, 33), 330
    with pyflash.Model.open(tiny.path, precision="exact", threads=2) as model:
        with model.session(context=T, chunk=T) as session:
            expected = session.eval(tokens, all_logits=True)
        for step, reach in ((1, 256), (100, 256), (128, 256), (129, 0)):
            with model.session(context=T, chunk=300, poison=True) as session:
                session.eval(tokens[:cut])
                session.set_tap(cancel_in_layer(session, tiny.config.num_hidden_layers - 1, "attn_o"))
                with pytest.raises(pyflash.CancelledError):
                    session.eval(tokens[cut : cut + step])
                session.set_tap(None)
                assert session.rollback_limit == reach
                session.rollback(reach)
                actual = session.eval(tokens[cut - reach :], all_logits=True)
            np.testing.assert_array_equal(actual, expected[cut - reach :])


def test_cancel_from_another_thread(tiny: TinyModel, tmp_path: Path) -> None:
    """The running call stops soon, and a request made while nothing runs stops the next call, once."""
    tokens = tiny.tokens(T, 34)
    with pyflash.Model.open(tiny.path, precision="exact", threads=2, isa="scalar") as model:
        with model.session(context=T, chunk=T) as session:
            started = threading.Event()
            session.set_tap(lambda *_: started.set())

            def cancel() -> None:
                started.wait()
                session.cancel()

            thread = threading.Thread(target=cancel)
            thread.start()
            begin = time.monotonic()
            with pytest.raises(pyflash.CancelledError):
                session.eval(tokens)
            thread.join()
            print(f"\nstopped {time.monotonic() - begin:.3f} s after the step began")
            session.set_tap(None)
            assert session.position == 0

            session.cancel()
            with pytest.raises(pyflash.CancelledError):
                session.eval(tokens[:4])
            session.eval(tokens[:4])
            assert session.position == 4
