"""Routed experts that stay with the processor, sent to the device for long chunks: model_params.stream_experts.

Run as on_device.py is: by test_device.py over the emulation of CUDA, or on a machine with a GPU by name. The emulation
does the copies as late as their ordering allows, so that what is not waited for is wrong (cuda_emulation_streams.cpp).
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest

from .on_device import (  # the fixtures compat and tiny too
    CHUNK, CONTEXT, EMULATED, FLAT, LAYERS, SHAPE, T, TinyModel, compat, divergence, free_bytes, logits_of, lose_device,
    make_tiny_model, on_cpu, on_two_threads, open_on, same, tiny, tokens_of,
)  # fmt: skip

LEAST, TRY = 32, 256  # PF_UPLOAD_LEAST and PF_UPLOAD_TRY of csrc/offload/upload_choice.h
EXPERTS = SHAPE["n_routed_experts"]
MATRIX = 64 * 32 * 17 // 32  # bytes of one, of MXFP4


def sending(tiny: TinyModel, precision: str = "fast", stream: str = "on", **options: Any) -> Any:
    return open_on(tiny, precision, stream_experts=stream, **{"cpu_moe": 99, **options})


def close_to(actual: np.ndarray, expected: np.ndarray, tiny: TinyModel) -> None:
    """As on_device.agrees()."""
    assert divergence(expected, actual) < max(1e-6, 4 * divergence(on_cpu(tiny), on_cpu(tiny, "fast")))


# ---- Right ----


@pytest.mark.parametrize("placement", [{}, {"gpu_layers": 4, "cpu_moe": 3}], ids=["all-away", "two-layers-away"])
@pytest.mark.parametrize("precision", ["fast", "int8"])
def test_agrees(compat: TinyModel, precision: str, placement: dict[str, Any]) -> None:
    """Chunks of 64 tokens are sent their experts, the last one of 12 is not; a layer's experts go in pieces of two."""
    n_away = 2 if placement else LAYERS
    expected = on_cpu(compat, precision)
    with sending(compat, precision, **placement) as model:
        assert 0 < model.placement.stream_bytes <= 2 * (2 * 3 * MATRIX + 3 * 256)
        actual = logits_of(model, tokens_of(compat))
        uploads = model.expert_uploads
    assert (uploads.n_sent, uploads.n_kept) == (n_away * (T // CHUNK), 0)
    assert uploads.bytes_sent <= uploads.n_sent * EXPERTS * 3 * MATRIX
    assert divergence(expected, actual) < max(1e-6, 4 * divergence(on_cpu(compat), expected))


def test_agrees_without_sending(compat: TinyModel) -> None:
    """What the device computes with experts that were sent is what it computes with those that it has: the same bits."""
    with sending(compat) as model:
        sent = logits_of(model, tokens_of(compat)[:CHUNK])
        assert model.expert_uploads.n_sent == LAYERS
    with sending(compat, cpu_moe=0) as model:
        assert model.placement.stream_bytes == 0
        same(sent, logits_of(model, tokens_of(compat)[:CHUNK]))


def test_native_model_with_drafts(tiny: TinyModel) -> None:
    """The MTP block's experts are never sent."""
    tokens, drafts = tokens_of(tiny)[:70], []
    for stream in ("off", "on"):
        with sending(tiny, stream=stream) as model, model.session(context=CONTEXT, chunk=CHUNK) as session:
            logits = session.eval(tokens, all_logits=True)
            drafts.append((logits, session.draft(7)[None]))
            assert (model.expert_uploads.n_sent > 0) == (stream == "on")
    for off, on in zip(*drafts):
        assert divergence(off, on) < FLAT


def pieces_with_gaps(chosen: set[int], most: int) -> int:
    """Pieces of at most `most` experts, as they are sent, within which one is not chosen."""
    found, rest = 0, sorted(chosen)
    while rest:
        piece = [expert for expert in rest if expert < rest[0] + most]
        found += piece[-1] - piece[0] + 1 > len(piece)
        rest = rest[len(piece) :]
    return found


def test_experts_that_nobody_chose(tmp_path: Path) -> None:
    """A few tokens again and again choose few of 16 experts; those between them, in pieces of four, are not sent."""
    tiny = make_tiny_model(tmp_path, seed=52, dense="q8_0", **{**SHAPE, "n_routed_experts": 16})
    tokens, results = np.array([7, 200, 31] * 14, np.int32), []
    chosen: dict[int, set[int]] = {layer: set() for layer in range(LAYERS)}

    def note(name: str, layer: int, _position: int, value: np.ndarray) -> None:
        if name == "experts":
            chosen[layer].update(int(expert) for expert in value)

    for stream in ("off", "on"):
        with sending(tiny, stream=stream) as model, model.session(context=CONTEXT, chunk=CHUNK) as session:
            for experts in chosen.values():
                experts.clear()
            session.set_tap(note)
            results.append(session.eval(tokens, all_logits=True))
            uploads = model.expert_uploads
    assert sum(pieces_with_gaps(experts, 4) for experts in chosen.values()) > 0
    assert uploads.n_sent == LAYERS
    assert uploads.bytes_sent == sum(map(len, chosen.values())) * 3 * MATRIX < LAYERS * 16 * 3 * MATRIX
    assert divergence(*results) < FLAT


@pytest.mark.parametrize("n", [LEAST - 1, LEAST])
def test_short_chunks_stay(compat: TinyModel, n: int) -> None:
    with sending(compat) as model:
        logits_of(model, tokens_of(compat)[:n])
        assert (model.expert_uploads.n_sent > 0) == (n >= LEAST)


def test_splits(compat: TinyModel) -> None:
    """The same split, the same bits; another one, within rounding."""
    tokens, parts, at = tokens_of(compat), [], 0
    with sending(compat) as model:
        first = logits_of(model, tokens)
        same(logits_of(model, tokens), first)
        with model.session(context=CONTEXT, chunk=CHUNK, poison=True) as session:
            for n in (33, 5, 40, 1, T):
                parts.append(session.eval(tokens[at : at + n], all_logits=True))
                at = min(T, at + n)
    close_to(np.concatenate(parts), first, compat)


def test_two_threads(compat: TinyModel) -> None:
    tokens = tokens_of(compat)[:70]
    with sending(compat) as model:
        expected = logits_of(model, tokens)
        for result in on_two_threads(lambda: logits_of(model, tokens)):
            same(result, expected)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_cancelled(compat: TinyModel, layer: int) -> None:
    """When the layer's experts are about to be sent; the step after it finds the slots in order."""
    tokens = tokens_of(compat)
    with sending(compat) as model:
        expected = logits_of(model, tokens)
        with model.session(context=CONTEXT, chunk=CHUNK, poison=True) as session:
            session.eval(tokens[:CHUNK])
            session.set_tap(lambda name, at, *_: session.cancel() if (name, at) == ("expert_w", layer) else None)
            with pytest.raises(pyflash.CancelledError):
                session.eval(tokens[CHUNK : 2 * CHUNK])
            session.set_tap(None)
            same(session.eval(tokens[CHUNK:], all_logits=True), expected[CHUNK:])


def test_cancelled_at_any_time(compat: TinyModel) -> None:
    """By another thread, among the pieces too."""
    tokens = tokens_of(compat)
    with sending(compat) as model, model.session(context=CONTEXT, chunk=CHUNK) as session:
        began = time.monotonic()
        expected = session.eval(tokens[:CHUNK], all_logits=True)
        whole = time.monotonic() - began
        for share in (0.2, 0.5, 0.8):
            session.rollback(CHUNK)
            timer = threading.Timer(share * whole, session.cancel)
            timer.start()
            try:
                session.eval(tokens[:CHUNK])
            except pyflash.CancelledError:
                assert session.position == 0
                same(session.eval(tokens[:CHUNK], all_logits=True), expected)
            finally:
                timer.join()


# ---- Where it is off ----


@pytest.mark.parametrize(
    "options",
    [{"precision": "exact"}, {"stream": "off"}, {"expert_budget": 1 << 20}, {"gpu_chunk": LEAST - 1},
     {"stream": "auto", "gpu_chunk": TRY - 1}, {"gpu_layers": 1}],
    ids=["exact", "off", "experts-from-disk", "short-chunks", "auto-short-chunks", "no-layers"],
)  # fmt: skip
def test_off(compat: TinyModel, options: dict[str, Any]) -> None:
    with sending(compat, **options) as model:
        logits_of(model, tokens_of(compat)[:CHUNK])
        assert model.placement.stream_bytes == 0
        uploads = model.expert_uploads
        assert (uploads.n_sent, uploads.n_kept, uploads.bytes_sent) == (0, 0, 0)


def test_refused(compat: TinyModel) -> None:
    with pytest.raises(pyflash.ArgumentError, match="off, on"):
        sending(compat, stream="sometimes")


# ---- Memory ----


@pytest.mark.parametrize("stream", ["auto", "on"])
def test_memory_as_predicted(compat: TinyModel, stream: str) -> None:
    before = free_bytes()
    with sending(compat, stream=stream, gpu_context=600, gpu_chunk=TRY) as model:
        placed = model.placement
        assert placed.stream_bytes > 0
        with model.session(context=600, chunk=TRY) as session:
            session.eval(tokens_of(compat)[:CHUNK])
            assert session.memory.device_cache_bytes == placed.cache_bytes
            assert session.memory.device_buffer_bytes == placed.buffer_bytes
            taken = before - free_bytes()
    predicted = placed.weight_bytes + placed.cache_bytes + placed.buffer_bytes + placed.stream_bytes
    assert abs(taken - predicted) < 0.05 * predicted + (0 if EMULATED else 64 << 20)
    if EMULATED:
        assert free_bytes() == before, "closing gives everything back"


def placed_within(tiny: TinyModel, budget: int, **options: Any) -> tuple[Any, int]:
    with open_on(tiny, "fast", upload=False, stream_experts="on", gpu_budget=budget, **options) as model:
        placed = model.placement
    return placed, placed.weight_bytes + placed.cache_bytes + placed.buffer_bytes + placed.stream_bytes


def test_room_for_sending_is_left(compat: TinyModel) -> None:
    """More of a budget never means fewer layers; nothing goes beyond it; what remains away is sent."""
    whole = placed_within(compat, 0)[1]
    found = []
    for share in range(100, 4, -5):
        placed, used = placed_within(compat, whole * share // 100)
        assert used <= whole * share // 100
        found.append((placed.n_layer, placed.n_expert_layer))
        assert (placed.stream_bytes > 0) <= (placed.n_expert_layer < placed.n_layer)
        if placed.n_layer > 1 and placed.n_expert_layer < placed.n_layer:
            assert placed.stream_bytes > 0
    assert found == sorted(found, reverse=True) and found[0] == (LAYERS, LAYERS) and found[-1][0] == 0


def test_too_little_memory_on_the_device(compat: TinyModel) -> None:
    """Numbers of the caller's that leave no room for sending are no error: nothing is sent."""
    with sending(compat, upload=False) as model:
        placed = model.placement
    without = placed.weight_bytes + placed.cache_bytes + placed.buffer_bytes
    with sending(compat, gpu_budget=without + placed.stream_bytes - 1, gpu_layers=99) as model:
        assert model.placement.stream_bytes == 0 and model.placement.n_layer == LAYERS
        logits = logits_of(model, tokens_of(compat))
        assert model.expert_uploads.n_sent == 0
    with sending(compat, "fast", "off") as model:
        same(logits, logits_of(model, tokens_of(compat)))


@pytest.mark.skipif(not EMULATED, reason="needs a machine without page-locked memory")
def test_no_page_locked_memory(compat: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = free_bytes()
    monkeypatch.setenv("PF_EMULATED_UNLOCKED", "1")
    with sending(compat) as model, model.session(context=CONTEXT, chunk=CHUNK) as session:
        placed = model.placement
        assert placed.stream_bytes == 0
        session.eval(tokens_of(compat)[:CHUNK])
        assert session.memory.device_buffer_bytes == placed.buffer_bytes
        assert before - free_bytes() <= 1.05 * (placed.weight_bytes + placed.cache_bytes + placed.buffer_bytes)
    assert free_bytes() == before


@pytest.mark.skipif(not EMULATED, reason="needs a device that can be made to fail")
def test_a_lost_device(compat: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_of(compat)
    with sending(compat) as model, model.session(context=CONTEXT, chunk=CHUNK) as session:
        session.eval(tokens[:20])
        lose_device(session, tokens[20:84], monkeypatch, at=("expert_w", 2))


# ---- Measured ----


def test_auto_tries_both_sides(compat: TinyModel) -> None:
    """The host and then the device, two layers each; after that it depends on what they took. Short chunks before that
    are the host's."""
    tokens = compat.tokens(TRY + 64, 54)
    with sending(compat, stream="auto", gpu_context=TRY + 64, gpu_chunk=TRY) as model:
        with model.session(context=TRY + 64, chunk=TRY) as session:
            session.eval(tokens[:64])
            uploads = model.expert_uploads
            assert (uploads.n_sent, uploads.n_kept) == (0, LAYERS)
            session.eval(tokens[64:])
            uploads = model.expert_uploads
            assert uploads.n_sent + uploads.n_kept == 2 * LAYERS and uploads.n_sent >= 2
