"""A session whose cache lies in several stages of a model, with the API of Session."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt

from pyflash.engine import stage_parts
from pyflash.engine.draft_lengths import DraftLedger
from pyflash.engine.generation import Generation, Progress, generate
from pyflash.engine.sampling import SamplingOptions
from pyflash.engine.session import Memory, Origin, PartsInfo, Session, checked_tokens, context_full, room_for_logits
from pyflash.engine.speculation import Propose, speculation
from pyflash.engine.steps import MOST_WAITING
from pyflash.native.errors import ArgumentError, BusyError, CancelledError, ClosedError, Error
from pyflash.native.values import FloatArray, StrPath, Tokens, integer, token_array

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from pyflash.chat import Message
    from pyflash.chat.reply import Reply
    from pyflash.engine.grammar import Grammar
    from pyflash.engine.model import ModelInfo
    from pyflash.engine.stage_chain import Check, Length, StageChain
    from pyflash.engine.stream import Cancellation
    from pyflash.engine.tokenizer import Tokenizer


class ChainedSession:
    """One token timeline, a part of whose cache each stage has; what stages do is up to their chain.

    A step goes through all stages before any of them is behind it for good, so all stand at the same position whatever
    happens.
    """

    is_watched: bool = False
    model: Any  # of a class of its own

    def __init__(self, chain: StageChain, info: ModelInfo, tokenizer: Tokenizer) -> None:
        """info: the whole model's."""
        self._chain = chain
        self._info = info
        self._lock = threading.Lock()          # held while a call runs
        self._cancel_lock = threading.RLock()  # held briefly
        self._cancel_asked = False
        self._checkpoint = 0
        self.n_moves = 0
        self.tokenizer: Final = tokenizer
        self.capacity: Final = chain.capacity
        self.chunk: Final = chain.chunk
        self.most_ahead: Final = chain.most_ahead
        self.draft_ledger: Final = DraftLedger()

    def _free(self) -> threading.Lock:
        """The lock of this session's calls, for a with statement."""
        if self._lock.locked():
            raise BusyError("the session is running another call")
        return self._lock

    def cancel(self) -> None:
        """From any thread: the running call, or else the next one that evaluates, raises CancelledError."""
        with self._cancel_lock:
            self._chain.position  # noqa: B018 - ClosedError
            self._cancel_asked = True
        self._chain.interrupt()

    @contextlib.contextmanager
    def _cancellable(self, cancellation: Cancellation | None) -> Iterator[Check]:
        """What a chain is to ask on its way."""

        def check() -> None:
            with self._cancel_lock:
                asked, self._cancel_asked = self._cancel_asked, False
            if asked or (cancellation is not None and cancellation.requested):
                raise CancelledError("cancelled")

        with contextlib.nullcontext() if cancellation is None else cancellation.during(self._chain.interrupt):
            yield check

    def close(self) -> None:
        """Frees the caches; a call that runs on another thread is cancelled first."""
        if self._lock.locked():
            try:
                self.cancel()
            except ClosedError:
                return
        with self._lock:
            self._chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # -- the timeline --

    @property
    def position(self) -> int:
        return self._chain.position

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        return self._chain.tokens

    def _check_room(self, n: int) -> None:
        if n > self.capacity - self.position:
            raise context_full(n, self.capacity, self.position)

    def eval(self, tokens: Tokens, all_logits: bool = False, progress: Progress | None = None, *,
             cancellation: Cancellation | None = None, piece: Length | None = None) -> FloatArray:
        """As Session.eval(); a step that fails or is cancelled in any stage is one in none. piece: gives the most tokens of
        each next piece; None: as suits the stages."""
        ids = checked_tokens(tokens, self._info.n_vocab)
        with self._free(), self._cancellable(cancellation) as check:
            self._check_room(len(ids))
            logits = room_for_logits(len(ids), len(ids) if all_logits else 1, self._info.n_vocab)
            begin = 0

            def done(end: int, found: FloatArray | None) -> None:
                nonlocal begin
                if found is not None:
                    logits[begin if all_logits else 0 : end] = found
                begin = end
                if progress is not None:
                    progress(end, len(ids))

            try:
                self._chain.evaluate(ids, "all" if all_logits else "last", check, done, piece)
            finally:
                self.n_moves += 1
        return logits if all_logits else logits[0]

    def keep(self, n: int) -> None:
        count = integer("the number of tokens to keep", n, 0, 2**63 - 1)
        with self._free():
            self._chain.keep(count)
            self.n_moves += 1

    @property
    def waiting(self) -> int:
        return self._chain.waiting

    def eval_ahead(self, tokens: Tokens, *, cancellation: Cancellation | None = None) -> FloatArray:
        ids = checked_tokens(tokens, self._info.n_vocab)
        most = min(MOST_WAITING, self.chunk)
        if len(ids) > most:
            raise ArgumentError(f"{len(ids)} tokens cannot be evaluated ahead: 1 to {most}")
        with self._free(), self._cancellable(cancellation) as check:
            self._check_room(len(ids))
            logits = self._chain.step(ids, check)
            self._chain.keep(1)
            self.n_moves += 1
        return logits

    def advance(self) -> bool:
        with self._free():
            has_moved = self._chain.advance()
            self.n_moves += has_moved
            return has_moved

    @property
    def ahead(self) -> int:
        return self._chain.ahead

    def draft(self, next_token: int) -> FloatArray:
        with self._free():
            return cast("FloatArray", self._chain.ask(-1, "draft", next_token))

    def draft_tokens(self, next_token: int, n: int) -> tuple[list[int], list[float]]:
        with self._free():
            tokens, chances = self._chain.ask(-1, "draft_tokens", next_token, n)
        return tokens, chances

    def rollback(self, n: int) -> None:
        count = integer("the number of tokens to drop", n, 0, 2**63 - 1)
        with self._free():
            self._rollback(count)

    def _rollback(self, n: int) -> None:
        self._chain.rollback(n)
        self.n_moves += 1

    @property
    def rollback_limit(self) -> int:
        with self._free():
            return min(int(each) for each in self._chain.ask_all("rollback_limit"))

    def checkpoint(self) -> None:
        with self._free():
            self._chain.ask_all("checkpoint")
            self._checkpoint = self.position

    @property
    def since_checkpoint(self) -> int:
        return self.position - (self._checkpoint if self._checkpoint <= self.position else 0)

    def align(self, tokens: Tokens) -> list[int]:
        ids = token_array(tokens)
        with self._free():
            return cast("list[int]", self._chain.ask(0, "align", ids))

    def hide_last(self) -> None:
        with self._free():
            self._chain.ask(0, "hide_last")

    def reusable(self, tokens: Tokens) -> int:
        """The last position that all stages can return to."""
        ids = token_array(tokens)
        with self._free():
            return self._reusable(ids)

    def _reusable(self, ids: npt.NDArray[np.int32]) -> int:
        kept = len(ids)
        while kept > 0:
            found = min(self._chain.ask_all("reusable", ids[: kept + 1]))
            if found == kept:
                break
            kept = found
        return kept

    def reuse(self, tokens: Tokens) -> int:
        ids = token_array(tokens)
        if len(ids) == 0:
            raise ArgumentError("there are no tokens to compare with")
        with self._free():
            kept = self._reusable(ids)
            self._rollback(self.position - kept)
        return kept

    # -- files --

    @property
    def note(self) -> bytes:
        with self._free():
            return self._chain.note

    @note.setter
    def note(self, data: bytes) -> None:
        with self._free():
            self._chain.note = data

    def save(self, path: StrPath) -> None:
        """Each stage's file is written, path and path.layers-FIRST-END: each all or nothing, one after the other."""
        with self._free():
            self._chain.save(path)

    def load(self, path: StrPath) -> None:
        """As Session.load(), from what save() wrote. FormatError where the stages' files were not saved together."""
        with self._free():
            self._chain.load(path)
            self._checkpoint = 0
            self.n_moves += 1

    def hold(self, path: StrPath | None) -> None:
        """As Session.hold(), for the file of the first stage, which stands for all."""
        with self._free():
            self._chain.hold(path)

    @property
    def origin(self) -> Origin:
        """What computed the first stage's file that was loaded last. n_foreign: of the stage that has most of them."""
        with self._free():
            each: list[Origin] = self._chain.ask_all("origin")
        return replace(each[0], n_foreign=max(origin.n_foreign for origin in each))

    # -- parts: of all stages as one --

    @property
    def parts(self) -> tuple[PartsInfo, ...]:
        """Session.parts of each stage: another cut has other parts."""
        with self._free():
            return tuple(self._chain.ask_all("parts"))

    def export_rows(self, begin: int, end: int) -> bytearray:
        with self._free():
            return stage_parts.join_rows(self._chain.ask_all("export_rows", begin, end))

    def export_tail(self, position: int | None = None) -> bytearray:
        with self._free():
            return stage_parts.join_tails(self._chain.ask_all("export_tail", self.position if position is None else position))

    def import_rows(self, begin: int, end: int, data: bytes | bytearray | memoryview) -> None:
        """As Session.import_rows(); FormatError for what another cut has exported."""
        with self._free():
            parts = stage_parts.split(data, self.model.n_stages)
            self._chain.ask_each("import_rows", [(begin, end, part) for part in parts])

    def import_tail(self, tokens: Tokens, data: bytes | bytearray | memoryview) -> None:
        """As Session.import_tail(): in all stages or in none. Where one refuses what others have taken, the tokens are
        evaluated again."""
        ids = token_array(tokens)
        with self._free():
            self._chain.take_tails(ids, stage_parts.split(data, self.model.n_stages))
            self.n_moves += 1

    @property
    def memory(self) -> Memory:
        with self._free():
            each = self._chain.ask_all("memory")
        return Memory(sum(m.cache_bytes for m in each), sum(m.buffer_bytes for m in each),
                      sum(m.checkpoint_bytes for m in each))  # fmt: skip

    # -- generation, which asks no more of a session than what is above --

    def generate(
        self, tokens: Tokens, max_tokens: int | None = None, *, stop: str | Sequence[str] = (), logprobs: int = 0,
        grammar: Grammar | None = None, progress: Progress | None = None, draft: str | Propose = "auto",
        draft_max: int | None = None, **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """Session.generate()."""
        session = cast("Session", self)
        return generate(session, tokens, max_tokens, stop, logprobs, grammar, progress,
                        speculation(session, draft, draft_max), sampling)

    def chat(self, messages: Sequence[Message], think: str = "off", tools: Sequence[Mapping[str, Any]] | None = None,
             **options: Any) -> Reply:
        """Session.chat()."""
        chat: Callable[..., Reply] = Session.chat
        return chat(self, messages, think, tools, **options)


Work = Sequence[tuple[ChainedSession, Tokens]]


def eval_chained(work: Work, logits: Literal["last", "all", "none"], keep: bool, return_errors: bool) -> list[Any]:
    """eval_many() of sessions in stages. As many groups of them as there are stages go through these one behind the other,
    each group's tokens in one step, so that all stages work at once; sessions with many tokens go by themselves."""
    sessions = [session for session, _ in work]
    if any(not isinstance(session, ChainedSession) or session.model is not sessions[0].model for session in sessions):
        raise ArgumentError("the sessions are of several models: evaluate each model's by themselves")
    if len({id(session) for session in sessions}) < len(sessions):
        raise ArgumentError("a session is named twice: give it its tokens together")
    ids = [checked_tokens(tokens, session.model.info.n_vocab) for session, tokens in work]
    most = min(MOST_WAITING, sessions[0].chunk)
    short = [i for i in range(len(work)) if len(ids[i]) <= most]
    if not keep and len(short) < len(work):
        raise ArgumentError(f"{max(map(len, ids))} tokens cannot wait to be kept, at most {most}")
    n_groups = min(len(short), sessions[0].model.n_stages)
    groups = [short[i::n_groups] for i in range(n_groups)]
    found: dict[int, Any] = {}

    def step(group: list[int]) -> None:
        found.update(zip(group, _step_group([(sessions[i], ids[i]) for i in group], keep), strict=True))

    def alone(i: int) -> None:
        try:
            found[i] = sessions[i].eval(ids[i], logits == "all")
        except Error as error:
            found[i] = error

    with ThreadPoolExecutor(len(work), "pyflash step") as threads:
        calls = [threads.submit(step, group) for group in groups]
        calls += [threads.submit(alone, i) for i in range(len(work)) if i not in short]
    for call in calls:
        call.result()
    results = [found[i] for i in range(len(work))]
    failed = next((each for each in results if isinstance(each, Exception)), None)
    if failed is not None and not return_errors:
        if not keep:
            for session, result in zip(sessions, results, strict=True):
                if not isinstance(result, Exception):
                    session.keep(0)
        raise failed
    return [each if isinstance(each, Exception) or logits == "all" or i not in short else each[-1] if logits == "last" else None
            for i, each in enumerate(results)]  # fmt: skip


def _step_group(work: Sequence[tuple[ChainedSession, npt.NDArray[np.int32]]], keep: bool) -> list[Any]:
    """Logits [n, vocab] or an error of each."""
    results: dict[int, Any] = {}
    with contextlib.ExitStack() as held:
        live, checks = [], []
        for i, (session, ids) in enumerate(work):
            held.enter_context(session._free())
            check = held.enter_context(session._cancellable(None))
            try:
                session._check_room(len(ids))
            except Error as error:
                results[i] = error
            else:
                live.append(i)
                checks.append(check)
        if live:
            chains = [work[i][0]._chain for i in live]
            found = chains[0].step_with(chains[1:], [work[i][1] for i in live], checks)
            results.update(zip(live, found, strict=True))
        for i, (session, ids) in enumerate(work):
            if keep and not isinstance(results[i], Exception):
                session._chain.keep(len(ids))
            session.n_moves += 1
    return [results[i] for i in range(len(work))]
