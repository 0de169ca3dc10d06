"""Often used experts in the device's spare memory: model_params.hot_experts.

Run as on_device.py is: by test_device.py over the emulation of CUDA, or on a machine with a GPU by name. In the emulation
what an unfinished copy goes to is garbage, copies are done as late as their ordering allows, and what a kernel reads is
compared with what is on its way (cuda_emulation_streams.cpp).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pyflash.engine.model
import pytest

from .on_device import (  # the fixtures compat and tiny too
    CHUNK, CONTEXT, EMULATED, FLAT, LAYERS, SHAPE, T, TinyModel, compat, decode, divergence, free_bytes, graphs, logits_of,
    lose_device, make_tiny_model, on_cpu, on_two_threads, open_on, same, tiny, tokens_of,
)  # fmt: skip

EXPERTS, USED = SHAPE["n_routed_experts"], SHAPE["num_experts_per_tok"]
MOST = 31  # PF_HOT_MOST of csrc/offload/hot_experts.h
EXPERT = 3 * 64 * 32 * 17 // 32  # bytes of one, of MXFP4
TABLE = LAYERS * EXPERTS * 4
SLOTS = 4


def bytes_of(slots: int, expert: int = EXPERT, table: int = TABLE) -> int:
    """Room for so many experts, each kind of matrix aligned to 256 bytes."""
    return 3 * (-(-slots * expert // 3 // 256) * 256) + table


def holding(tiny: TinyModel, precision: str = "fast", hot: str | int = "auto", **options: Any) -> Any:
    return open_on(tiny, precision, hot_experts=hot, **{"cpu_moe": 99, "stream_experts": "off", **options})


def close_to(actual: np.ndarray, expected: np.ndarray, tiny: TinyModel) -> None:
    """As on_device.agrees()."""
    assert divergence(expected, actual) < max(1e-6, 4 * divergence(on_cpu(tiny), on_cpu(tiny, "fast")))


# ---- Right ----


@pytest.mark.parametrize(
    ("precision", "placement"),
    [("fast", {}), ("fast", {"hot": bytes_of(SLOTS)}), ("int8", {"hot": bytes_of(SLOTS)}), ("fast", {"hot": bytes_of(1)}),
     ("fast", {"gpu_layers": 4, "cpu_moe": 3})],
    ids=["all", "four-slots", "int8-four-slots", "one-slot", "two-layers-away"],
)  # fmt: skip
def test_agrees(compat: TinyModel, precision: str, placement: dict[str, Any]) -> None:
    """Token by token: nearly all experts are held in the end, or a few of them take turns."""
    with holding(compat, precision, **{**placement, "hot": "off"}) as model:
        expected = logits_of(model, tokens_of(compat))
    n_away = 2 if "gpu_layers" in placement else LAYERS
    with holding(compat, precision, **placement) as model:
        with model.session(context=CONTEXT, chunk=CHUNK, poison=True) as session:
            actual = decode(session, tokens_of(compat))
        hot = model.hot_experts
    assert hot.n_hit + hot.n_missed == T * n_away * USED
    assert hot.n_hit > (T * n_away * USED // 2 if "hot" not in placement else 20)
    assert hot.bytes_sent >= hot.n_brought * EXPERT > 0
    if "hot" in placement:
        assert hot.n_slot < EXPERTS and hot.n_brought - hot.n_replaced <= hot.n_slot
    else:
        assert hot.n_slot == n_away * EXPERTS and hot.n_replaced == 0
    assert divergence(expected, actual) < 1e-5  # at most 6e-7 were seen


def test_what_is_held_is_what_the_device_computes(compat: TinyModel) -> None:
    """All experts held: the bits of the experts placed there."""
    tokens = tokens_of(compat)[:20]
    with holding(compat, cpu_moe=0) as model:
        assert model.placement.hot_bytes == 0
        expected = logits_of(model, tokens)
    with holding(compat) as model:
        warm_up(model, compat)
        before = model.hot_experts
        assert before.n_brought == LAYERS * EXPERTS
        same(logits_of(model, tokens), expected)
        hot = model.hot_experts
        assert (hot.n_missed, hot.n_brought) == (before.n_missed, before.n_brought)
        with model.session(context=CONTEXT, chunk=CHUNK) as session:
            same(decode(session, tokens[:16]), expected[:16])
            before = graphs()
            same(decode(session, tokens[16:]), expected[16:])
            if EMULATED:  # all but the held experts' operation, of at most 8 kernels
                assert graphs().launched - before.launched == 4 * (1 + 2 * LAYERS)
                assert 4 * LAYERS * 6 <= graphs().single - before.single <= 4 * LAYERS * 8


def warm_up(model: Any, tiny: TinyModel) -> None:
    """Until every expert has been used and brought."""
    with model.session(context=512, chunk=CHUNK) as session:
        for token in tiny.tokens(400, 55):
            session.eval([token])
            if model.hot_experts.n_brought == LAYERS * EXPERTS:
                return


def test_native_model_with_drafts(tiny: TinyModel) -> None:
    """The MTP block's experts are never held."""
    tokens, results = tokens_of(tiny)[:60], []
    for hot in ("off", "auto"):
        with holding(tiny, hot=hot) as model, model.session(context=CONTEXT, chunk=CHUNK) as session:
            results.append((decode(session, tokens), session.draft(7)[None]))
            assert (model.hot_experts.n_hit > 0) == (hot == "auto")
    for off, on in zip(*results):
        assert divergence(off, on) < FLAT


@pytest.mark.parametrize("n", [MOST, MOST + 1])
def test_long_chunks_do_without(compat: TinyModel, n: int) -> None:
    """They are counted, though: what a prompt uses is there when the answer begins."""
    with holding(compat) as model, model.session(context=CONTEXT, chunk=CHUNK) as session:
        planned = model.placement.buffer_bytes
        decode(session, tokens_of(compat)[:20])
        before = model.hot_experts
        session.eval(tokens_of(compat)[20 : 20 + n])
        hot = model.hot_experts
        assert (hot.n_hit > before.n_hit) == (n <= MOST)
        assert hot.bytes_sent > before.bytes_sent
        assert session.memory.device_buffer_bytes == planned


def test_beside_sending(compat: TinyModel) -> None:
    expected = on_cpu(compat, "fast")
    with holding(compat, stream_experts="on", hot=bytes_of(SLOTS)) as model:
        with model.session(context=CONTEXT, chunk=CHUNK, poison=True) as session:
            parts = [decode(session, tokens_of(compat)[:30])]
            parts.append(session.eval(tokens_of(compat)[30:110], all_logits=True))
            parts.append(decode(session, tokens_of(compat)[110:]))
        assert model.expert_uploads.n_sent == LAYERS and model.hot_experts.n_hit > 0
    close_to(np.concatenate(parts), expected, compat)


def test_two_threads(compat: TinyModel) -> None:
    tokens = tokens_of(compat)[:50]
    expected = on_cpu(compat, "fast")[:50]
    with holding(compat, hot=bytes_of(SLOTS)) as model:

        def evaluate() -> np.ndarray:
            with model.session(context=CONTEXT, chunk=CHUNK) as session:
                return decode(session, tokens)

        for result in on_two_threads(evaluate):
            close_to(result, expected, compat)


# ---- Which ones ----


def test_follows_the_conversation(compat: TinyModel) -> None:
    """The same token again and again: its experts come and are held, whatever the slots held before; and then nothing is
    replaced any more."""
    with holding(compat, hot=bytes_of(LAYERS * USED + 2)) as model:
        with model.session(context=512, chunk=CHUNK) as session:
            decode(session, np.full(50, 7, np.int32))
            before = model.hot_experts
            decode(session, np.full(20, 200, np.int32))
            first = model.hot_experts
            decode(session, np.full(180, 200, np.int32))
            middle = model.hot_experts
            assert middle.n_replaced > first.n_replaced
            decode(session, np.full(20, 200, np.int32))
            hot = model.hot_experts
            assert hot.n_hit - middle.n_hit > 0.75 * 20 * LAYERS * USED > first.n_hit - before.n_hit
            assert hot.n_replaced - middle.n_replaced <= 1


def test_does_not_thrash(compat: TinyModel) -> None:
    """Experts that are used in turns stay where they are, though those used last are ahead by a little every time."""
    with holding(compat, hot=bytes_of(SLOTS)) as model, model.session(context=512, chunk=CHUNK) as session:
        turns = np.tile(np.repeat(np.array([7, 200, 31, 90], np.int32), 8), 5)
        decode(session, turns[:64])
        before = model.hot_experts
        decode(session, turns[64:])
        hot = model.hot_experts
        assert hot.n_missed - before.n_missed > 96 * LAYERS * USED // 2
        assert hot.n_replaced - before.n_replaced <= 1


@pytest.mark.skipif(not EMULATED, reason="needs copies that take long")
def test_nothing_waits_for_a_copy(compat: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that never end hold nothing up, and nothing counts as held."""
    with holding(compat, "fast", "off") as model, model.session(context=CONTEXT, chunk=CHUNK) as session:
        expected = decode(session, tokens_of(compat)[:30])
    monkeypatch.setenv("PF_EMULATED_QUERIES", "1000000")
    with holding(compat) as model:
        with model.session(context=CONTEXT, chunk=CHUNK) as session:
            same(decode(session, tokens_of(compat)[:30]), expected)
            hot = model.hot_experts
            assert (hot.n_hit, hot.n_brought) == (0, 0)
            assert 0 < hot.bytes_sent <= 2 * (EXPERT // 4 + 1), "no page-locked buffer is filled again before it was read"
            monkeypatch.delenv("PF_EMULATED_QUERIES")
            decode(session, tokens_of(compat)[30:60])
            assert model.hot_experts.n_hit > 0


def test_cancelled(compat: TinyModel) -> None:
    tokens = tokens_of(compat)
    expected = on_cpu(compat, "fast")
    with holding(compat, hot=bytes_of(SLOTS)) as model:
        with model.session(context=CONTEXT, chunk=CHUNK, poison=True) as session:
            parts = []
            for at in range(40):
                layer = at % LAYERS
                session.set_tap(lambda name, l, *_: session.cancel() if (name, l) == ("expert_w", layer) else None)
                with pytest.raises(pyflash.CancelledError):
                    session.eval(tokens[at : at + 1])
                session.set_tap(None)
                parts.append(session.eval(tokens[at : at + 1]))
    close_to(np.stack(parts), expected[:40], compat)


# ---- Where it is off ----


@pytest.mark.parametrize(
    "options",
    [{"precision": "exact"}, {"hot": "off"}, {"hot": EXPERT - 1}, {"expert_budget": 1 << 20}, {"gpu_layers": 1},
     {"cpu_moe": 0}],
    ids=["exact", "off", "smaller-than-one", "experts-from-disk", "no-layers", "all-there"],
)  # fmt: skip
def test_off(compat: TinyModel, options: dict[str, Any]) -> None:
    with holding(compat, **options) as model:
        with model.session(context=CONTEXT, chunk=CHUNK) as session:
            decode(session, tokens_of(compat)[:10])
        assert model.placement.hot_bytes == 0
        assert model.hot_experts == pyflash.engine.model.HotExperts(0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("size", ["sometimes", 0, -1])
def test_refused(compat: TinyModel, size: Any) -> None:
    with pytest.raises(pyflash.ArgumentError, match="hot_experts"):
        holding(compat, hot=size)


# ---- Memory ----


@pytest.mark.parametrize("stream", ["off", "on"])
@pytest.mark.parametrize("hot", ["auto", bytes_of(SLOTS)], ids=["auto", "four-slots"])
def test_memory_as_predicted(compat: TinyModel, hot: Any, stream: str) -> None:
    before = free_bytes()
    with holding(compat, hot=hot, stream_experts=stream, gpu_context=600) as model:
        placed = model.placement
        assert placed.hot_bytes == bytes_of(LAYERS * EXPERTS if hot == "auto" else SLOTS)
        with model.session(context=600, chunk=CHUNK) as session:
            session.eval(tokens_of(compat)[:CHUNK])
            decode(session, tokens_of(compat)[:20])
            session.eval(tokens_of(compat)[:MOST])
            assert session.memory.device_cache_bytes == placed.cache_bytes
            assert session.memory.device_buffer_bytes == placed.buffer_bytes
            taken = before - free_bytes()
    predicted = together(placed)
    assert abs(taken - predicted) < 0.05 * predicted + (0 if EMULATED else 64 << 20)
    if EMULATED:
        assert free_bytes() == before, "closing gives everything back"


def together(placed: Any) -> int:
    return int(placed.weight_bytes + placed.cache_bytes + placed.buffer_bytes + placed.stream_bytes + placed.hot_bytes)


def test_takes_what_is_left(compat: TinyModel) -> None:
    """Within a budget, all but less than a slot's bytes; and never a layer's place."""
    with holding(compat, upload=False) as model:
        most = model.placement
    for slots in (0, 1, 5, 17):
        budget = together(most) - most.hot_bytes + bytes_of(slots) + (EXPERT if slots else 0) // 2
        with holding(compat, upload=False, gpu_budget=budget) as model:
            placed = model.placement
            assert together(placed) <= budget
            assert model.hot_experts.n_slot == slots and placed.n_layer == LAYERS


def test_automatic_plan(compat: TinyModel) -> None:
    """Experts of whole layers go first; a part of the next one is held."""
    def placed_within(budget: int) -> Any:
        with open_on(compat, "fast", upload=False, stream_experts="off", hot_experts="auto", gpu_budget=budget) as model:
            return model.placement

    whole = together(placed_within(0))
    found = []
    for share in range(100, 4, -5):
        placed = placed_within(whole * share // 100)
        assert together(placed) <= whole * share // 100
        assert (placed.hot_bytes > 0) <= (placed.n_expert_layer < placed.n_layer)
        found.append((placed.n_layer, placed.n_expert_layer))
    assert found == sorted(found, reverse=True)


@pytest.mark.skipif(not EMULATED, reason="needs a machine without page-locked memory")
def test_no_page_locked_memory(compat: TinyModel, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    before = free_bytes()
    monkeypatch.setenv("PF_EMULATED_UNLOCKED", "1")
    with caplog.at_level("INFO", "pyflash"), holding(compat) as model:
        placed = model.placement
        assert placed.hot_bytes == 0 and "often used experts" in caplog.text
        with model.session(context=CONTEXT, chunk=CHUNK) as session:
            decode(session, tokens_of(compat)[:5])
            assert session.memory.device_buffer_bytes == placed.buffer_bytes
    assert free_bytes() == before


@pytest.mark.skipif(not EMULATED, reason="needs a small device")
def test_sessions_come_first(tmp_path: Path, caplog: Any) -> None:
    """A session that finds no memory takes that of the experts; the others go on without them. Experts this wide take
    most of a step's scratch, which was planned."""
    large = make_tiny_model(tmp_path, seed=57, dense="q8_0", **{**SHAPE, "n_routed_experts": 64,
                            "moe_intermediate_size": 1024, "num_hidden_layers": 4})  # fmt: skip
    before, tokens = free_bytes(), large.tokens(40, 58)
    with holding(large, gpu_chunk=MOST) as model, caplog.at_level("INFO", "pyflash"):
        assert model.placement.hot_bytes == bytes_of(4 * 64, 3 * 64 * 1024 * 17 // 32, 4 * 64 * 4)
        sessions = [model.session(context=CONTEXT, chunk=MOST)]
        decode(sessions[0], tokens[:30])
        sessions[0].eval(tokens[:MOST])
        assert sessions[0].memory.device_buffer_bytes == model.placement.buffer_bytes
        hits = model.hot_experts.n_hit
        assert hits > 0
        while "needed for a session" not in caplog.text:
            sessions.append(model.session(context=1 << 16, chunk=CHUNK))
            assert 0 < sessions[-1].memory.device_cache_bytes < model.placement.hot_bytes
        decode(sessions[0], tokens[30:])
        assert model.hot_experts.n_hit == hits
        for session in sessions:
            session.close()
    assert free_bytes() == before


@pytest.mark.skipif(not EMULATED, reason="needs a device that can be made to fail")
def test_a_lost_device(compat: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = free_bytes()
    with holding(compat) as model, model.session(context=CONTEXT, chunk=CHUNK) as session:
        decode(session, tokens_of(compat)[:20])
        lose_device(session, tokens_of(compat)[20:21], monkeypatch, at=("expert_w", 2))
    assert free_bytes() == before
