"""Measures speed at several depths of context within one session."""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyflash.bench import steps
from pyflash.bench.steps import StepSpeed
from pyflash.bench.traffic import Traffic
from pyflash.engine.model import Model
from pyflash.engine.profiler import Operation
from pyflash.engine.session import Session
from pyflash.machine import hardware
from pyflash.native.errors import ArgumentError, Error, FileError

_WARM_PROMPT = 512  # most tokens evaluated before the first test: they come to every expert
_WARM_TOKENS = 2  # decoded before the clock runs
_CHECKPOINTS = 2
_LEAST_BANDWIDTH_BYTES = 1 << 28
Note = Callable[[str, int, int], None]  # (what is going on, tokens done, tokens in all)


@dataclass(frozen=True)
class Plan:
    """prompts: tokens to prefill, one test for each; gen: tokens to decode; 0 leaves a test out. batches: tokens of steps
    whose logits are all wanted, after the tests of each depth. chunk: most tokens evaluated at once, None for the
    session's default. session_cache: a folder where sessions filled to a depth are kept. profile: operations are timed.
    """

    prompts: tuple[int, ...] = (512,)
    gen: int = 32
    depths: tuple[int, ...] = (0,)
    repeat: int = 3
    chunk: int | None = None
    cache: str = "auto"
    session_cache: Path | None = None
    seed: int = 1
    batches: tuple[int, ...] = ()
    profile: bool = False

    @property
    def context(self) -> int:
        return max(self.depths) + max(*self.prompts, *self.batches, self.gen + _WARM_TOKENS, 1)


@dataclass(frozen=True)
class Speed:
    """One test at one depth. seconds: of each repetition. bandwidth: bytes/s that the machine could read, measured just
    before each of them. token_bytes: what a decoded token reads, weights and cache; None for prefill, and where a device
    reads some of it. ops:
    multiplications and additions of one token with weights. operations: of all repetitions, where the plan asks for it.
    """

    test: str
    depth: int
    n_tokens: int
    seconds: tuple[float, ...]
    bandwidth: tuple[float, ...]
    token_bytes: int | None
    cache_bytes: int | None
    ops: int
    operations: tuple[Operation, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.test} {self.n_tokens} at depth {self.depth}"

    @property
    def profiled(self) -> tuple[float, ...]:
        """The seconds that the operations are of."""
        return self.seconds

    @property
    def rates(self) -> tuple[float, ...]:
        return tuple(self.n_tokens / each for each in self.seconds)

    @property
    def tok_s(self) -> float:
        return statistics.median(self.rates)

    @property
    def bytes_s(self) -> float | None:
        """Bytes a second that decoding reads."""
        return None if self.token_bytes is None else self.token_bytes * self.tok_s

    @property
    def bandwidth_share(self) -> float | None:
        """Of the machine's read bandwidth, which is the most that decoding could reach; median of the repetitions."""
        if self.token_bytes is None:
            return None
        return statistics.median(self.token_bytes * rate / limit
                                 for rate, limit in zip(self.rates, self.bandwidth, strict=True))


@dataclass
class MemoryUse:
    """Bytes. resident and private: the most that this process had after any test; see hardware.ProcessMemory."""

    weight_bytes: int
    cache_bytes: int
    buffer_bytes: int
    checkpoint_bytes: int
    resident_bytes: int | None = None
    private_bytes: int | None = None

    def look(self) -> None:
        now = hardware.process_memory()
        if now is not None:
            self.resident_bytes = max(self.resident_bytes or 0, now.resident)
            self.private_bytes = max(self.private_bytes or 0, now.private)


def check_plan(plan: Plan, n_ctx_train: int) -> None:
    if not any(plan.prompts) and not plan.gen and not plan.batches:
        raise ArgumentError("there is nothing to measure: give a prompt, tokens to generate or a batch")
    if plan.context > n_ctx_train:
        raise ArgumentError(f"depth and test together are {plan.context} tokens; this model takes {n_ctx_train}")
    if plan.session_cache is not None and plan.session_cache.exists() and not plan.session_cache.is_dir():
        raise FileError(f"{plan.session_cache} is no folder: name one for the sessions")


@dataclass
class Bench:
    """`for speed in Bench(model, traffic, plan, note).run(): ...`; memory holds what is known so far.

    Depths come in ascending order, and the session grows from one to the next, so that each token of the way is
    evaluated once. A checkpoint at the depth leads back to it after each repetition. KeyboardInterrupt comes out of
    run() after the results of what was repeated at least once.
    """

    model: Model
    traffic: Traffic
    plan: Plan
    note: Note
    memory: MemoryUse = field(init=False)

    def __post_init__(self) -> None:
        check_plan(self.plan, self.model.info.n_ctx_train)
        # The way to a depth is the same whatever the depths, so that a kept session fits the next run too.
        self._way = np.random.default_rng(self.plan.seed).integers(
            0, self.model.info.n_vocab, max(self.plan.depths), dtype=np.int32)
        self._random = np.random.default_rng(self.plan.seed + 1)
        self._profiler = self.model.profiler() if self.plan.profile else None
        self._session = self.model.session(context=self.plan.context, chunk=self.plan.chunk, cache=self.plan.cache,
                                           checkpoints=_CHECKPOINTS)
        self._bandwidth_bytes = max(_LEAST_BANDWIDTH_BYTES, 4 * hardware.outer_cache_bytes())
        sizes = self._session.memory
        self.memory = MemoryUse(self.model.info.weight_bytes, sizes.cache_bytes, sizes.buffer_bytes,
                                sizes.checkpoint_bytes)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._session.close()

    @property
    def session(self) -> Session:
        return self._session

    @property
    def chunk(self) -> int:
        return self._session.chunk

    def run(self) -> Iterator[Speed | StepSpeed]:
        tests = [("prefill", n) for n in self.plan.prompts if n]
        if self.plan.gen:
            tests.append(("decode", self.plan.gen))
        for index, depth in enumerate(sorted(set(self.plan.depths))):
            self._go_to(depth)
            if index == 0:  # brings the weights into memory and the threads to life
                self._evaluate(min(max(self.plan.prompts) or 1, _WARM_PROMPT), "warming up")
            for test, n_tokens in tests:
                yield from self._repeat(test, depth, n_tokens)
            if self.plan.batches:
                yield from steps.run(self, depth)

    # -- tests --

    def tokens(self, n: int) -> npt.NDArray[np.int32]:
        return self._random.integers(0, self.model.info.n_vocab, n, dtype=np.int32)

    def _evaluate(self, n: int, what: str) -> None:
        """n tokens from here, and back."""
        start = self._session.position
        self._session.eval(self.tokens(n), progress=lambda done, total: self.note(what, done, total))
        self._session.rollback(self._session.position - start)

    def _repeat(self, test: str, depth: int, n_tokens: int) -> Iterator[Speed]:
        seconds: list[float] = []
        bandwidth: list[float] = []
        traffic = self.traffic
        cache_bytes = traffic.cache_bytes(depth + n_tokens // 2) if test == "decode" else None
        on_device = self.model.placement.weight_bytes > 0  # whose memory is not the machine's
        token_bytes = None if cache_bytes is None or on_device else traffic.decode_bytes + cache_bytes
        ops = traffic.decode_ops if test == "decode" else traffic.prefill_ops

        profiler = self._profiler

        def result() -> Speed:
            operations = () if profiler is None else tuple(profiler.operations())
            return Speed(test, depth, n_tokens, tuple(seconds), tuple(bandwidth), token_bytes, cache_bytes, ops, operations)

        if profiler is not None:
            profiler.reset()

        try:
            for number in range(self.plan.repeat):
                self.note(f"{test} {n_tokens} at depth {depth}", number, self.plan.repeat)
                rate = self.model.read_bandwidth(self._bandwidth_bytes)
                took = self._prefill(n_tokens) if test == "prefill" else self._decode(n_tokens)
                bandwidth.append(rate)
                seconds.append(took)
                self.memory.look()
                self._session.rollback(self._session.position - depth)
        except BaseException:
            if seconds:
                del bandwidth[len(seconds):]
                yield result()
            raise
        yield result()

    def _prefill(self, n_tokens: int) -> float:
        tokens = self.tokens(n_tokens)
        with self._profiled():
            started = time.perf_counter()
            self._session.eval(tokens)
            return time.perf_counter() - started

    def _decode(self, n_tokens: int) -> float:
        tokens = self.tokens(n_tokens + _WARM_TOKENS)
        for token in tokens[:_WARM_TOKENS]:
            self._session.eval([int(token)])
        with self._profiled():
            started = time.perf_counter()
            for token in tokens[_WARM_TOKENS:]:
                self._session.eval([int(token)])
            return time.perf_counter() - started

    @contextlib.contextmanager
    def _profiled(self) -> Iterator[None]:
        self._session.profile(self._profiler)
        try:
            yield
        finally:
            self._session.profile(None)

    # -- depths --

    def _go_to(self, depth: int) -> None:
        """Fills the session up to a depth by evaluating, or from a session kept there, and sets a checkpoint."""
        if depth > 0:
            self._load_nearest(depth)
            position = self._session.position
            if position < depth:
                what = f"filling to depth {depth}"
                self._session.eval(self._way[position:depth],
                                   progress=lambda done, _: self.note(what, position + done, depth))
                self._save(depth)
            self._session.checkpoint()

    def _file(self, depth: int) -> Path:
        assert self.plan.session_cache is not None
        info = self.model.info
        name = re.sub(r"[^\w.-]+", "_", info.name or "model").encode("utf-8")[:120].decode("utf-8", "ignore")
        return self.plan.session_cache / f"{name}-{info.precision}-{self.plan.cache}-{self.plan.seed}-{depth}.session"

    def _load_nearest(self, depth: int) -> None:
        """The kept session that is nearest to a depth, when it is further on than this one and fits the model."""
        if self.plan.session_cache is None:
            return
        kept = [int(path.stem.rpartition("-")[2]) for path in self.plan.session_cache.glob("*.session")
                if path.stem.rpartition("-")[2].isdecimal()]
        for known in sorted({each for each in kept if self._session.position < each <= depth}, reverse=True):
            path = self._file(known)
            if path.is_file() and self._load(path):
                return

    def _load(self, path: Path) -> bool:
        """Whether a kept session is of this model and the same tokens. It may be another model's of the same name."""
        start = self._session.position
        with contextlib.suppress(Error):
            self._session.load(path)
            tokens = self._session.tokens
            if len(tokens) <= len(self._way) and np.array_equal(tokens, self._way[:len(tokens)]):
                return True
            self._session.rollback(self._session.position)
            if start:
                self._session.eval(self._way[:start])
        return False

    def _save(self, depth: int) -> None:
        if self.plan.session_cache is not None:
            try:
                os.makedirs(os.path.realpath(self.plan.session_cache), exist_ok=True)
            except OSError as error:
                raise FileError(f"cannot make the folder {self.plan.session_cache}: {error.strerror}") from error
            self._session.save(self._file(depth))
