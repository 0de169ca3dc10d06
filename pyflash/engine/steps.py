"""Steps of several sessions: their tokens go through the model together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, overload

import numpy as np
import numpy.typing as npt

from pyflash.engine.options import chosen
from pyflash.engine.session import Session, checked_tokens, context_full, room_for_logits
from pyflash.native.errors import ArgumentError, Error, check
from pyflash.native.library import ffi, lib
from pyflash.native.values import FloatArray, Tokens, floats, ints

Wish = Literal["last", "all", "none"]
Work = Sequence[tuple[Session, Tokens]]

MOST_WAITING: int = lib.PF_STEP_WAITING  # tokens of a session that can wait to be kept

_MODES = {"none": lib.PF_LOGITS_NONE, "last": lib.PF_LOGITS_LAST, "all": lib.PF_LOGITS_ALL}


@dataclass
class _Share:
    """What one session brings, and how far it is. logits: [n, vocab] or [1, vocab], where they are wished for. Of a stage
    streams are what the stage before handed on, and handed_on what this one does: [n, N, D] each."""

    session: Session
    ids: npt.NDArray[np.int32]
    logits: FloatArray | None = None
    done: int = 0
    error: BaseException | None = None
    streams: FloatArray | None = None
    handed_on: FloatArray | None = None

    def fill(self, native: Any, mode: int, flags: int) -> None:
        """Writes the next step's part into a pf_step_share."""
        n = min(len(self.ids) - self.done, self.session.chunk)
        is_last = self.done + n == len(self.ids)
        native.struct_size = ffi.sizeof("pf_step_share")
        native.session = self.session._native()
        native.tokens = ints(self.ids[self.done :])
        native.n_tokens = n
        native.flags = flags
        native.logits_mode = mode if is_last or mode == lib.PF_LOGITS_ALL else lib.PF_LOGITS_NONE
        if self.logits is not None and native.logits_mode != lib.PF_LOGITS_NONE:
            rows = self.logits[self.done :] if mode == lib.PF_LOGITS_ALL else self.logits
            native.logits, native.logits_capacity = floats(rows), rows.size
        if self.streams is not None:
            native.streams_in, native.n_streams_in = floats(self.streams), self.streams.size
        if self.handed_on is not None:
            native.streams_out, native.streams_capacity = floats(self.handed_on), self.handed_on.size


def _shares(work: Work, mode: int, flags: int) -> list[_Share]:
    """The work, checked as far as that concerns all of it."""
    try:
        pairs = [(session, tokens) for session, tokens in work]
    except (TypeError, ValueError):
        raise ArgumentError("what is to be evaluated must be pairs of a session and its tokens") from None
    for session, _ in pairs:
        if not isinstance(session, Session):
            raise ArgumentError(f"{session!r:.40} is not a session")
    shares = [_Share(session, checked_tokens(tokens, session.model.info.n_vocab)) for session, tokens in pairs]
    if len({id(share.session) for share in shares}) < len(shares):
        raise ArgumentError("a session is named twice: give it its tokens together")
    for share in shares:
        if share.session.model is not shares[0].session.model:
            raise ArgumentError("the sessions are of several models: evaluate each model's by themselves")
        most = share.session.chunk if flags != 0 else min(MOST_WAITING, share.session.chunk)
        if flags != lib.PF_STEP_KEEP and len(share.ids) > most:
            raise ArgumentError(f"{len(share.ids)} tokens cannot wait to be kept, at most {most}")
        if mode != lib.PF_LOGITS_NONE:
            n = len(share.ids)
            share.logits = room_for_logits(n, n if mode == lib.PF_LOGITS_ALL else 1, share.session.model.info.n_vocab)
    return shares


def _hold(sessions: Sequence[Session], call: Callable[[], None]) -> None:
    """call() with the locks of all sessions, which everybody takes in the same order."""
    if not sessions:
        call()
        return
    with sessions[0]._free():
        _hold(sessions[1:], call)


def _check_room(share: _Share) -> None:
    session = share.session
    session._native()
    if len(share.ids) > session.capacity - session.position:
        share.error = context_full(len(share.ids), session.capacity, session.position)


def _take_error(share: _Share, native: Any) -> None:
    tap = share.session._tap
    if tap is not None and tap.error is not None:
        share.error, tap.error = tap.error, None
        return
    try:
        check(native.error.code, native.error)
    except Error as error:
        share.error = error


def _step(shares: Sequence[_Share], mode: int, flags: int) -> None:
    """One native step of all. The caller holds the sessions."""
    natives = ffi.new("pf_step_share[]", len(shares))
    for share, native in zip(shares, natives, strict=True):
        share.fill(native, mode, flags)
    interrupted = False

    def run(places: list[int]) -> None:
        while places:
            part = ffi.new("pf_step_share[]", [natives[i] for i in places])
            lib.pf_step_eval(part, len(places), ffi.NULL)
            for at, i in enumerate(places):
                natives[i] = part[at]
            # A request may have been for a call that was over before it came.
            places = [i for i in places if natives[i].error.code == lib.PF_ERR_CANCELLED
                      and not shares[i].session._is_cancelled(interrupted, None)]  # fmt: skip

    def call() -> None:
        run(list(range(len(shares))))
        for share, native in zip(shares, natives, strict=True):
            share.session._note_step()
            _take_error(share, native)
            if share.error is None:
                share.done += native.n_tokens

    def cancel() -> None:
        nonlocal interrupted
        interrupted = True
        for native in natives:
            lib.pf_session_cancel(native.session)

    shares[0].session._runner.run(call, cancel)


def _evaluate(shares: Sequence[_Share], mode: int, flags: int) -> None:
    for share in shares:
        _check_room(share)
    while active := [share for share in shares if share.error is None and share.done < len(share.ids)]:
        _step(active, mode, flags)


def _drop_waiting(shares: Sequence[_Share]) -> None:
    for share in shares:
        if share.done > 0:
            with contextlib.suppress(Error):  # closed meanwhile
                share.session.keep(0)


def _run(shares: Sequence[_Share], mode: int, flags: int, return_errors: bool) -> None:
    """All steps of the shares. What raises leaves nothing waiting."""
    sessions = sorted((share.session for share in shares), key=id)
    try:
        _hold(sessions, lambda: _evaluate(shares, mode, flags))
        failed = next((share.error for share in shares if share.error is not None), None)
        if failed is not None and not return_errors:
            raise failed
    except BaseException:
        if flags != lib.PF_STEP_KEEP:
            _drop_waiting(shares)
        raise


@overload
def eval_many(work: Work, logits: Literal["last", "all"] = ..., *, keep: bool = ...) -> list[FloatArray]: ...
@overload
def eval_many(work: Work, logits: Literal["none"], *, keep: bool = ...) -> list[None]: ...
@overload
def eval_many(work: Work, logits: Wish = ..., *, keep: bool = ...,
              return_errors: bool) -> list[FloatArray | BaseException | None]: ...  # fmt: skip


def eval_many(work: Work, logits: Wish = "last", *, keep: bool = True, return_errors: bool = False) -> Sequence[Any]:
    """Evaluates tokens of several sessions of one model together, so that every weight is read once for all of them.

    work: (session, tokens) each. A session's logits are the same bits as those of its own eval(): float32 [vocab] after
    its last token with logits="last", [n, vocab] with "all", None with "none", in the order of work. Sessions that bring
    more than their chunk take several steps, the others only the first.

    keep=False, for at most 128 tokens (and a chunk) each: the sessions stay where they were, and the tokens wait until
    Session.keep() says how many of them each goes on with.

    One session's ContextFullError, CancelledError (cancel() of that session), MemoryLimitError, or an exception from its
    tap ends its part alone. When all is done the first of them is raised, and nothing waits; with return_errors=True it
    stands in its session's place instead. On Ctrl-C the finished steps stay evaluated, and nothing waits. Raises
    ArgumentError, BusyError or ClosedError before anything is evaluated.
    """
    mode = chosen("logits", logits, _MODES)
    if _is_in_stages(work):
        from pyflash.engine.chained_session import eval_chained

        return eval_chained(cast("Any", work), logits, keep, return_errors)
    flags = lib.PF_STEP_KEEP if keep else 0
    shares = _shares(work, mode, flags)
    _run(shares, mode, flags, return_errors)
    return [share.error if share.error is not None else _result(share, mode) for share in shares]


def _is_in_stages(work: Any) -> bool:
    """Whether the work begins with a session whose cache lies in several stages."""
    from pyflash.engine.chained_session import ChainedSession  # which builds on this module

    try:
        return isinstance(work[0][0], ChainedSession)
    except (TypeError, IndexError, KeyError):
        return False


def _result(share: _Share, mode: int) -> FloatArray | None:
    return share.logits[0] if share.logits is not None and mode == lib.PF_LOGITS_LAST else share.logits


StageWork = Sequence[tuple[Session, Tokens, FloatArray | None]]


def eval_stage(work: StageWork, logits: Wish = "none", *, return_errors: bool = False) -> list[Any]:
    """Takes one step through a stage of a model, Model.open(..., layers=(first, end)): tokens of several of its sessions.

    work: (session, tokens, streams) each, at most a chunk of tokens. streams: what this function gave for the same tokens
    in the stage before, float32 [n, N, D] (info.n_stream, info.n_embd); None in the first stage. Gives the same for the
    next stage, and logits as of eval_many() in the stage with the last layer.

    The sessions stay where they were: when the tokens have gone through all stages, Session.keep() in each stage says
    with how many to go on, all or 0 where there are more than 128. Errors as of eval_many().
    """
    mode = chosen("logits", logits, _MODES)
    shares = _shares([(session, tokens) for session, tokens, _ in work], mode, lib.PF_STEP_WHOLE)
    for share, (session, _, streams) in zip(shares, work, strict=True):
        info = session.model.info
        if streams is not None:
            share.streams = np.ascontiguousarray(streams, dtype=np.float32)
        if info.end_layer < info.n_layer:
            share.handed_on = np.empty((len(share.ids), info.n_stream, info.n_embd), dtype=np.float32)
    _run(shares, mode, lib.PF_STEP_WHOLE, return_errors)
    return [share.error if share.error is not None else share.handed_on if share.handed_on is not None
            else _result(share, mode) for share in shares]  # fmt: skip
