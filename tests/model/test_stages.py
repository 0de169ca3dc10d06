"""Stages of a model: ranges of its layers that are opened by themselves, and streams that go from one to the next."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from gguf import GGUFReader
from pyflash.engine.stages import cut
from pyflash.native.library import ffi, lib
from tiny_models import TinyModel, make_tiny_model

N_VOCAB = 512
N_LAYER = 6
T = 300
CONTEXT = T + 40


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Three layers choose experts by token ids, as in V4-Flash."""
    return make_tiny_model(
        tmp_path_factory.mktemp("stages"), seed=91, dense="q8_0", mtp=True, num_hash_layers=3, hidden_size=64,
        num_attention_heads=2, o_groups=1, o_lora_rank=32, q_lora_rank=32, n_routed_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=32, vocab_size=N_VOCAB, sliding_window=48, index_topk=20, index_n_heads=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tiny: TinyModel) -> Iterator[Any]:
    with pyflash.Model.open(tiny.path, mtp=tiny.mtp_path, threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def staged(tiny: TinyModel) -> Iterator[Any]:
    with pyflash.StagedModel.open(tiny.path, 3, mtp=tiny.mtp_path, threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def tokens(tiny: TinyModel) -> np.ndarray:
    return tiny.tokens(T, seed=92)


@pytest.fixture(scope="module")
def reference(whole: Any, tokens: np.ndarray) -> np.ndarray:
    with whole.session(context=CONTEXT, chunk=T) as session:
        logits: np.ndarray = session.eval(tokens, all_logits=True)
    assert np.isfinite(logits).all() and logits.std() > 0.1
    return logits


def same(logits: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(logits.view(np.uint32), expected.view(np.uint32))


def ranges(cuts: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip([0, *cuts], [*cuts, N_LAYER]))


ALL_CUTS = [cuts for n in range(1, N_LAYER) for cuts in combinations(range(1, N_LAYER), n)]


@pytest.mark.parametrize("cuts", ALL_CUTS, ids=str)
def test_every_way_to_cut(tiny: TinyModel, tokens: np.ndarray, reference: np.ndarray, cuts: tuple[int, ...]) -> None:
    """Also between any two of the layers whose experts the token ids choose."""
    with pyflash.StagedModel.open(tiny.path, ranges(cuts), mtp=tiny.mtp_path, threads=1) as model:
        with model.session(context=CONTEXT, chunk=140, poison=True) as session:
            same(session.eval(tokens[:-1], all_logits=True), reference[:-1])
            same(session.eval(tokens[-1:]), reference[-1])


def test_the_ids_choose_experts_in_later_stages(tiny: TinyModel, staged: Any, tokens: np.ndarray) -> None:
    """Else the test above could pass without them."""
    first, second = staged.stages[0].session(context=CONTEXT), staged.stages[1].session(context=CONTEXT)
    with first, second:
        streams = pyflash.eval_stage([(first, tokens[:9], None)])[0]
        right = pyflash.eval_stage([(second, tokens[:9], streams)])[0]
        second.keep(0)
        other = pyflash.eval_stage([(second, (tokens[:9] + 1) % N_VOCAB, streams)])[0]
    assert staged.info.n_hash_layer == 3 and staged.stages[1].info.first_layer == 2
    assert right.shape == (9, 4, 64) and not np.array_equal(right, other)


def test_only_the_stages_tensors_count(tiny: TinyModel, whole: Any, staged: Any) -> None:
    sizes = [stage.info.weight_bytes for stage in staged.stages]
    embedding = next(int(tensor.n_bytes) for tensor in GGUFReader(tiny.path).tensors if tensor.name == "token_embd.weight")
    assert all(0 < size < whole.info.weight_bytes for size in sizes)
    assert sum(sizes) == whole.info.weight_bytes + embedding  # with which the MTP block begins too
    for stage in staged.stages:
        read = []
        info = stage.info
        with pyflash.Model.open(tiny.path, layers=(info.first_layer, info.end_layer), prefault=True,
                                progress=lambda done, total: read.append((done, total))) as opened:  # fmt: skip
            assert read[-1] == (opened.info.weight_bytes, opened.info.weight_bytes)
            assert opened.info.n_layer == N_LAYER and not opened.info.has_mtp


def test_drafts_are_those_of_the_whole(whole: Any, staged: Any, tokens: np.ndarray) -> None:
    with whole.session(context=CONTEXT) as one, staged.session(context=CONTEXT, poison=True) as other:
        for session in (one, other):
            session.eval(tokens[:150])
            session.eval(tokens[150:170])
        same(other.draft(5), one.draft(5))
        assert other.draft_tokens(5, 3) == one.draft_tokens(5, 3)
        assert other.memory.cache_bytes > 0


@pytest.mark.parametrize("draft", ["off", "ngram", "mtp", "known"])
def test_generation_with_drafts(whole: Any, staged: Any, tokens: np.ndarray, draft: str) -> None:
    prompt = [int(token) for token in tokens[:5]] * 30
    with whole.session(context=CONTEXT) as session:
        wanted = [piece.token for piece in session.generate(prompt, 60, draft="off", temperature=0)]
        behind = session.eval([7])

    def known(so_far: Any, most: int) -> list[int]:
        at = len(so_far) - len(prompt)
        return [*wanted[at : at + 3], (wanted[min(at + 3, 59)] + 1) % N_VOCAB][:most]  # one too many

    with staged.session(context=CONTEXT, poison=True) as session:
        pieces = session.generate(prompt, 60, draft=known if draft == "known" else draft, temperature=0)
        assert [piece.token for piece in pieces] == wanted
        same(session.eval([7]), behind)
        assert {part.position for part in session.stages} == {len(prompt) + 60}


@pytest.mark.parametrize("n_stages", [2, 3])
def test_several_sessions_in_a_step(tiny: TinyModel, whole: Any, n_stages: int) -> None:
    """Stage by stage, with parts of every step kept; each session has the bits that the whole model gives it alone."""
    chance = random.Random(n_stages)
    texts = [tiny.tokens(T, seed=100 + i) for i in range(3)]
    alone = []
    for text in texts:
        with whole.session(context=CONTEXT) as session:
            alone.append(session.eval(text, all_logits=True))
    with pyflash.StagedModel.open(tiny.path, n_stages, mtp=tiny.mtp_path, threads=2) as model:
        parts = [[stage.session(context=CONTEXT, chunk=130, poison=True) for stage in model.stages] for _ in texts]
        while (least := min(each[0].position for each in parts)) < T:
            counts = [min(chance.choice([0, 1, 3, 40, 130]), T - each[0].position) for each in parts]
            who = [i for i in range(3) if counts[i]]
            starts = [each[0].position for each in parts]
            given = {i: texts[i][starts[i] : starts[i] + counts[i]] for i in who}
            streams: dict[int, Any] = dict.fromkeys(who)
            for at in range(n_stages):
                logits = "all" if at == n_stages - 1 else "none"
                work = [(parts[i][at], given[i], streams[i]) for i in who]
                streams = dict(zip(who, pyflash.eval_stage(work, logits)))  # type: ignore[arg-type]
            for i in who:
                same(streams[i], alone[i][starts[i] : starts[i] + counts[i]])
                kept = counts[i] if counts[i] > 128 else chance.randint(0 if starts[i] > least else 1, counts[i])
                for part in parts[i]:
                    part.keep(kept)
        for each in parts:
            for part in each:
                part.close()


@pytest.mark.parametrize("at", [0, 2, 3, 5])
@pytest.mark.parametrize("chunk", [60, 200])
def test_a_cancelled_prompt_ends_where_all_stages_are(staged: Any, tokens: np.ndarray, reference: np.ndarray, at: int,
                                                      chunk: int) -> None:
    with staged.session(context=CONTEXT, chunk=chunk, poison=True) as session:
        session.eval(tokens[:20])

        def cancel(name: str, layer: int, position: int, _data: Any) -> None:
            if (name, layer, position) == ("attn_out", at, 230):
                session.cancel()

        session.set_tap(cancel)
        with pytest.raises(pyflash.CancelledError):
            session.eval(tokens[20:])
        session.set_tap(None)
        position = session.position
        assert position in ((200, 140, 80, 20) if chunk == 60 else (20, 220))
        assert {part.position for part in session.stages} == {position}
        assert not any(part.waiting for part in session.stages)
        same(session.eval(tokens[position:], all_logits=True), reference[position:])


def test_a_failed_step_leaves_nothing_waiting(staged: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    class Broken(Exception):
        pass

    def fail(_name: str, layer: int, _position: int, _data: Any) -> None:
        if layer == N_LAYER - 1:
            raise Broken

    with staged.session(context=CONTEXT, chunk=T) as session:
        session.eval(tokens[:10])
        session.set_tap(fail)
        for end in (11, T):
            with pytest.raises(Broken):
                session.eval(tokens[10:end])
        session.set_tap(None)
        same(session.eval(tokens[10:], all_logits=True), reference[10:])


def test_steps_wait_whole(staged: Any, whole: Any, tokens: np.ndarray) -> None:
    with staged.stages[0].session(context=CONTEXT, chunk=T) as part:
        first = pyflash.eval_stage([(part, tokens[:200], None)])[0]
        assert (part.waiting, part.position) == (200, 0)
        with pytest.raises(pyflash.ArgumentError, match="all or none"):
            part.keep(7)
        part.keep(0)
        assert (part.waiting, part.position, part.rollback_limit) == (0, 0, 0)
        same(pyflash.eval_stage([(part, tokens[:200], None)])[0], first)
        part.keep(200)
        assert part.position == 200


def test_files_name_their_layers(staged: Any, whole: Any, tokens: np.ndarray, reference: np.ndarray,
                                 tmp_path: Path) -> None:
    file = tmp_path / "chat"
    with staged.session(context=CONTEXT) as session:
        session.eval(tokens[:100])
        session.save(file)
        with whole.session(context=CONTEXT) as other:
            with pytest.raises(pyflash.ArgumentError, match=r"holds layers \[0, 2\) of a model, this session \[0, 6\)"):
                other.load(file)
            other.eval(tokens[:100])
            other.save(tmp_path / "whole")
        with pytest.raises(pyflash.ArgumentError, match=r"holds layers \[0, 6\)"):
            session.stages[1].load(tmp_path / "whole")
        assert session.position == 100
        session.eval(tokens[100:110])
        session.stages[1].save(file.with_name("chat.layers-2-4"))  # of another moment than its neighbours
        with pytest.raises(pyflash.FormatError, match="different conversations"):
            session.load(file)
        assert session.position == 110
        same(session.eval(tokens[110:], all_logits=True), reference[110:])


@pytest.mark.parametrize("at", range(3))
def test_a_damaged_file_of_any_stage_changes_nothing(staged: Any, tokens: np.ndarray, reference: np.ndarray, tmp_path: Path,
                                                     at: int) -> None:
    with staged.session(context=CONTEXT) as session:
        session.eval(tokens[:100])
        session.save(tmp_path / "chat")
        files = sorted(path for path in tmp_path.iterdir() if not path.name.startswith("."))
        assert [path.name for path in files] == ["chat", "chat.layers-2-4", "chat.layers-4-6"]
        files[at].write_bytes(files[at].read_bytes()[:-9])
        session.eval(tokens[100:120])
        with pytest.raises(pyflash.FormatError, match="damaged"):
            session.load(tmp_path / "chat")
        assert session.position == 120
        same(session.eval(tokens[120:], all_logits=True), reference[120:])


def test_parts_of_each_stage(staged: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    with staged.session(context=CONTEXT) as session, staged.session(context=CONTEXT, poison=True) as other:
        session.eval(tokens[:256])
        for part, to in zip(session.stages, other.stages):
            info = part.model.info
            assert (part.parts.first_layer, part.parts.end_layer) == (info.first_layer, info.end_layer)
            to.import_rows(0, 256, part.export_rows(0, 256))
            to.import_tail(tokens[:256], part.export_tail())
        same(other.eval(tokens[256:], all_logits=True), reference[256:])


def test_taps_of_the_layers_that_are_there(whole: Any, staged: Any, tokens: np.ndarray) -> None:
    """The streams after a layer, which drafts may want of several stages, are told under the model's numbers."""
    seen: list[dict[Any, np.ndarray]] = []
    for model in (whole, staged):
        seen.append({})
        with model.session(context=CONTEXT) as session:
            session.set_tap(lambda name, layer, position, data: seen[-1].setdefault((name, layer, position), data))
            session.eval(tokens[:20])
    assert {layer for name, layer, _ in seen[1] if name == "ffn_X"} >= set(range(N_LAYER))
    assert seen[0].keys() == seen[1].keys()
    for key, data in seen[0].items():
        np.testing.assert_array_equal(data, seen[1][key], err_msg=str(key))


# -- what is refused --


@pytest.mark.parametrize("layers", [(0, 7), (3, 3), (4, 2), (6, 7), (6, 6)])
def test_ranges_that_are_none(tiny: TinyModel, layers: tuple[int, int]) -> None:
    with pytest.raises(pyflash.ArgumentError, match=rf"layers \[{layers[0]}, {layers[1]}\) are no range .* within 0 and 6"):
        pyflash.Model.open(tiny.path, layers=layers)


@pytest.mark.parametrize("layers", [3, (1,), (1, 2, 3), (-1, 2), (0, 0), ("a", 2), (0.5, 2)])
def test_layers_that_are_no_pair(tiny: TinyModel, layers: Any) -> None:
    with pytest.raises(pyflash.ArgumentError, match="layers?"):
        pyflash.Model.open(tiny.path, layers=layers)


def test_a_range_is_the_processors(tiny: TinyModel) -> None:
    with pytest.raises(pyflash.UnsupportedError, match='computed by the processor: open it with device "cpu"'):
        pyflash.Model.open(tiny.path, layers=(0, 2), device="cuda")


REFUSED: dict[str, tuple[str, Callable[[Any, np.ndarray, np.ndarray], Any]]] = {
    "streams for the first": ("give its stage no streams", lambda p, t, x: pyflash.eval_stage([(p[0], t, x)])),
    "none for a middle one": ("go on with the streams of layer 1: 1024 floats are needed, not 0",
                              lambda p, t, x: pyflash.eval_stage([(p[1], t, None)])),
    "of other tokens": ("1024 floats are needed, not 768", lambda p, t, x: pyflash.eval_stage([(p[1], t, x[:-1])])),
    "logits of a middle one": ("logits are those of the stage with the last layer",
                               lambda p, t, x: pyflash.eval_stage([(p[1], t, x)], "last")),
    "a plain step of the first": ("layers \\[0, 2\\) give streams", lambda p, t, x: p[0].eval(t)),
    "a plain step of the last": ("go on with the streams of layer 3", lambda p, t, x: p[2].eval(t)),
    "no token": ("no tokens", lambda p, t, x: pyflash.eval_stage([(p[1], [], x)])),
    "a token that is none": ("outside the vocabulary", lambda p, t, x: pyflash.eval_stage([(p[1], [1, 2, 3, 512], x)])),
    "more than a chunk": ("at most 4", lambda p, t, x: pyflash.eval_stage([(p[0], [1] * 5, None)])),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_misuse_is_one_line(staged: Any, tokens: np.ndarray, what: str) -> None:
    message, call = REFUSED[what]
    parts = [stage.session(context=CONTEXT, chunk=4) for stage in staged.stages]
    streams = np.zeros((4, 4, 64), dtype=np.float32)
    with pytest.raises(pyflash.ArgumentError, match=message) as refused:
        call(parts, tokens[:4], streams)
    assert "\n" not in str(refused.value)
    assert all((part.position, part.waiting) == (0, 0) for part in parts)
    for part in parts:
        part.close()


def test_drafts_of_another_stage(staged: Any) -> None:
    with staged.stages[0].session(context=CONTEXT) as part:
        with pytest.raises(pyflash.UnsupportedError, match="in the stage with the last layer"):
            part.draft(1)


def test_room_for_streams_is_checked(staged: Any, tokens: np.ndarray) -> None:
    """Of the C interface, whose callers bring it."""
    with staged.stages[0].session(context=CONTEXT) as part:
        out, ids = np.zeros(1024, dtype=np.float32), np.ascontiguousarray(tokens[:4])
        for pointer, capacity in ((out.ctypes.data, 1023), (0, 1024)):
            share = ffi.new("pf_step_share *", {
                "struct_size": ffi.sizeof("pf_step_share"), "session": part._native(), "flags": lib.PF_STEP_KEEP,
                "tokens": ffi.cast("int32_t *", ids.ctypes.data), "n_tokens": 4,
                "streams_out": ffi.cast("float *", pointer), "streams_capacity": capacity,
            })  # fmt: skip
            assert lib.pf_step_eval(share, 1, ffi.NULL) == lib.PF_ERR_ARGUMENT
            assert b"there is room for" in ffi.string(share.error.message)
        assert part.position == 0 and not out.any()


def test_stages_that_make_no_model(tiny: TinyModel) -> None:
    for layers in ([(0, 2), (3, 6)], [(0, 2), (2, 4)], [(2, 6)], [(0, 4), (2, 6)]):
        with pytest.raises(pyflash.ArgumentError, match="are not a whole model"):
            pyflash.StagedModel.open(tiny.path, layers)
    for n in (0, 7):
        with pytest.raises(pyflash.ArgumentError, match="cannot be cut"):
            pyflash.StagedModel.open(tiny.path, n)


def test_other_kernel_sets_are_refused(tiny: TinyModel) -> None:
    with pyflash.Model.open(tiny.path, layers=(0, 3), isa="scalar") as first:
        with pyflash.Model.open(tiny.path, layers=(3, 6)) as second:
            if second.info.cpu_isa == "scalar":
                pytest.skip("this machine has one kernel set")
            with pytest.raises(pyflash.UnsupportedError, match="different kernel sets, .*scalar"):
                pyflash.StagedModel([first, second])
        with pyflash.Model.open(tiny.path, layers=(3, 6), isa="scalar") as second:
            assert pyflash.StagedModel([first, second]).info.cpu_isa == "scalar"


def test_stages_of_as_many_layers() -> None:
    assert cut(43, 3) == [(0, 14), (14, 28), (28, 43)]
    assert cut(4, 4) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert cut(5, 1) == [(0, 5)]
