"""The prefix cache by itself: a hit equals a cold run whatever came before, damage is a miss, the folder keeps its limit."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyflash import CancelledError, Model, StagedModel
from pyflash.engine.chained_session import ChainedSession
from pyflash.engine.stream import Cancellation
from pyflash.serve import disk_files, disk_folder
from pyflash.serve.disk_cache import DiskCache, model_key
from pyflash.serve.disk_files import CHUNK, Damaged
from pyflash.serve.disk_writer import Writer

LEAST = 64  # of what these tests keep
CONTEXT = 1600


@pytest.fixture(scope="module", params=[1, 2], ids=["whole", "2 stages"])
def model(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[Any]:
    opened: Any = Model.open(tiny_model, threads=1) if request.param == 1 else StagedModel.open(tiny_model, 2, threads=1)
    with opened:
        yield opened


@pytest.fixture(scope="module")
def whole(tiny_model: Path) -> Iterator[Model]:
    """For what does not depend on who has made the files."""
    with Model.open(tiny_model, threads=1) as opened:
        yield opened


def tokens(seed: int, n: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(10, 200, n)]


def opened(model: Model, folder: Path, limit: int = 1 << 40) -> DiskCache:
    cache = DiskCache(folder, limit, LEAST)
    with model.session(CONTEXT) as session:
        cache.open(model, session)
    return cache


def restored(cache: DiskCache, session: Any, prompt: list[int], salt: bytes = b"") -> int:
    """As the engine does it; returns how many tokens of the prompt are evaluated then."""
    for _ in cache.restore(session, prompt, salt, session.reuse(prompt)):
        pass
    return int(session.reuse(prompt))


# -- a hit is a cold run --


class Histories:
    """Two sessions and one cache that live on from one history to the next, and what cold runs give."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.cache = opened(model, folder)
        self.sessions = [model.session(CONTEXT, checkpoints=3), model.session(CONTEXT, checkpoints=3, chunk=100)]
        self.cold: dict[tuple[int, ...], Any] = {}
        self.n_hits = 0

    def expected(self, prompt: list[int]) -> Any:
        """The bits of the logits after a prompt, of a session that has never seen anything else."""
        key = tuple(prompt)
        if key not in self.cold:
            with self.model.session(CONTEXT) as session:
                self.cold[key] = session.eval(prompt).view(np.uint32)
        return self.cold[key]

    def ask(self, at: int, prompt: list[int], uses_disk: bool, cut: int | None) -> None:
        """Evaluates a prompt with what can be reused. cut: a step of so many tokens is given up first."""
        session = self.sessions[at]
        before = session.reuse(prompt)
        if uses_disk:
            self.n_hits += restored(self.cache, session, prompt) > before
        if cut:
            given_up(session, prompt[session.position :][:cut])
        session.reuse(prompt)
        logits = session.eval(prompt[session.position :])
        assert (logits.view(np.uint32) == self.expected(prompt)).all(), (session.position, uses_disk)


def given_up(session: Any, run: list[int]) -> None:
    """A step that is cancelled in its middle, by a tap; of stages, which have none, before it."""
    if len(run) < 2:
        return
    if isinstance(session, ChainedSession):
        session.cancel()
        with pytest.raises(CancelledError):
            session.eval(run)
        return

    def stop(name: str, layer: int, position: int, data: Any) -> None:
        raise CancelledError("enough")

    session.set_tap(stop)
    with pytest.raises(CancelledError):
        session.eval(run)
    session.set_tap(None)


@pytest.fixture(scope="module")
def histories(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Histories:
    return Histories(model, tmp_path_factory.mktemp("histories"))


LENGTHS = st.sampled_from([1, 3, 16, 17, 100, 127, 128, 129, 200, 255, 256, 257, 300])
OFTEN = st.sampled_from([True, True, False])
ASK = st.tuples(st.just("ask"), st.integers(0, 1), LENGTHS, st.integers(0, 1), OFTEN, st.sampled_from([None, None, 2, 130, 300]),
                OFTEN)  # fmt: skip
OTHER = st.one_of(
    st.tuples(st.just("back"), st.integers(0, 1), st.integers(0, 400)),
    st.tuples(st.just("save"), st.integers(0, 1), st.sampled_from(["turn", "base"])),
    st.tuples(st.just("checkpoint"), st.integers(0, 1)),
    st.tuples(st.just("taken"), st.integers(0, 1)),
    st.tuples(st.just("restart")),
    st.tuples(st.just("lose"), st.integers(0, 2**16)),
)
STEPS = st.lists(st.tuples(ASK, OTHER), min_size=3, max_size=8).map(lambda pairs: [step for pair in pairs for step in pair])


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(steps=STEPS)
def test_any_history_gives_the_bits_of_a_cold_run(histories: Histories, steps: list[Any]) -> None:
    """Branches, rollbacks, checkpoints, cancelled steps, restarts, files that get lost: conversations share beginnings, go
    on in either session, and come from memory or the disk."""
    said: list[list[int]] = [[], []]  # what each session's conversation is so far
    for what, *given_ in steps:
        if what == "ask":
            at, n, seed, uses_disk, cut, saves = given_
            said[at] = [*said[at], *tokens(seed, n)]
            if len(said[at]) > CONTEXT - 300:
                said[at] = said[at][:CHUNK]
            histories.ask(at, said[at], uses_disk, cut)
            if saves:
                histories.cache.save(histories.sessions[at], b"")
        elif what == "back":  # the client edits an earlier message; the other one's beginning is as good as its own
            at, n = given_
            said[at] = said[1 - at][: max(0, len(said[1 - at]) - n)]
        elif what == "save":
            at, kind = given_
            histories.cache.save(histories.sessions[at], b"", kind=kind)
        elif what == "checkpoint":
            histories.sessions[given_[0]].checkpoint()
        elif what == "taken":  # another conversation had the slot
            histories.sessions[given_[0]].rollback(histories.sessions[given_[0]].position)
        elif what == "restart":
            histories.cache.close()
            histories.cache = opened(histories.model, histories.folder)
            for session in histories.sessions:
                session.rollback(session.position)
        else:
            histories.cache.flush()
            every = sorted(each.path for each in disk_folder.stored(histories.folder))
            if every:
                every[given_[0] % len(every)].unlink()


def test_these_histories_had_hits(histories: Histories) -> None:
    """Else the one before has told nothing."""
    if not histories.cold:
        pytest.skip("the histories have not been run")
    assert histories.n_hits > 20


def test_a_step_that_another_thread_cancels_is_no_loss(model: Model, tmp_path: Path) -> None:
    cache, prompt = opened(model, tmp_path), tokens(1, 900)
    with model.session(CONTEXT) as session, model.session(CONTEXT) as other:
        cold = other.eval(prompt)
        cancellation = Cancellation()
        threading.Timer(0.02, cancellation.request).start()
        try:
            session.eval(prompt, cancellation=cancellation)
        except CancelledError:
            pass
        cache.save(session, b"")
        session.rollback(session.position)
        n = restored(cache, session, prompt)
        assert (session.eval(prompt[n:]).view(np.uint32) == cold.view(np.uint32)).all()


# -- damage --


def kept(model: Model, folder: Path, n: int = 700) -> tuple[list[int], dict[Path, bytes]]:
    """A conversation in a folder, and its files."""
    cache, prompt = opened(model, folder), tokens(7, n)
    with model.session(CONTEXT) as session:
        session.eval(prompt[:-1])
        cache.save(session, b"")
    cache.close()
    return prompt, {each.path: each.path.read_bytes() for each in disk_folder.stored(folder)}


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bits flipped, bytes cut off, cut out or put in."""
    out, at = bytearray(data), rng.randrange(len(data))
    what = rng.random()
    if what < 0.7:
        for _ in range(rng.choice([1, 1, 1, 2, 9])):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif what < 0.8:
        del out[at:]
    elif what < 0.9:
        del out[at : at + rng.choice([1, 4, 64])]
    else:
        out[at:at] = rng.randbytes(rng.choice([1, 4, 64]))
    return bytes(out)


def check_damage(files: dict[Path, bytes], folder: Path, n: int, seed: int) -> None:
    """Whether reading notices each of n damages."""
    rng, every = random.Random(seed), sorted(files)
    for _ in range(n):
        path = rng.choice(every)
        data = damaged(rng, files[path])
        if data == files[path]:
            continue
        (folder / path.name).write_bytes(data)
        with pytest.raises(Damaged):
            (disk_files.read if path.suffix == ".rows" else disk_files.read_tail)(folder / path.name)


def test_any_damage_is_noticed(whole: Model, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    _, files = kept(whole, tmp_path)
    check_damage(files, tmp_path / "other", 2500, 1)
    for path, data in files.items():  # whole ones under another's name
        for other in files:
            if other != path:
                (tmp_path / "other" / path.name).write_bytes(files[other])
                with pytest.raises(Damaged):
                    disk_files.read(tmp_path / "other" / path.name)
        assert data


@pytest.mark.long
def test_a_hundred_thousand_damages_are_noticed(whole: Model, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    _, files = kept(whole, tmp_path)
    check_damage(files, tmp_path / "other", 100_000, 2)


def test_damage_is_a_miss(model: Model, tmp_path: Path) -> None:
    """Of any file, and any one missing: what is before it is used, what it says never; and it is gone then."""
    prompt, files = kept(model, tmp_path)
    with model.session(CONTEXT) as session:
        cold = session.eval(prompt)
        rng = random.Random(3)
        for n in range(60):
            path = sorted(files)[n % len(files)]
            for each, data in files.items():
                each.write_bytes(data)
            if n % 5:
                path.write_bytes(damaged(rng, files[path]))
            else:
                path.unlink()
            cache = opened(model, tmp_path)
            session.rollback(session.position)
            n_kept = restored(cache, session, prompt)
            assert n_kept == 0 or path.read_bytes() == files[path]
            assert (session.eval(prompt[n_kept:]).view(np.uint32) == cold.view(np.uint32)).all()
            cache.close()
            assert not path.exists() or path.read_bytes() == files[path]


def test_what_is_lost_is_written_again_with_the_next_turn(model: Model, tmp_path: Path) -> None:
    prompt, files = kept(model, tmp_path)
    cache = opened(model, tmp_path)
    with model.session(CONTEXT) as session:
        assert restored(cache, session, prompt) == len(prompt) - 1
        rows = [path for path in files if path.suffix == ".rows"]
        rows[0].unlink()
        session.eval(prompt[session.position :])
        cache.save(session, b"")  # finds it missing
        session.eval(tokens(8, 100))
        cache.save(session, b"")
        cache.flush()
        assert rows[0].read_bytes() == files[rows[0]]  # the same bytes
        longer = [*prompt, *tokens(8, 100), 5]
        session.rollback(session.position)
        assert restored(cache, session, longer) == len(longer) - 1
    cache.close()


def test_logs_of_turns_that_are_damaged() -> None:
    lines = [b'["%d", "a turn"]' % n for n in range(50)]
    data = b"".join(map(disk_files.sealed, lines))
    assert disk_files.unsealed(data) == lines
    rng = random.Random(4)
    for _ in range(3000):
        left = disk_files.unsealed(damaged(rng, data))
        assert set(left) <= set(lines) and len(left) >= len(lines) - 60


# -- who shares, and what goes --


def test_conversations_share_what_they_begin_with(model: Model, tmp_path: Path) -> None:
    cache, begin = opened(model, tmp_path), tokens(1, 600)
    with model.session(CONTEXT) as session:
        for seed in range(3):
            restored(cache, session, [*begin, *tokens(10 + seed, 100)])
            session.eval([*begin, *tokens(10 + seed, 100)][session.position :])
            cache.save(session, b"")
        session.rollback(session.position)
        session.eval(begin)
        cache.save(session, b"another key")
    cache.close()
    names = [each.path.name for each in disk_folder.stored(tmp_path)]
    assert sum(name.endswith(".rows") for name in names) == 2 + 2 and sum(name.endswith(".turn") for name in names) == 4


def test_a_folder_keeps_its_limit(model: Model, tmp_path: Path) -> None:
    """What was used longest ago goes, and what others begin with stays as long as they."""
    _, files = kept(model, tmp_path / "sizes")
    one = sum(map(len, files.values()))
    limit = 5 * one
    cache, begin = opened(model, tmp_path / "folder", limit), tokens(1, 300)
    with model.session(CONTEXT) as session:
        session.eval(begin)
        cache.save(session, b"", kind="base")
        for seed in range(20):
            prompt = [*begin, *tokens(100 + seed, 500)]
            assert restored(cache, session, prompt) >= len(begin)
            session.eval(prompt[session.position :])
            cache.save(session, b"")
            cache.flush()
            assert sum(each.n_bytes for each in disk_folder.stored(tmp_path / "folder")) <= limit + one
        cache.close()
        every = list(disk_folder.stored(tmp_path / "folder"))
        assert limit // 2 < sum(each.n_bytes for each in every) <= limit
        assert {each.tail.kind for each in every if each.tail} == {"turn", "base"}
        cache = opened(model, tmp_path / "folder", limit)
        for seed in (19, 18):
            prompt = [*begin, *tokens(100 + seed, 500), 1]
            session.rollback(session.position)
            assert restored(cache, session, prompt) == len(prompt) - 1
        session.rollback(session.position)
        assert restored(cache, session, [*begin, *tokens(100, 500)]) == len(begin)  # of the oldest its beginning


def test_what_would_fill_the_cache_is_not_kept(model: Model, tmp_path: Path) -> None:
    """Else each turn of one long conversation would push out all others, and itself."""
    _, files = kept(model, tmp_path / "sizes")
    cache = opened(model, tmp_path / "folder", sum(map(len, files.values())))
    with model.session(CONTEXT) as session:
        session.eval(tokens(1, 1500))
        cache.save(session, b"")
    cache.close()
    assert not any(each.tail for each in disk_folder.stored(tmp_path / "folder"))


def test_only_a_conversations_latest_turns_stay(model: Model, tmp_path: Path) -> None:
    cache = opened(model, tmp_path)
    with model.session(CONTEXT) as session:
        session.eval(tokens(1, 100))
        cache.save(session, b"", kind="base")
        for n in range(12):
            session.eval(tokens(n, 40))
            cache.save(session, b"")
    cache.close()
    ends = sorted(each.end for each in disk_folder.stored(tmp_path) if each.tail)
    assert ends == [100, *(100 + 40 * n for n in range(5, 13))]


def test_unfinished_files_go(model: Model, tmp_path: Path) -> None:
    _, files = kept(model, tmp_path)
    place = next(iter(files)).parent
    for name, age in (("1-1.part", 7200), ("2-2.part", 0)):
        (place / name).write_bytes(b"half")
        os.utime(place / name, (time.time() - age,) * 2)
    opened(model, tmp_path).close()
    assert len(list(disk_folder.stored(tmp_path))) == len(files)
    assert [path.name for path in place.glob("*.part")] == ["2-2.part"]  # another server's, perhaps


def test_the_usual_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    for free, limit in ((1 << 50, 16 << 30), (1000, 100), (0, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        assert disk_folder.usual_limit(tmp_path / "not" / "yet") == limit


def test_models_and_what_computes_them_have_keys_of_their_own(model: Model, tiny_model: Path, demo_model: Path) -> None:
    def key(path: Path = tiny_model, cache: str = "auto", **options: Any) -> str:
        with Model.open(path, threads=1, **options) as other, other.session(200, cache=cache) as session:
            return model_key(other, session)

    assert key() == key()
    def staged_key(stages: Any) -> str:
        with StagedModel.open(tiny_model, stages, threads=1) as other, other.session(200) as session:
            return model_key(other, session)  # type: ignore[arg-type]

    assert len({key(), key(demo_model), key(cache="f16"), key(precision="exact"), key(isa="scalar"), staged_key(1),
                staged_key(2), staged_key([(0, 1), (1, model.info.n_layer)])}) == 8  # fmt: skip


# -- the writer --


def test_a_slow_disk_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pyflash.serve.disk_writer.MOST_WAITING", 1000)
    writer, gate, done = Writer(tmp_path, 1 << 30), threading.Event(), []
    assert writer.submit(gate.wait, 900)
    assert not writer.submit(lambda: done.append("dropped"), 200)  # it would wait in memory
    assert writer.submit(lambda: done.append("kept"), 100)
    gate.set()
    writer.wait()
    assert done == ["kept"] and writer.submit(lambda: done.append("later"), 5000)  # one alone may be large
    writer.close()
    assert done == ["kept", "later"]


def test_failures_end_nothing(tmp_path: Path) -> None:
    writer, done = Writer(tmp_path, 1 << 30), []

    def failing(error: Exception) -> Callable[[], None]:
        def work() -> None:
            raise error

        return work

    writer.submit(failing(ValueError("a bug")))
    writer.submit(failing(OSError(28, "No space left on device")), 10)
    writer.submit(lambda: done.append(1))
    writer.wait()
    assert done == [1] and not writer.submit(lambda: done.append(2), 10)  # for a while
    writer.close()
