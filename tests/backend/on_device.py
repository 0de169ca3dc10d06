"""Models with layers on a device: their results against the processor's, and everything a session can do with them.

Not collected by itself. test_device.py runs it over the emulation of CUDA; on a machine with a GPU, with pyflash built
with -DPYFLASH_CUDA=ON: `python -m pytest tests/backend/on_device.py`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyflash
import pytest
from pyflash.native.library import ffi, lib

sys.path.append(str(Path(__file__).resolve().parent.parent / "model"))

from tiny_models import TinyModel, make_tiny_model

EMULATED = "PF_EMULATED_STRICT" in os.environ
T, CONTEXT, CHUNK = 140, 192, 64
LAYERS = 4
# gpu_layers counts the output first: 3 are the last two layers (HCA and CSA) and the output.
PLACEMENTS: dict[str, dict[str, Any]] = {
    "all": {}, "experts-on-cpu": {"cpu_moe": 99}, "output-only": {"gpu_layers": 1},
    "two-layers-one-expert": {"gpu_layers": 3, "cpu_moe": 3},
}  # fmt: skip
SHAPE = {
    "num_hidden_layers": LAYERS, "compress_ratios": [0, 4, 128, 4, 0], "num_hash_layers": 1, "hidden_size": 64,
    "num_attention_heads": 2, "o_groups": 1, "o_lora_rank": 32, "q_lora_rank": 32, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "vocab_size": 256, "sliding_window": 24, "index_topk": 12,
    "index_n_heads": 2,
}  # fmt: skip
FLAT = 1e-3  # nats: how far distributions may be apart through fast's rounding alone


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """FP8 and FP4 weights, an MTP block, every kind of layer."""
    return make_tiny_model(tmp_path_factory.mktemp("device"), seed=51, profile="native", mtp=True, **SHAPE)


@pytest.fixture(scope="module")
def compat(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Q8_0 and MXFP4 weights."""
    return make_tiny_model(tmp_path_factory.mktemp("device-q8"), seed=52, dense="q8_0", **SHAPE)


def tokens_of(model: TinyModel) -> np.ndarray:
    return model.tokens(T, 53)


def open_on(tiny: TinyModel, precision: str = "exact", **options: Any) -> Any:
    """Without hot experts: with them results depend on what came before (on_device_hot.py)."""
    options = {"gpu_context": CONTEXT, "gpu_chunk": CHUNK, "threads": 2, "hot_experts": "off", **options}
    return pyflash.Model.open(tiny.path, precision=precision, **{"device": "cuda", **options})


def logits_of(model: Any, tokens: np.ndarray, **options: Any) -> np.ndarray:
    with model.session(context=CONTEXT, chunk=CHUNK, poison=True, **options) as session:
        return session.eval(tokens, all_logits=True)


def on_cpu(tiny: TinyModel, precision: str = "exact", **options: Any) -> np.ndarray:
    with pyflash.Model.open(tiny.path, device="cpu", precision=precision, threads=2) as model:
        return logits_of(model, tokens_of(tiny), **options)


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of b's distributions from a's, nats."""
    p, q = (x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64), -1, keepdims=True) for x in (a, b))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


# ---- Right ----


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_exact_agrees(tiny: TinyModel, placement: str) -> None:
    expected = on_cpu(tiny)
    with open_on(tiny, **PLACEMENTS[placement]) as model:
        actual = logits_of(model, tokens_of(tiny))
    scale = np.abs(expected).max(-1)
    error = np.abs(actual - expected).max(-1) / scale
    assert np.median(error) < 3e-6, "beyond what the order of sums explains"
    assert np.mean(error > 1e-4) < 0.05, "more than a row chosen otherwise at a near tie"


@pytest.mark.parametrize("cache", ["f16", "reference"])
@pytest.mark.parametrize("placement", ["all", "two-layers-one-expert"])
def test_fast_agrees(compat: TinyModel, placement: str, cache: str) -> None:
    agrees(compat, "fast", cache, PLACEMENTS[placement])


def test_int8_agrees(compat: TinyModel) -> None:
    agrees(compat, "int8", "f16", {"cpu_moe": 2})


def agrees(tiny: TinyModel, precision: str, cache: str, placement: dict[str, Any]) -> None:
    """Two placements are no further apart than each may be from exact: a value that lies near the edge between two codes
    may fall to the other side on either of them. Divergence grows with the square of the distance, hence the 4."""
    expected = on_cpu(tiny, precision, cache=cache)
    with open_on(tiny, precision, gpu_cache=cache, **placement) as model:
        actual = logits_of(model, tokens_of(tiny), cache=cache)
    assert divergence(expected, actual) < max(1e-6, 4 * divergence(on_cpu(tiny), expected))


def test_drafts_agree(tiny: TinyModel) -> None:
    """The MTP block stays with the processor, and takes streams and the output from the device."""
    tokens = tokens_of(tiny)[:70]
    drafts = []
    for options in ({"device": "cpu"}, {"device": "cuda", "cpu_moe": 2}, {"device": "cuda", "gpu_layers": 1}):
        with pyflash.Model.open(tiny.path, precision="exact", **options) as model:
            with model.session(context=CONTEXT, chunk=CHUNK) as session:
                session.eval(tokens)
                drafts.append(session.draft(7))
    for draft in drafts[1:]:
        assert np.abs(draft - drafts[0]).max() < 1e-4 * np.abs(drafts[0]).max()


def test_taps_come_from_the_device(tiny: TinyModel) -> None:
    tokens = tokens_of(tiny)[:60]
    seen: list[dict[tuple[str, int, int], np.ndarray]] = []
    for device in ("cpu", "cuda"):
        values: dict[tuple[str, int, int], np.ndarray] = {}
        cpu_moe = 1 if device == "cuda" else None
        with pyflash.Model.open(tiny.path, precision="exact", device=device, cpu_moe=cpu_moe) as model:
            with model.session(context=CONTEXT, chunk=CHUNK) as session:
                session.set_tap(lambda name, layer, position, value: values.update({(name, layer, position): value}))
                session.eval(tokens)
        seen.append(values)
    cpu, device_values = seen
    assert cpu.keys() == device_values.keys()
    for key, value in cpu.items():
        if value.dtype == np.int32:
            assert len(value) == len(device_values[key]), key
        elif key[0] == "attn_in" and key[1] == 0:  # before anything can be chosen otherwise
            np.testing.assert_allclose(device_values[key], value, rtol=1e-4, atol=1e-5, err_msg=str(key))


# ---- The same bits, however a sequence is taken ----


@pytest.fixture(scope="module")
def mixed(tiny: TinyModel) -> Iterator[Any]:
    """Layers on both sides, and experts of a device's layer on the processor."""
    with open_on(tiny, "fast", gpu_layers=4, cpu_moe=2) as model:
        placed = model.placement
        assert (placed.n_layer, placed.n_expert_layer, placed.head) == (3, 2, True)
        yield model


@pytest.fixture(scope="module")
def reference(mixed: Any, tiny: TinyModel) -> np.ndarray:
    return logits_of(mixed, tokens_of(tiny))


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    wrong = np.flatnonzero((actual.view(np.uint32) != expected.view(np.uint32)).any(-1))
    assert len(wrong) == 0, f"{len(wrong)} of {len(actual)} positions differ, the first is {wrong[0]}"


def test_split_into_calls(mixed: Any, tiny: TinyModel, reference: np.ndarray) -> None:
    tokens = tokens_of(tiny)
    parts, at = [], 0
    with mixed.session(context=CONTEXT, chunk=CHUNK, poison=True) as session:
        for n in (1, 3, 40, 64, 7, 1, 1, T):
            parts.append(session.eval(tokens[at : at + n], all_logits=True))
            at = min(T, at + n)
    same(np.concatenate(parts), reference)


def test_rollback_and_checkpoint(mixed: Any, tiny: TinyModel, reference: np.ndarray) -> None:
    tokens = tokens_of(tiny)
    with mixed.session(context=CONTEXT, chunk=CHUNK, poison=True) as session:
        session.eval(tokens[:70])
        session.checkpoint()
        session.eval(tokens[::-1][:60])
        session.rollback(60)
        same(session.eval(tokens[70:], all_logits=True), reference[70:])


def test_save_and_load(mixed: Any, tiny: TinyModel, reference: np.ndarray, tmp_path: Path) -> None:
    """A file is the same wherever the layers are: it goes on on the processor alone, too."""
    tokens, file = tokens_of(tiny), tmp_path / "kept"
    with mixed.session(context=CONTEXT, chunk=CHUNK) as session:
        session.eval(tokens[:90])
        session.save(file)
    with mixed.session(context=CONTEXT, chunk=CHUNK, poison=True) as session:
        session.load(file)
        same(session.eval(tokens[90:], all_logits=True), reference[90:])
    with pyflash.Model.open(tiny.path, device="cpu", precision=mixed.info.precision) as model:
        with model.session(context=CONTEXT, chunk=CHUNK, poison=True) as session:
            session.load(file)
            assert divergence(reference[90:], session.eval(tokens[90:], all_logits=True)) < FLAT


def test_parts(mixed: Any, tiny: TinyModel, reference: np.ndarray) -> None:
    """Rows and tails go out of a session and into another one, from both sides to both sides."""
    tokens = tokens_of(tiny)
    with mixed.session(context=CONTEXT, chunk=CHUNK) as session:
        session.eval(tokens[:60])
        session.checkpoint()
        session.eval(tokens[60:90])
        parts = [(end, session.export_rows(0, end), session.export_tail(end)) for end in (60, 90)]
        told = session.parts
        assert (told.n_device_layers, told.n_device_expert_layers) == (3, 2) and told.kernels.endswith("+cuda")
    for position, rows, tail in parts:
        with mixed.session(context=CONTEXT, chunk=CHUNK, poison=True) as session:
            session.import_rows(0, position, rows)
            session.import_tail(tokens[:position], tail)
            same(session.eval(tokens[position:], all_logits=True), reference[position:])


@pytest.mark.parametrize("step", [30, 64])
def test_cancelled_step(mixed: Any, tiny: TinyModel, reference: np.ndarray, step: int) -> None:
    tokens = tokens_of(tiny)
    with mixed.session(context=CONTEXT, chunk=CHUNK, poison=True) as session:
        session.eval(tokens[:50])
        session.set_tap(lambda name, layer, *_: session.cancel() if (name, layer) == ("ffn_norm", 2) else None)
        with pytest.raises(pyflash.CancelledError):
            session.eval(tokens[50 : 50 + step])
        session.set_tap(None)
        assert session.position == 50
        same(session.eval(tokens[50:], all_logits=True), reference[50:])


def on_two_threads(evaluate: Callable[[], np.ndarray]) -> list[np.ndarray]:
    both = threading.Barrier(2)

    def work(_: int) -> np.ndarray:
        both.wait()
        return evaluate()

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, range(2)))


def test_two_threads(mixed: Any, tiny: TinyModel, reference: np.ndarray) -> None:
    tokens = tokens_of(tiny)[:40]

    def evaluate() -> np.ndarray:
        with mixed.session(context=CONTEXT, chunk=16) as session:
            return session.eval(tokens, all_logits=True)

    for result in on_two_threads(evaluate):
        same(result, reference[:40])


def test_experts_from_disk(compat: TinyModel) -> None:
    """Under a budget the experts that stay with the processor are read ahead; those on the device are none of it."""
    tokens = tokens_of(compat)[:40]
    with open_on(compat, "exact", cpu_moe=3) as model:
        expected = logits_of(model, tokens)
        host_bytes = model.expert_reads.expert_bytes
    with open_on(compat, "exact", cpu_moe=3, expert_budget=1) as model:
        same(logits_of(model, tokens), expected)
        reads = model.expert_reads
    with pyflash.Model.open(compat.path, device="cpu") as model:
        assert host_bytes == reads.expert_bytes == model.expert_reads.expert_bytes * 3 // LAYERS
    assert reads.n_read > 0


# ---- Memory ----


def free_bytes() -> int:
    info, error = ffi.new("pf_device_info *"), ffi.new("pf_error *")
    info.struct_size = ffi.sizeof("pf_device_info")
    assert lib.pf_device_describe(b"cuda", 0, info, error) == lib.PF_OK
    return int(info.free_bytes)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_memory_as_predicted(tiny: TinyModel, placement: str) -> None:
    before = free_bytes()
    with open_on(tiny, **PLACEMENTS[placement]) as model:
        placed = model.placement
        with model.session(context=CONTEXT, chunk=CHUNK) as session:
            session.eval(tokens_of(tiny)[:CHUNK])
            session.draft(3)
            assert session.memory.device_cache_bytes == placed.cache_bytes
            assert session.memory.device_buffer_bytes == placed.buffer_bytes
            taken = before - free_bytes()
    predicted = placed.weight_bytes + placed.cache_bytes + placed.buffer_bytes
    assert abs(taken - predicted) < 0.05 * predicted + (0 if EMULATED else 64 << 20)
    if EMULATED:
        assert free_bytes() == before, "closing gives everything back"


def test_as_many_layers_as_fit(tiny: TinyModel) -> None:
    """More of a budget never means fewer layers; nothing goes beyond it; experts come after everything else."""
    def taken(**options: Any) -> tuple[int, tuple[int, int]]:
        with open_on(tiny, upload=False, **options) as model:
            placed = model.placement
        return placed.weight_bytes + placed.cache_bytes + placed.buffer_bytes, (placed.n_layer, placed.n_expert_layer)

    whole, dense = taken()[0], taken(cpu_moe=99)[0]
    found = []
    for share in (1, 0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
        budget = int(whole * share)
        used, layers = taken(gpu_budget=budget)
        assert used <= budget
        found.append(layers)
    assert found[0] == (LAYERS, LAYERS) and found[-1][0] < LAYERS
    assert found == sorted(found, reverse=True)
    _, (n_layer, n_expert_layer) = taken(gpu_budget=(whole + dense) // 2)
    assert n_layer == LAYERS and 0 < n_expert_layer < LAYERS


def test_too_much_is_refused(tiny: TinyModel) -> None:
    with pytest.raises(pyflash.MemoryLimitError, match="fewer"):
        open_on(tiny, gpu_layers=99, cpu_moe=0, gpu_budget=1 << 20)
    before = free_bytes()
    with pytest.raises(pyflash.MemoryLimitError):
        open_on(tiny, gpu_layers=99, gpu_budget=1 << 16)
    if EMULATED:
        assert free_bytes() == before


@pytest.mark.skipif(not EMULATED, reason="needs a small device")
def test_session_too_large_for_the_device(tiny: TinyModel) -> None:
    with open_on(tiny) as model:
        sessions: list[Any] = []
        with pytest.raises(pyflash.MemoryLimitError, match="device"):
            while len(sessions) < 100:
                sessions.append(model.session(context=1 << 20))
        for session in sessions:
            session.close()
        assert np.isfinite(logits_of(model, tokens_of(tiny)[:20])).all()


def test_nothing_is_evaluated_before_the_weights_are_there(tiny: TinyModel) -> None:
    with open_on(tiny, upload=False) as model, model.session(context=CONTEXT) as session:
        with pytest.raises(pyflash.ArgumentError, match="pf_model_upload"):
            session.eval([1])


def test_a_device_that_nobody_named(tiny: TinyModel) -> None:
    """Programs that know nothing of devices need not send anything: the first evaluation does."""
    with open_on(tiny) as model:
        expected = logits_of(model, tokens_of(tiny)[:20])
    for upload in (True, False):
        with open_on(tiny, device="auto", upload=upload) as model:
            assert model.placement.n_layer == LAYERS
            same(logits_of(model, tokens_of(tiny)[:20]), expected)
    with open_on(tiny, device="auto", upload=False) as model, model.session(context=CONTEXT) as session:
        session.cancel()
        with pytest.raises(pyflash.CancelledError):
            session.eval([1])
        assert session.position == 0 and session.eval([1]).shape == expected[0].shape
    with open_on(tiny, device="auto", gpu_layers=0) as model:
        assert model.placement.total_bytes == 0


def test_progress_of_sending(tiny: TinyModel) -> None:
    seen: list[tuple[int, int]] = []
    with open_on(tiny, progress=lambda done, total: seen.append((done, total))) as model:
        assert seen[-1][0] == seen[-1][1] <= model.placement.weight_bytes


def lose_device(session: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch, at: tuple[str, int] | None = None) -> None:
    """Evaluates, with the device lost from the start or at a layer's tap; the session has to stay where it is."""
    position = session.position

    def lose(name: str, layer: int, *_: Any) -> None:
        if (name, layer) == at:
            monkeypatch.setenv("PF_EMULATED_LOST", "1")

    if at is None:
        monkeypatch.setenv("PF_EMULATED_LOST", "1")
    else:
        session.set_tap(lose)
    with pytest.raises(pyflash.DeviceError):
        session.eval(tokens)
    monkeypatch.delenv("PF_EMULATED_LOST")
    session.set_tap(None)
    with pytest.raises(pyflash.DeviceError, match="open the model again"):
        session.eval([1])
    assert session.position == position


@pytest.mark.skipif(not EMULATED, reason="needs a device that can be made to fail")
def test_a_lost_device(tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every later call says so; the processor goes on with what was saved."""
    tokens = tokens_of(tiny)
    with open_on(tiny, cpu_moe=3) as model, model.session(context=CONTEXT, chunk=CHUNK) as session:
        session.eval(tokens[:20])
        session.save(tmp_path / "kept")
        lose_device(session, tokens[20:], monkeypatch)
        for call in (lambda: session.rollback(1), lambda: session.save(tmp_path / "more"), session.checkpoint,
                     lambda: model.session(context=CONTEXT)):
            with pytest.raises(pyflash.DeviceError, match="open the model again"):
                call()
        assert not (tmp_path / "more").exists()
    with pyflash.Model.open(tiny.path, device="cpu", precision="exact") as model, model.session(context=CONTEXT) as session:
        session.load(tmp_path / "kept")
        assert session.position == 20


def in_child(work: Callable[[], object]) -> int:
    """The exit status of a forked child that does this; it is killed after a minute."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child(tiny: TinyModel) -> None:
    """Says where to open the model, computes by the processor alone, and closes without touching the device."""
    tokens = tokens_of(tiny)[:20]
    with open_on(tiny, cpu_moe=3) as model, model.session(context=CONTEXT, chunk=CHUNK) as session:
        wanted = session.eval(tokens)
        session.rollback(len(tokens))

        def work() -> None:
            for call in (lambda: session.eval(tokens), lambda: session.rollback(0), lambda: model.session(context=CONTEXT)):
                with pytest.raises(pyflash.DeviceError, match="open the model after forking"):
                    call()
            session.close()
            model.close()
            with pytest.raises(pyflash.DeviceError, match="after forking"):
                pyflash.Model.open(tiny.path, device="cuda")
            with pyflash.Model.open(tiny.path, device="auto") as own, own.session(context=CONTEXT) as mine:
                mine.eval(tokens)

        assert in_child(work) == 0
        assert np.array_equal(session.eval(tokens), wanted)


# ---- Decoding from recordings: csrc/step/recording.h ----


class GraphCounts(ctypes.Structure):
    """pf_emulated_graphs of cuda_emulation.cpp."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("made", "launched", "alive", "single")]


class Graphs(NamedTuple):
    made: int
    launched: int
    alive: int  # now
    single: int  # kernels that no graph launched


def emulation() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(os.environ["PYFLASH_LIBRARY"]).parent / "libpyflash_cuda.so"))


def graphs() -> Graphs:
    """So far; nothing but zeros on a real device."""
    if not EMULATED:
        return Graphs(0, 0, 0, 0)
    counts = GraphCounts.in_dll(emulation(), "pf_emulated_graphs")
    return Graphs(counts.made, counts.launched, counts.alive, counts.single)


@contextmanager
def before_each(call: Callable[[], None]) -> Iterator[None]:
    """Has it called before whatever is queued for the emulated device, or recorded."""
    function = ctypes.CFUNCTYPE(None)(call)
    hook = ctypes.c_void_p.in_dll(emulation(), "pf_emulated_hook")
    hook.value = ctypes.cast(function, ctypes.c_void_p).value
    try:
        yield
    finally:
        hook.value = None


def decode(session: Any, tokens: np.ndarray) -> np.ndarray:
    return np.stack([session.eval([token]) for token in tokens])


# With the pieces of a token, and the kinds of all pieces: with and without a row of ratio 4 and of 128, with and without
# the indexer, where a piece has layers that need to know.
RECORDED: dict[str, tuple[dict[str, Any], int, int]] = {
    "all": ({}, 1, 5), "three-layers-two-experts": ({"gpu_layers": 4, "cpu_moe": 2}, 3, 4 + 1 + 5),
    "experts-on-cpu": ({"cpu_moe": 99}, 1 + 2 * LAYERS, LAYERS + 1 + 4 + 2 + 4 + 1),
}  # fmt: skip


@pytest.mark.parametrize(("placement", "precision"), [("all", "exact"), *((name, "fast") for name in RECORDED)])
def test_decoding_is_replayed(tiny: TinyModel, placement: str, precision: str) -> None:
    """The bits of a sequence evaluated in chunks, without recordings: before and after the indexer chooses (from position
    51 on), with and without a completed row of ratio 4 and 128; and memory as planned."""
    tokens = tokens_of(tiny)
    options, n_piece, n_kind = RECORDED[placement]
    with open_on(tiny, precision, **options) as model:
        expected = logits_of(model, tokens)
        before = graphs()
        with model.session(context=CONTEXT, chunk=CHUNK, poison=True) as session:
            for begin, end in [(0, 9), (41, 64), (120, 135)]:
                session.eval(tokens[session.position : begin]) if begin > 0 else None
                same(decode(session, tokens[begin:end]), expected[begin:end])
            for _ in range(3):  # row 0 of ratio 128: computed before, recorded, replayed
                session.rollback(session.position - 127)
                single = graphs().single
                same(decode(session, tokens[127:130]), expected[127:130])
            assert graphs().single == single, "all of a token is in graphs"
            session.eval(tokens[130:])
            made, launched, alive, _ = (now - then for now, then in zip(graphs(), before))
            draft = session.draft(7)
            assert session.memory.device_buffer_bytes == model.placement.buffer_bytes
            if EMULATED:
                assert made == alive == n_kind
                assert launched == n_piece * (9 + 23 + 15 + 3 * 3) - made, "the first of every kind is computed"
        assert graphs().alive == before.alive, "closing drops them"
        with model.session(context=CONTEXT, chunk=CHUNK) as session:
            session.eval(tokens)
            same(session.draft(7)[None], draft[None])


PIECES = 5  # of a token of `parted`: layer 0, its shared expert, layer 1, its shared expert, the rest


@pytest.fixture(scope="module")
def parted(tiny: TinyModel) -> Iterator[tuple[Any, np.ndarray]]:
    """All layers on the device, the experts of the last two, too; and the logits of tokens_of() without recordings."""
    with open_on(tiny, "fast", cpu_moe=2) as model:
        yield model, logits_of(model, tokens_of(tiny))


def test_replayed_sessions_do_not_meet(parted: tuple[Any, np.ndarray], tiny: TinyModel) -> None:
    model, expected = parted
    tokens = tokens_of(tiny)
    others = tokens[::-1].copy()
    expected_others = logits_of(model, others[:60])
    found: list[list[np.ndarray]] = [[], []]
    before = graphs().launched
    with model.session(context=CONTEXT, chunk=CHUNK, poison=True) as a:
        with model.session(context=2 * CONTEXT, chunk=16, poison=True) as b:
            a.eval(tokens[:7])
            for i in range(60):
                found[1].append(b.eval(others[i : i + 1]))
                if i % 3 > 0:
                    found[0].append(a.eval(tokens[len(found[0]) + 7 :][:1]))
        rest = decode(a, tokens[len(found[0]) + 7 :][:20])
    same(np.stack(found[1]), expected_others)
    same(np.concatenate([np.stack(found[0]), rest]), expected[7:67])
    launched = PIECES * (60 + 40 + 20) - 2 * (1 + 1 + 4 + 1 + 4)
    assert not EMULATED or graphs().launched - before == launched, "all but the first of a piece's kinds in each"


def test_replayed_after_everything_else(parted: tuple[Any, np.ndarray], tiny: TinyModel, tmp_path: Path) -> None:
    """Rolled back, from a checkpoint, from a file, after taps, and after chunks."""
    model, expected = parted
    tokens = tokens_of(tiny)
    with model.session(context=CONTEXT, chunk=CHUNK, poison=True) as session:
        same(decode(session, tokens[:40]), expected[:40])
        session.checkpoint()
        decode(session, tokens[::-1][:30])
        session.rollback(30)
        same(decode(session, tokens[40:60]), expected[40:60])
        session.save(tmp_path / "kept")
        launched = graphs().launched
        session.set_tap(lambda *_: None)
        same(decode(session, tokens[60:64]), expected[60:64])
        session.set_tap(None)
        assert graphs().launched == launched, "nothing is replayed for a tap"
        same(decode(session, tokens[64:90]), expected[64:90])
        same(session.eval(tokens[90:120], all_logits=True), expected[90:120])
        made = graphs().made
        same(decode(session, tokens[120:]), expected[120:])
        session.load(tmp_path / "kept")
        launched = graphs().launched
        same(decode(session, tokens[60:]), expected[60:])
        if EMULATED:
            assert graphs().launched - launched == PIECES * 80
            assert graphs().made - made == 1, "with a row of ratio 128, the second time"


def test_recorded_anew_where_scratch_has_moved(tmp_path: Path) -> None:
    """Steps with all logits take more than was planned."""
    wide = make_tiny_model(tmp_path, seed=56, **{**SHAPE, "num_hidden_layers": 2, "compress_ratios": [4, 128, 0],
                           "vocab_size": 4096})  # fmt: skip
    tokens = wide.tokens(52, 53)
    with open_on(wide, "fast", cpu_moe=1) as model:
        expected = logits_of(model, tokens)
        with model.session(context=CONTEXT, chunk=28, poison=True) as session:
            planned = session.memory.device_buffer_bytes
            for begin in (0, 40):
                made = graphs().made
                same(decode(session, tokens[begin : begin + 12]), expected[begin : begin + 12])
                assert not EMULATED or graphs().made - made == 2 + 1 + 1
                if begin == 0:
                    same(session.eval(tokens[12:40], all_logits=True), expected[12:40])
            assert session.memory.device_buffer_bytes > planned


def test_replayed_at_later_rows(tiny: TinyModel) -> None:
    """The second row of ratio 128, whose number is not 0."""
    tokens = tiny.tokens(262, 54)
    with open_on(tiny, "fast", gpu_layers=3, gpu_context=288) as model:
        with model.session(context=288, chunk=CHUNK, poison=True) as session:
            session.eval(tokens[:252])
            expected = session.eval(tokens[252:], all_logits=True)
        with model.session(context=288, chunk=CHUNK, poison=True) as session:
            session.eval(tokens[:252])
            for _ in range(3):  # computed, recorded, replayed
                same(decode(session, tokens[252:]), expected)
                session.rollback(10)
                session.eval(tokens[::-1][:6])  # overwrites the row
                session.rollback(6)


def test_replayed_without_logits(parted: tuple[Any, np.ndarray], tiny: TinyModel) -> None:
    """Chunks of one token, of which only the last has logits."""
    model, expected = parted
    tokens, before = tokens_of(tiny), graphs().made
    with model.session(context=CONTEXT, chunk=1, poison=True) as session:
        planned = session.memory.device_buffer_bytes
        for end in (13, 30, 60):
            same(session.eval(tokens[session.position : end])[None], expected[end - 1 : end])
        assert session.memory.device_buffer_bytes == planned
        assert not EMULATED or graphs().made - before == 1 + 1 + 4 + 1 + 4 + 1, "of kinds with logits one comes twice"


@pytest.mark.skipif(not EMULATED, reason="needs to know how far the device is")
def test_cancelled_while_recording(parted: tuple[Any, np.ndarray], tiny: TinyModel) -> None:
    """Launching, recording or replaying, at any piece."""
    model, expected = parted
    tokens, made = tokens_of(tiny), graphs().made
    queued = 0

    def count() -> None:
        nonlocal queued
        queued += 1
        if queued == cancel_at:
            session.cancel()

    with model.session(context=CONTEXT, chunk=CHUNK, poison=True) as session, before_each(count):
        n_cancelled = 0
        for at in range(16):
            for cancel_at in (2 + at, 30 + 9 * at):
                queued = 0
                try:
                    result = session.eval(tokens[at : at + 1])
                    session.rollback(1)
                except pyflash.CancelledError:
                    n_cancelled += 1
                else:
                    same(result[None], expected[at : at + 1])
            cancel_at = 0
            same(session.eval(tokens[at : at + 1])[None], expected[at : at + 1])
    assert n_cancelled > 16 and graphs().made - made == 1 + 1 + 2 + 1 + 2, "which went on all the time"


@pytest.mark.skipif(not EMULATED, reason="needs a device that can be made to fail")
@pytest.mark.parametrize("step", ["begin", "launch", "instantiate"])
@pytest.mark.parametrize("n_made", [0, 3])
def test_a_device_that_cannot_record(
    parted: tuple[Any, np.ndarray], tiny: TinyModel, n_made: int, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the beginning, or from the fourth recording on."""
    model, expected = parted
    before = graphs()

    def refuse() -> None:
        if graphs().made - before.made == n_made:
            monkeypatch.setenv("PF_EMULATED_NO_GRAPHS", step)

    with model.session(context=CONTEXT, chunk=CHUNK, poison=True) as session, before_each(refuse):
        same(decode(session, tokens_of(tiny)[:10]), expected[:10])
        assert graphs().alive - before.alive == n_made


@pytest.mark.skipif(not EMULATED, reason="needs a device that can be made to fail")
def test_a_device_lost_while_replaying(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two of a token's pieces."""
    before = graphs()
    with open_on(tiny, cpu_moe=2) as model, model.session(context=CONTEXT, chunk=CHUNK) as session:
        decode(session, tokens_of(tiny)[:12])
        assert graphs().alive > before.alive
        launched = graphs().launched

        def lose() -> None:
            if graphs().launched == launched + 2:
                monkeypatch.setenv("PF_EMULATED_LOST", "1")

        with before_each(lose), pytest.raises(pyflash.DeviceError):
            session.eval([1])
        monkeypatch.delenv("PF_EMULATED_LOST")
        with pytest.raises(pyflash.DeviceError, match="open the model again"):
            session.eval([1])
        assert session.position == 12
    assert graphs().alive == before.alive


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_steps_of_several_sessions(tiny: TinyModel, placement: str) -> None:
    """One after the other within the call: each session's bits are its own, whatever is kept."""
    tokens = [tokens_of(tiny), tokens_of(tiny)[::-1].copy()]
    with (
        open_on(tiny, "fast", **PLACEMENTS[placement]) as model,
        model.session(context=CONTEXT, chunk=CHUNK, poison=True) as one,
        model.session(context=CONTEXT, chunk=CHUNK, poison=True) as two,
    ):
        alone = [logits_of(model, each) for each in tokens]
        for n, kept in ((1, 1), (20, 13), (1, 0), (1, 1), (5, 4), (1, 1), (60, 60)):
            starts = [session.position for session in (one, two)]
            work = [(session, each[session.position : session.position + n]) for session, each in zip((one, two), tokens)]
            out = pyflash.eval_many(work, "all", keep=False)
            for session, logits, start, expected in zip((one, two), out, starts, alone):
                assert np.array_equal(logits, expected[start : start + n])
                session.keep(kept)
