"""Steps of several sessions: each one's bits are those it has alone, whatever is kept of a step, and whatever becomes of the
others."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from pyflash.engine.collector import Input
from tiny_models import TinyModel, make_tiny_model

N_VOCAB = 512
T = 560
CONTEXT = T + 160
N_TEXTS = 4
CACHES = ("reference", "f16", "f32", "reference")  # of each text's session
CHUNKS = (128, 40, 300, 129)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(
        tmp_path_factory.mktemp("steps"), seed=51, dense="q8_0", mtp=True, hidden_size=64, num_attention_heads=2,
        o_groups=1, o_lora_rank=32, q_lora_rank=32, n_routed_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=32, vocab_size=N_VOCAB, sliding_window=48, index_topk=20, index_n_heads=2,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["fast", "exact"])
def model(request: pytest.FixtureRequest, tiny: TinyModel) -> Iterator[Any]:
    with pyflash.Model.open(tiny.path, mtp=tiny.mtp_path, precision=request.param, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain(tiny: TinyModel) -> Iterator[Any]:
    """Without an MTP block, whose latest row is computed with a guess of the token to come."""
    with pyflash.Model.open(tiny.path, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def texts(tiny: TinyModel) -> list[np.ndarray]:
    return [tiny.tokens(T, seed=60 + i) for i in range(N_TEXTS)]


def open_session(model: Any, i: int, **options: Any) -> Any:
    given = {"context": CONTEXT, "chunk": CHUNKS[i], "cache": CACHES[i], "poison": True, **options}
    return model.session(**given)


@pytest.fixture(scope="module")
def alone(model: Any, texts: list[np.ndarray]) -> list[np.ndarray]:
    """Each text's logits [T, vocab], by a session that nothing else is done with."""
    logits = []
    for i, text in enumerate(texts):
        with open_session(model, i) as session:
            logits.append(session.eval(text, all_logits=True))
    assert all(np.isfinite(each).all() and each.std() > 0.1 for each in logits)
    return logits


def same(logits: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(logits.view(np.uint32), expected.view(np.uint32))


def test_one_to_twenty_rows(model: Any, texts: list[np.ndarray], alone: list[np.ndarray]) -> None:
    """Steps of 1, 2, .. 20 rows in all, shared out among sessions that stand at different places."""
    chance = random.Random(1)
    sessions = [open_session(model, i) for i in range(N_TEXTS)]
    for i, start in enumerate((0, 3, 127, 255)):
        if start:
            sessions[i].eval(texts[i][:start])
    for rows in [*range(1, 21)] * 2:
        cuts = sorted(chance.randint(0, rows) for _ in range(N_TEXTS - 1))
        counts = [end - begin for begin, end in zip([0, *cuts], [*cuts, rows])]
        who = [i for i in range(N_TEXTS) if counts[i]]
        starts = {i: sessions[i].position for i in who}
        out = pyflash.eval_many([(sessions[i], texts[i][starts[i] : starts[i] + counts[i]]) for i in who], "all")
        for i, logits in zip(who, out):
            same(logits, alone[i][starts[i] : starts[i] + counts[i]])
            assert sessions[i].position == starts[i] + counts[i]
    for session in sessions:
        session.close()


@dataclass
class Follower:
    """A session, and what is known of it: it has evaluated the first `position` tokens of a text."""

    session: Any
    text: np.ndarray
    logits: np.ndarray
    file: Path
    floor: int = 0
    saved: tuple[int, int] | None = None  # position and floor of the file
    log: list[str] = field(default_factory=list)

    @property
    def position(self) -> int:
        return int(self.session.position)

    def moved(self) -> None:
        self.floor = max(self.floor, self.position - 256)

    def check(self) -> None:
        assert self.session.waiting == 0
        assert self.session.rollback_limit == self.position - self.floor, self.log

    def go_back(self, chance: random.Random) -> None:
        n = chance.randint(0, min(self.position, self.session.rollback_limit))
        self.session.rollback(n)
        self.floor = 0 if self.position == 0 else self.floor

    def save_or_load(self, chance: random.Random) -> None:
        if self.saved is None or chance.random() < 0.5:
            self.session.save(self.file)
            self.saved = (self.position, self.floor)
            return
        self.session.load(self.file)
        assert self.position == self.saved[0]
        self.floor = self.position - self.session.rollback_limit
        assert self.floor <= max(self.saved[1], self.position - 256)

    def draft(self, expected: Any) -> None:
        if 0 < self.position < T:
            same(self.session.draft(int(self.text[self.position])), expected(self.text[: self.position + 1]))


@pytest.fixture(scope="module")
def drafts(model: Any) -> Iterator[Any]:
    """Drafts for the last of some tokens' place, by a session that does nothing else."""
    known: dict[tuple[str, bytes], np.ndarray] = {}
    sessions = {cache: model.session(context=CONTEXT, chunk=300, cache=cache) for cache in set(CACHES)}

    def draft(tokens: np.ndarray, cache: str) -> np.ndarray:
        key = (cache, tokens.tobytes())
        if key not in known:
            session = sessions[cache]
            session.rollback(session.position)
            session.eval(tokens[:-1])
            known[key] = session.draft(int(tokens[-1]))
        return known[key]

    yield draft
    for session in sessions.values():
        session.close()


def random_step(followers: list[Follower], chance: random.Random) -> None:
    """One step of some of them, of true tokens with false ones behind, of which the true ones are kept."""
    keep = chance.random() < 0.3
    work, true = [], []
    for follower in chance.sample(followers, chance.randint(1, len(followers))):
        most = min(follower.session.chunk, T - follower.position)
        most = min(most, 300 if keep else 128)
        if most < 1:
            continue
        n = min(most, chance.choice([1, 1, 2, 5, 20, 128, 300]))
        n_true = n if keep else chance.randint(0, n)
        right = follower.text[follower.position : follower.position + n_true]
        wrong = np.array([chance.randrange(N_VOCAB) for _ in range(n - n_true)], np.int32)
        work.append((follower.session, np.concatenate([right, wrong])))
        true.append((follower, n_true))
        follower.log.append(f"step {n} {n_true} {keep} at {follower.position}")
    if not work:
        return
    results = pyflash.eval_many(work, "all", keep=keep)
    for (follower, n_true), logits in zip(true, results):
        start = follower.position - (n_true if keep else 0)
        same(logits[:n_true], follower.logits[start : start + n_true])
        if not keep:
            assert follower.session.waiting == len(logits)
            follower.session.keep(n_true)
        assert follower.position == start + n_true
        follower.moved()


@pytest.mark.parametrize("seed", range(4))
def test_random_schedules(model: Any, texts: list[np.ndarray], alone: list[np.ndarray], drafts: Any, seed: int,
                          tmp_path: Path) -> None:
    chance = random.Random(seed)
    followers = [Follower(open_session(model, i), texts[i], alone[i], tmp_path / f"{i}") for i in range(N_TEXTS)]
    for _ in range(60):
        random_step(followers, chance)
        follower = chance.choice(followers)
        what = chance.choice(["back", "back", "file", "draft", "checkpoint", "nothing"])
        follower.log.append(what)
        if what == "back":
            follower.go_back(chance)
        elif what == "file":
            follower.save_or_load(chance)
        elif what == "draft" and chance.random() < 0.5:
            cache = CACHES[followers.index(follower)]
            follower.draft(lambda tokens, cache=cache: drafts(tokens, cache))
        elif what == "checkpoint":
            follower.session.checkpoint()
        follower.check()
    for follower in followers:
        rest = follower.text[follower.position : follower.position + 150]
        if len(rest):
            start = follower.position
            same(follower.session.eval(rest, all_logits=True), follower.logits[start : start + len(rest)])
        follower.session.close()


@pytest.mark.parametrize("start", [0, 1, 126, 127, 128, 255, 257, 383, 384, 385])
def test_what_is_kept_is_what_was_evaluated(plain: Any, texts: list[np.ndarray], start: int, tmp_path: Path) -> None:
    """The files of both sessions are the same bytes: rings, frontiers, pools, rollback limit."""
    chance = random.Random(start)
    for n in (1, 6, 128):
        for kept in {0, 1, n // 2, n - 1, n}:
            files = []
            wrong = np.array([chance.randrange(N_VOCAB) for _ in range(n - kept)], np.int32)
            right = texts[0][start : start + kept]
            for in_step in (True, False):
                with plain.session(context=600, chunk=200, poison=True) as session:
                    if start:
                        session.eval(texts[0][:start])
                    if in_step:
                        pyflash.eval_many([(session, np.concatenate([right, wrong]))], "none", keep=False)
                        session.keep(kept)
                    elif kept:
                        session.eval(right)
                    session.save(tmp_path / "file")
                    files.append((tmp_path / "file").read_bytes())
            assert files[0] == files[1], (n, kept)


def test_keeping_takes_nothing_from_the_rollback_limit(plain: Any, texts: list[np.ndarray]) -> None:
    """Steps of 128 of which a few are kept, over and over: the last 256 can be dropped as ever."""
    expected = plain.session(context=CONTEXT)
    logits = expected.eval(texts[1], all_logits=True)
    with plain.session(context=CONTEXT, chunk=128, poison=True) as session, expected:
        session.eval(texts[1][:300])
        chance = random.Random(3)
        while session.position < T - 130:
            ahead = session.position + 128
            pyflash.eval_many([(session, texts[1][session.position : ahead])], "none", keep=False)
            session.keep(chance.choice([0, 1, 7]))
            assert session.rollback_limit >= 256
        session.rollback(256)
        start = session.position
        same(session.eval(texts[1][start:], all_logits=True), logits[start:])


def test_waiting_tokens_hold_the_session(model: Any, texts: list[np.ndarray], alone: list[np.ndarray],
                                         tmp_path: Path) -> None:
    with open_session(model, 0) as session, open_session(model, 1) as other:
        session.eval(texts[0][:10])
        session.checkpoint()
        pyflash.eval_many([(session, texts[0][10:15])], keep=False)
        refused = [
            lambda: session.eval(texts[0][10:11]), lambda: session.draft(1), lambda: session.rollback(1),
            lambda: session.reuse(texts[0][:20]), lambda: session.checkpoint(), lambda: session.save(tmp_path / "s"),
            lambda: session.load(tmp_path / "s"), lambda: pyflash.eval_many([(session, [1])]), lambda: session.keep(6),
            lambda: session.keep(-1),
        ]  # fmt: skip
        for call in refused:
            with pytest.raises(pyflash.Error):
                call()
            assert (session.position, session.waiting) == (10, 5)
        assert not (tmp_path / "s").exists()
        np.testing.assert_array_equal(session.tokens, texts[0][:10])
        same(other.eval(texts[1][:20], all_logits=True), alone[1][:20])
        session.keep(2)
        assert (session.position, session.waiting) == (12, 0)
        with pytest.raises(pyflash.ArgumentError):
            session.keep(1)
        same(session.eval(texts[0][12:40], all_logits=True), alone[0][12:40])
        pyflash.eval_many([(session, [1, 2, 3])], keep=False)  # and is closed like that


# -- one session's trouble, and the others -------------------------------------------------------------------------


def trouble(sessions: list[Any], texts: list[np.ndarray], alone: list[np.ndarray], counts: list[int], ill: int,
            error: type[BaseException], keep: bool = True) -> None:
    """A step in which session `ill` fails: it is as before, the others are evaluated, and all go on with the same bits."""
    starts = [session.position for session in sessions]
    work = [(session, texts[i][starts[i] : starts[i] + counts[i]]) for i, session in enumerate(sessions)]
    results = pyflash.eval_many(work, "all", keep=keep, return_errors=True)
    for i, session in enumerate(sessions):
        if i == ill:
            assert isinstance(results[i], error), results[i]
            assert (session.position, session.waiting) == (starts[i], 0)
            continue
        same(results[i], alone[i][starts[i] : starts[i] + counts[i]])
        if not keep:
            session.keep(counts[i])
        assert session.position == starts[i] + counts[i]


def go_on(sessions: list[Any], texts: list[np.ndarray], alone: list[np.ndarray]) -> None:
    for i, session in enumerate(sessions):
        start = session.position
        end = min(start + 140, session.capacity)
        same(session.eval(texts[i][start:end], all_logits=True), alone[i][start:end])
        session.close()


@pytest.mark.parametrize("layer, ill, keep", [(0, 0, True), (3, 1, False), (3, 3, True), (5, 1, True), (5, 2, False)])
def test_cancelling_one_leaves_the_others(model: Any, texts: list[np.ndarray], alone: list[np.ndarray], layer: int,
                                          ill: int, keep: bool) -> None:
    sessions = [open_session(model, i) for i in range(N_TEXTS)]
    for i, session in enumerate(sessions):
        session.eval(texts[i][: 100 + 50 * i])

    def tap(name: str, at: int, _position: int, _value: np.ndarray) -> None:
        if (name, at) == ("ffn_norm", layer):
            sessions[ill].cancel()

    sessions[2].set_tap(tap)
    trouble(sessions, texts, alone, [7, 1, 3, 20], ill, pyflash.CancelledError, keep)
    sessions[2].set_tap(None)
    go_on(sessions, texts, alone)


def test_a_long_share_is_cancelled_beside_short_ones(model: Any, texts: list[np.ndarray], alone: list[np.ndarray]) -> None:
    sessions = [open_session(model, i) for i in range(N_TEXTS)]
    for i, session in enumerate(sessions):
        session.eval(texts[i][:130])
    seen = []

    def tap(name: str, layer: int, _position: int, _value: np.ndarray) -> None:
        seen.append((name, layer))
        if (name, layer) == ("attn_out", 2):
            sessions[2].cancel()

    sessions[0].set_tap(tap)
    trouble(sessions, texts, alone, [2, 1, 300, 1], 2, pyflash.CancelledError)
    sessions[0].set_tap(None)
    assert ("logits", -1) in seen
    assert sessions[2].rollback_limit == 0
    go_on(sessions, texts, alone)


def test_all_are_cancelled(model: Any, texts: list[np.ndarray], alone: list[np.ndarray]) -> None:
    sessions = [open_session(model, i) for i in range(3)]
    layers = set()

    def tap(_name: str, layer: int, _position: int, _value: np.ndarray) -> None:
        layers.add(layer)
        if layer == 1:
            for session in sessions:
                session.cancel()

    sessions[1].set_tap(tap)
    work = [(session, texts[i][:5]) for i, session in enumerate(sessions)]
    results = pyflash.eval_many(work, return_errors=True)
    assert [type(result) for result in results] == [pyflash.CancelledError] * 3
    assert max(layers) == 1
    sessions[1].set_tap(None)
    go_on(sessions, texts, alone)


def test_a_request_for_an_earlier_call_cancels_nothing(model: Any, texts: list[np.ndarray], alone: list[np.ndarray]) -> None:
    """It reaches a session when its call is over, and nobody wants the next one cancelled."""
    with open_session(model, 0) as session, open_session(model, 1) as other:
        pyflash.native.library.lib.pf_session_cancel(session._handle)
        first, second = pyflash.eval_many([(session, texts[0][:3]), (other, texts[1][:2])], "all")
        same(first, alone[0][:3])
        same(second, alone[1][:2])


def test_a_tap_that_raises_ends_its_session_alone(model: Any, texts: list[np.ndarray], alone: list[np.ndarray]) -> None:
    sessions = [open_session(model, i) for i in range(3)]

    def tap(_name: str, layer: int, _position: int, _value: np.ndarray) -> None:
        if layer == 3:
            raise KeyError("a tap's")

    sessions[1].set_tap(tap)
    trouble(sessions, texts, alone, [4, 9, 1], 1, KeyError)
    sessions[1].set_tap(None)
    go_on(sessions, texts, alone)


def test_taps_see_what_they_see_alone(model: Any, texts: list[np.ndarray]) -> None:
    def record(session: Any, into: list[Any]) -> None:
        session.set_tap(lambda name, layer, position, value: into.append((name, layer, position, value.tobytes())))

    seen: list[Any] = []
    expected: list[Any] = []
    with open_session(model, 0) as one, open_session(model, 1) as two:
        one.eval(texts[0][:100])
        two.eval(texts[1][:33])
        record(two, seen)
        pyflash.eval_many([(one, texts[0][100:103]), (two, texts[1][33:40])], "all")
    with open_session(model, 1) as two:
        two.eval(texts[1][:33])
        record(two, expected)
        two.eval(texts[1][33:40], all_logits=True)
    assert seen == expected and len(seen) > 500


def test_a_full_context_stops_one(model: Any, texts: list[np.ndarray], alone: list[np.ndarray]) -> None:
    sessions = [open_session(model, i, context=60 if i == 1 else CONTEXT) for i in range(3)]
    sessions[1].eval(texts[1][:50])
    trouble(sessions, texts, alone, [4, 11, 40], 1, pyflash.ContextFullError)
    trouble(sessions, texts, alone, [4, 10, 40], -1, pyflash.Error)  # fits
    go_on(sessions[::2], texts[::2], alone[::2])


def test_a_damaged_routing_table_stops_one(tiny: TinyModel, tmp_path: Path) -> None:
    import gguf

    damaged = tmp_path / "damaged.gguf"
    data = bytearray(tiny.path.read_bytes())
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tiny.path).tensors}
    table = next(tensor for name, tensor in tensors.items() if "tid2eid" in name)
    at = table.data_offset + 7 * 2 * 4  # token 7's two experts
    data[at : at + 4] = (8).to_bytes(4, "little")
    damaged.write_bytes(data)
    with pyflash.Model.open(tiny.path) as good, good.session(context=20) as session:
        expected = session.eval([1, 2, 3])
    with (
        pyflash.Model.open(damaged) as model,
        model.session(context=20) as one,
        model.session(context=20) as two,
    ):
        first, second = pyflash.eval_many([(one, [1, 7, 3]), (two, [1, 2, 3])], return_errors=True)
        assert isinstance(first, pyflash.FormatError) and "names expert 8 of 8 for token 7" in str(first)
        same(second, expected)
        assert (one.position, two.position) == (0, 3)


# -- the call ----------------------------------------------------------------------------------------------------------


def test_longer_than_a_chunk(model: Any, texts: list[np.ndarray], alone: list[np.ndarray]) -> None:
    with open_session(model, 1) as one, open_session(model, 2) as two:
        first, second = pyflash.eval_many([(one, texts[1][:350]), (two, texts[2][:2])], "all")
        same(first, alone[1][:350])
        same(second, alone[2][:2])
        last, other = pyflash.eval_many([(two, texts[2][2:500]), (one, texts[1][350:351])])
        same(last, alone[2][499])
        same(other, alone[1][350])
        assert pyflash.eval_many([(one, [1]), (two, [2])], "none") == [None, None]
        assert pyflash.eval_many([]) == []


def test_many_sessions_of_little_scratch(model: Any, texts: list[np.ndarray], alone: list[np.ndarray]) -> None:
    """Forty rows of sessions that each planned for one."""
    sessions = [model.session(context=64, chunk=1, cache="reference") for _ in range(40)]
    out = pyflash.eval_many([(session, texts[0][:3]) for session in sessions], "all")
    for logits, session in zip(out, sessions):
        same(logits, alone[0][:3])
        session.close()


def test_misuse_evaluates_nothing(model: Any, plain: Any, texts: list[np.ndarray]) -> None:
    with open_session(model, 0) as one, open_session(model, 1) as two, plain.session(context=64) as foreign:
        for wrong in (
            [(one, [1]), (one, [2])], [(one, [1]), (foreign, [2])], [(one, [1]), (two, [])], [(one, [1]), (two, [N_VOCAB])],
            [(one, [1]), (two, [-1])], [(one, [1]), two], [(one, [1]), (None, [2])], [(one, [1]), (two, "ab")], 5,
        ):
            with pytest.raises(pyflash.ArgumentError):
                pyflash.eval_many(wrong)
        with pytest.raises(pyflash.ArgumentError):
            pyflash.eval_many([(one, [1]), (two, [2])], "some")  # type: ignore[call-overload]
        for session, most in ((one, 128), (two, CHUNKS[1])):
            with pytest.raises(pyflash.ArgumentError, match=f"at most {most}"):
                pyflash.eval_many([(session, texts[0][: most + 1])], keep=False)
        closed = open_session(model, 2)
        closed.close()
        with pytest.raises(pyflash.ClosedError):
            pyflash.eval_many([(one, [1]), (closed, [2])])
        assert (one.position, two.position, foreign.position) == (0, 0, 0)


def test_what_raises_leaves_nothing_waiting(model: Any, texts: list[np.ndarray]) -> None:
    with open_session(model, 0) as one, open_session(model, 1, context=4) as two, open_session(model, 2) as three:
        two.eval([1, 2])
        pyflash.eval_many([(three, [1, 2])], keep=False)
        with pytest.raises(pyflash.ContextFullError):
            pyflash.eval_many([(one, [1, 2, 3]), (two, [1, 2, 3]), (three, [1])], keep=False)
        assert (one.waiting, two.waiting, three.waiting) == (0, 0, 2)  # an earlier call's is not this one's


def test_a_collected_session_is_alone_in_its_sums(plain: Any, texts: list[np.ndarray]) -> None:
    sums = []
    for together in (True, False):
        collector = plain.collector()
        with plain.session(context=64) as one, plain.session(context=64) as two:
            one.collect(collector)
            if together:
                pyflash.eval_many([(two, texts[1][:9]), (one, texts[0][:12])])
            else:
                one.eval(texts[0][:12])
            one.collect(None)
            sums.append(collector.sums(Input.EXPERTS, 3).sums.copy())
    assert sums[0].any()
    np.testing.assert_array_equal(sums[0], sums[1])


@pytest.mark.parametrize("n_kept", [0, 3])
def test_streamed_experts(tiny: TinyModel, model: Any, texts: list[np.ndarray], alone: list[np.ndarray], n_kept: int) -> None:
    precision = model.info.precision
    budget = max(1, n_kept * 3 * 64 * 32 * 17 // 32)
    with pyflash.Model.open(tiny.path, mtp=tiny.mtp_path, precision=precision, expert_budget=budget) as streaming:
        sessions = [open_session(streaming, i) for i in range(N_TEXTS)]
        for start, end in ((0, 30), (30, 31), (31, 36)):
            out = pyflash.eval_many([(sessions[i], texts[i][start:end]) for i in range(N_TEXTS)], "all")
            for i in range(N_TEXTS):
                same(out[i], alone[i][start:end])
        assert streaming.expert_reads.n_wanted > 0
        for session in sessions:
            session.close()


def test_two_threads_step_sessions_of_their_own(model: Any, texts: list[np.ndarray], alone: list[np.ndarray]) -> None:
    failures: list[BaseException] = []

    def steps(mine: tuple[int, ...]) -> None:
        try:
            sessions = [open_session(model, i) for i in mine]
            for start in range(0, 120, 4):
                out = pyflash.eval_many([(s, texts[i][start : start + 4]) for i, s in zip(mine, sessions)], "all")
                for i, logits in zip(mine, out):
                    same(logits, alone[i][start : start + 4])
            for session in sessions:
                session.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=steps, args=(mine,)) for mine in ((0, 1), (2, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
