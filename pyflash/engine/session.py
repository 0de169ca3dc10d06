"""Session: one token timeline with its cache."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from pyflash.engine.draft_lengths import DraftLedger
from pyflash.engine.generation import Generation, Progress, generate
from pyflash.engine.sampling import SamplingOptions
from pyflash.engine.speculation import Propose, speculation
from pyflash.native import forks
from pyflash.native.errors import ArgumentError, BusyError, ClosedError, ContextFullError, MemoryLimitError, check
from pyflash.native.interrupt import InterruptibleRunner
from pyflash.native.library import ffi, lib
from pyflash.native.values import FloatArray, StrPath, Tokens, c_path, floats, integer, ints, string, token_array

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyflash.chat import Message
    from pyflash.chat.reply import Reply
    from pyflash.engine.choices import Choices
    from pyflash.engine.collector import Collector
    from pyflash.engine.profiler import Profiler
    from pyflash.engine.grammar import Grammar
    from pyflash.engine.model import Model
    from pyflash.engine.stream import Cancellation


def _step_ahead(handle: Any, share: Any, error: Any) -> int:
    """Evaluates a share, and keeps its first token."""
    status: int = lib.pf_step_eval(share, 1, error)
    if status != lib.PF_OK:
        return status
    status = lib.pf_session_keep(handle, 1, error)
    return status


_BACK = (lib.pf_session_rollback, lib.pf_session_reuse)
_MOVING = (lib.pf_session_eval, _step_ahead, lib.pf_session_rollback, lib.pf_session_reuse, lib.pf_session_load,
           lib.pf_session_import_tail)
Tap = Callable[[str, int, int, npt.NDArray[Any]], None]


@dataclass(frozen=True)
class Memory:
    """A session's memory in bytes, at most: the cache for its whole capacity, working buffers and checkpoints; and what
    cache and buffers take of a device, which is not counted among the others. draft_cache_bytes: of cache_bytes, what drafting
    keeps."""

    cache_bytes: int
    buffer_bytes: int
    checkpoint_bytes: int
    device_cache_bytes: int = 0
    device_buffer_bytes: int = 0
    draft_cache_bytes: int = 0


@dataclass(frozen=True)
class Origin:
    """What computed the session file that was loaded last.

    kernels: the kernel set, such as "avx2"; "" before the first load, and for files that do not say (written before
    format 3). arithmetic: the version of its arithmetic, 0 likewise. n_foreign: how many tokens at the session's
    beginning were computed by other kernels or another version than compute here: what follows may differ in its last
    bits from a session that was never saved.
    """

    kernels: str
    arithmetic: int
    n_foreign: int


@dataclass(frozen=True)
class PartsInfo:
    """What the bytes of a session's parts depend on beside the tokens: see Session.export_rows(). Where all of it is equal,
    one session's parts are another's.

    model: a digest of the model's files: their directories, and some bytes of every tensor. kernels, arithmetic: as in
    Origin. kv_format, index_format: numbers of the rows' formats. first_layer, end_layer: the layers whose cache it is.
    has_mtp: with what the MTP block keeps. n_device_layers: layers that a device computes; n_device_expert_layers: those
    of them with their routed experts. row_tokens: where rows may be parted.
    """

    version: int
    model: int
    precision: int
    arithmetic: int
    kernels: str
    kv_format: int
    index_format: int
    first_layer: int
    end_layer: int
    has_mtp: bool
    n_device_layers: int
    n_device_expert_layers: int
    row_tokens: int


def context_full(n: int, capacity: int, position: int) -> ContextFullError:
    return ContextFullError(f"{n} more tokens do not fit: the context holds {capacity}, {position} are used",
                            "open a session with a larger context")


def checked_tokens(tokens: Tokens, n_vocab: int) -> npt.NDArray[np.int32]:
    """Tokens to evaluate; ArgumentError for none, and for those that no model of this vocabulary has."""
    ids = token_array(tokens)
    if len(ids) == 0:
        raise ArgumentError("there are no tokens to evaluate")
    if ids.max() >= n_vocab:
        raise ArgumentError(f"token {ids.max()} is outside the vocabulary of {n_vocab}")
    return ids


def room_for_logits(n_tokens: int, rows: int, n_vocab: int) -> FloatArray:
    """Room for the logits [rows, vocab] of n_tokens tokens."""
    try:
        return np.empty((rows, n_vocab), dtype=np.float32)
    except MemoryError as error:
        raise MemoryLimitError(f"no memory for the logits of {n_tokens} tokens; evaluate fewer") from error


class _TapCall:
    """Calls a tap from C. Knows nothing of the Session, which would else need the garbage collector to go."""

    def __init__(self, tap: Tap, handle: Any) -> None:
        self._tap = tap
        self._handle = handle
        self.error: BaseException | None = None         # what the tap raised
        self.thread: threading.Thread | None = None  # where it runs just now
        state = weakref.proxy(self)
        self.callback = ffi.callback("pf_tap_fn", lambda *arguments: state.forward(*arguments))

    def forward(self, _user: Any, name: Any, layer: int, position: int, data: Any, n: int, is_int: int) -> None:
        if self.error is not None:
            return
        dtype: Any = np.int32 if is_int else np.float32
        array = np.frombuffer(ffi.buffer(data, 4 * n), dtype=dtype).copy() if n else np.empty(0, dtype=dtype)
        self.thread = threading.current_thread()
        try:
            self._tap(string(name), layer, position, array)
        except BaseException as error:
            self.error = error
            lib.pf_session_cancel(self._handle)
        finally:
            self.thread = None


class Session:
    """One token timeline with its cache. Made by Model.session()."""

    def __init__(self, model: Model, handle: Any) -> None:
        """Not for callers: use Model.session()."""
        self._model = model
        self.tokenizer: Final = model.tokenizer.retained()  # works on when the model is closed
        self._handle: Any = handle
        self._new_locks()
        self._runner = InterruptibleRunner()
        self._position = 0
        self._checkpoint = 0
        self.n_moves = 0  # calls so far that may have changed the timeline
        self._silent: list[int] = []  # positions, see hide_last()
        self._cancel_asked = False  # by cancel(), and no call has heard it yet
        self._tap: _TapCall | None = None
        self._collector: Collector | None = None  # kept while the library may write to it
        self._profiler: Profiler | None = None  # likewise
        self._choices: Choices | None = None  # likewise
        self.capacity: Final = int(lib.pf_session_capacity(handle))
        self.chunk: Final = int(lib.pf_session_chunk(handle))
        self.draft_ledger: Final = DraftLedger()
        # A device may be sent experts for steps of 32 rows or more, which gives other bits.
        self.most_ahead: Final = min(lib.PF_STEP_WAITING, self.chunk, 31 if model.placement.name else 32)
        forks.watch(self)

    def _new_locks(self) -> None:
        self._call_lock = threading.Lock()    # held while a native call runs
        self._handle_lock = threading.RLock()  # held briefly, so that cancel() never meets a freed handle

    def after_fork(self) -> None:
        """In a forked child: lets go of what threads of the parent held. Whether a call was cut short, the library
        knows."""
        self._new_locks()
        if self._handle is not None:
            self._position = int(lib.pf_session_position(self._handle))

    # -- calls into the library --

    def _free(self) -> threading.Lock:
        """The lock of this session's calls, for a with statement: that alone cannot lose it to a Ctrl-C."""
        if self._call_lock.locked():
            raise BusyError("the session is running another call")
        return self._call_lock

    def _native(self) -> Any:
        if self._handle is None:
            raise ClosedError("the session is closed")
        return self._handle

    def _call(self, function: Any, handle: Any, *arguments: Any, cancellation: Cancellation | None = None) -> None:
        """One native call that Ctrl-C can cancel, and cancellation. The caller holds _free()."""
        error = ffi.new("pf_error *")
        status = self._attempt(function, handle, (*arguments, error), cancellation)
        if self._tap is not None and self._tap.error is not None:
            tap_error, self._tap.error = self._tap.error, None
            raise tap_error
        check(status, error)

    def _attempt(self, function: Any, handle: Any, arguments: Sequence[Any], cancellation: Cancellation | None) -> int:
        statuses: list[int] = []
        interrupted = False

        def call() -> None:
            # All of it here, where no Ctrl-C comes between the call and what is known about it.
            with cancellation.during(interrupt) if cancellation else contextlib.nullcontext():
                status = function(handle, *arguments)
                while status == lib.PF_ERR_CANCELLED and not self._is_cancelled(interrupted, cancellation):
                    status = function(handle, *arguments)  # the request was for a call that was over before it came
            self.n_moves += function in _MOVING
            self._position = int(lib.pf_session_position(handle))
            if function in _BACK:
                self._silent = [at for at in self._silent if at < self._position]
            statuses.append(status)

        def interrupt() -> None:
            lib.pf_session_cancel(handle)

        def cancel() -> None:
            nonlocal interrupted
            interrupted = True
            interrupt()

        self._runner.run(call, cancel)
        return statuses[0]

    def _is_cancelled(self, interrupted: bool, cancellation: Cancellation | None) -> bool:
        """Whether somebody wants the call cancelled that the library says was."""
        with self._handle_lock:
            asked, self._cancel_asked = self._cancel_asked, False
        by_tap = self._tap is not None and self._tap.error is not None
        return asked or interrupted or by_tap or (cancellation is not None and cancellation.requested)

    def cancel(self) -> None:
        """From any thread: the running call, or else the next one, raises CancelledError.

        For one answer and no other, Reply.cancel().
        """
        with self._handle_lock:
            handle = self._native()
            self._cancel_asked = True
            lib.pf_session_cancel(handle)

    def close(self) -> None:
        """Frees the cache; a call that runs on another thread is cancelled first."""
        if self._tap is not None and threading.current_thread() is self._tap.thread:
            raise BusyError("a tap cannot close its session")
        with contextlib.suppress(ClosedError):
            if self._call_lock.locked():
                self.cancel()
        with self._call_lock:
            self._runner.close()
            with self._handle_lock:
                handle, self._handle = self._handle, None
        if handle is not None:
            ffi.release(handle)
            self.tokenizer.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # -- the timeline --

    @property
    def model(self) -> Model:
        return self._model

    @property
    def position(self) -> int:
        """Tokens evaluated so far; the next token gets this position."""
        self._native()
        return self._position

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """The tokens evaluated so far, [position], as a copy."""
        with self._free():
            handle = self._native()
            if self._position == 0:
                return np.empty(0, dtype=np.int32)
            data = ffi.buffer(lib.pf_session_tokens(handle), 4 * self._position)
            tokens: npt.NDArray[np.int32] = np.frombuffer(data, dtype=np.int32).copy()
            return tokens

    def eval(self, tokens: Tokens, all_logits: bool = False, progress: Progress | None = None, *,
             cancellation: Cancellation | None = None) -> FloatArray:
        """Evaluates tokens in bounded steps. Returns logits float32 [vocab] after the last token, or [n, vocab].

        progress: called with the tokens done and all there are, after each step; an exception in it ends the
        evaluation and comes out of it. cancellation: what else than cancel() may cancel it.

        When a step fails or is cancelled, or on Ctrl-C, the finished steps stay evaluated: see position.
        Raises ContextFullError (nothing evaluated), ArgumentError, CancelledError or MemoryLimitError.
        """
        n_vocab = self._model.info.n_vocab
        ids = checked_tokens(tokens, n_vocab)
        with self._free():
            handle = self._native()
            if len(ids) > self.capacity - self._position:
                raise context_full(len(ids), self.capacity, self._position)
            logits = room_for_logits(len(ids), len(ids) if all_logits else 1, n_vocab)
            self._eval_steps(handle, ids, logits, all_logits, progress, cancellation)
        return logits if all_logits else logits[0]

    def _eval_steps(self, handle: Any, ids: npt.NDArray[np.int32], logits: FloatArray, all_logits: bool,
                    progress: Progress | None, cancellation: Cancellation | None) -> None:
        mode = lib.PF_LOGITS_ALL if all_logits else lib.PF_LOGITS_LAST
        n_done = ffi.new("int64_t *")
        done = 0
        while done < len(ids):
            rest = ids[done:]
            out = logits[done:] if all_logits else logits
            self._call(lib.pf_session_eval, handle, ints(rest), len(rest), mode, floats(out), out.size, n_done,
                       cancellation=cancellation)
            done += int(n_done[0])
            if progress is not None:
                progress(done, len(ids))

    def _note_step(self) -> None:
        """After a native call by the handle that may have moved the session."""
        self.n_moves += 1
        self._position = int(lib.pf_session_position(self._handle))

    def keep(self, n: int) -> None:
        """Goes on with the first n of the tokens that wait, 0 to all of them: see eval_many(keep=False).

        The session is then, to the last bit, what it is after evaluating those n alone. Until this is called, eval() and
        all else that would move or save the session raise ArgumentError.
        """
        error = ffi.new("pf_error *")
        with self._free():
            handle = self._native()
            count = integer("the number of tokens to keep", n, 0, 2**63 - 1)
            check(lib.pf_session_keep(handle, count, error), error)
            self._note_step()

    @property
    def waiting(self) -> int:
        """How many tokens wait for keep(); 0: none."""
        with self._free():
            return int(lib.pf_session_waiting(self._native()))

    def eval_ahead(self, tokens: Tokens, *, cancellation: Cancellation | None = None) -> FloatArray:
        """Evaluates tokens, at most 128 and a chunk, in one step, and goes on with the first of them alone. Returns logits
        float32 [n, vocab], those behind each.

        The others stay evaluated ahead: advance() goes on with them one by one, until the session is moved in another way.
        So a guess of what comes can be checked in one step, and what was wrong never was. Errors as of eval(), with nothing
        evaluated.
        """
        ids = token_array(tokens)
        most, n_vocab = min(lib.PF_STEP_WAITING, self.chunk), self._model.info.n_vocab
        if not 1 <= len(ids) <= most:
            raise ArgumentError(f"{len(ids)} tokens cannot be evaluated ahead: 1 to {most}")
        if len(ids) > self.capacity - self.position:
            raise context_full(len(ids), self.capacity, self.position)
        logits = room_for_logits(len(ids), len(ids), n_vocab)
        with self._free():
            handle = self._native()
            share = ffi.new("pf_step_share *", {
                "struct_size": ffi.sizeof("pf_step_share"), "logits_mode": lib.PF_LOGITS_ALL, "session": handle,
                "tokens": ints(ids), "n_tokens": len(ids), "logits": floats(logits), "logits_capacity": logits.size,
            })  # fmt: skip
            self._call(_step_ahead, handle, share, cancellation=cancellation)
        return logits

    def advance(self) -> bool:
        """Goes on with the next token that is evaluated ahead; whether there was one. See eval_ahead()."""
        with self._free():
            handle = self._native()
            if lib.pf_session_ahead(handle) == 0:
                return False
            error = ffi.new("pf_error *")
            check(lib.pf_session_advance(handle, 1, error), error)
            self._note_step()
            return True

    @property
    def ahead(self) -> int:
        """How many tokens advance() can go on with."""
        with self._free():
            return int(lib.pf_session_ahead(self._native()))

    @property
    def is_watched(self) -> bool:
        """Whether somebody looks at what is evaluated: a tap, collector, profiler, or choices that are noted or held."""
        return any(each is not None for each in (self._tap, self._collector, self._profiler, self._choices))

    def draft(self, next_token: int) -> FloatArray:
        """Logits [vocab] of the model's drafter for position + 1, given the token that will stand at position."""
        logits = np.empty(self._model.info.n_vocab, dtype=np.float32)
        ids = token_array([next_token])
        with self._free():
            handle = self._native()
            self._call(lib.pf_session_draft, handle, int(ids[0]), floats(logits), logits.size)
        return logits

    def draft_tokens(self, next_token: int, n: int) -> tuple[list[int], list[float]]:
        """n tokens that the model drafts for position + 1 on, given the token that will stand at position; and of each, how
        likely it is right where those before it are. An MTP block is trained to draft one, and goes on from its own streams,
        for at most a chunk; DSpark computes up to ModelInfo.draft_most at once."""
        most = self._model.info.draft_most or self.chunk
        ids, count = token_array([next_token]), integer("the number of tokens to draft", n, 1, most)
        tokens, chances = np.empty(count, dtype=np.int32), np.empty(count, dtype=np.float32)
        with self._free():
            handle = self._native()
            self._call(lib.pf_session_draft_tokens, handle, int(ids[0]), count, ints(tokens), floats(chances))
        return tokens.tolist(), chances.tolist()

    def rollback(self, n: int) -> None:
        """Drops the last n tokens. RebuildError beyond rollback_limit, with nothing changed."""
        with self._free():
            handle = self._native()
            self._call(lib.pf_session_rollback, handle, integer("the number of tokens to drop", n, 0, 2**63 - 1))

    @property
    def rollback_limit(self) -> int:
        """How many tokens can be dropped now, short of all of them."""
        with self._free():
            handle = self._native()
            return int(lib.pf_session_rollback_limit(handle))

    def checkpoint(self) -> None:
        """Remembers this position: rollback() and reuse() can come back to it, however much follows.

        Worth it where a prompt ends. UnsupportedError when the session was opened with checkpoints=0.
        """
        with self._free():
            handle = self._native()
            self._call(lib.pf_session_checkpoint, handle)
            self._checkpoint = self._position

    @property
    def since_checkpoint(self) -> int:
        """How many tokens ago the latest checkpoint() was; position when there was none that still stands."""
        return self.position - (self._checkpoint if self._checkpoint <= self.position else 0)

    def align(self, tokens: Tokens) -> list[int]:
        """Tokens of the same text, with this session's own at its beginning as far as they spell it.

        What a model generates is not always what the tokenizer makes of its text, and would be evaluated again.
        """
        ids = token_array(tokens)
        count, error = ffi.new("int64_t *"), ffi.new("pf_error *")
        with self._free():
            handle = self._native()
            out = np.empty(len(ids) + self._position, dtype=np.int32)
            silent, n_silent = ffi.new("int64_t[]", self._silent), len(self._silent)
            check(lib.pf_session_align_answers(
                handle, silent, n_silent, ints(ids), len(ids), ints(out), len(out), count, error), error)  # fmt: skip
        return [int(token) for token in out[: count[0]]]

    def hide_last(self) -> None:
        """Lets align() pass over the last token, a special one that an answer had out of place: no text has it."""
        self._silent.append(self._position - 1)

    def reuse(self, tokens: Tokens) -> int:
        """Rolls back as little as makes what is left a beginning of tokens, short of all of them.

        Returns how many of tokens need not be evaluated again, which is the new position.
        """
        ids = token_array(tokens)
        if len(ids) == 0:
            raise ArgumentError("there are no tokens to compare with")
        n_kept = ffi.new("int64_t *")
        with self._free():
            handle = self._native()
            self._call(lib.pf_session_reuse, handle, ints(ids), len(ids), n_kept)
        return int(n_kept[0])

    def reusable(self, tokens: Tokens) -> int:
        """What reuse() would return just now, with nothing changed: for choosing one of several sessions."""
        ids = token_array(tokens)
        if len(ids) == 0:
            return 0
        n_kept, error = ffi.new("int64_t *"), ffi.new("pf_error *")
        with self._free():
            handle = self._native()
            check(lib.pf_session_reusable(handle, ints(ids), len(ids), n_kept, error), error)
        return int(n_kept[0])

    @property
    def note(self) -> bytes:
        """Bytes of the caller's own that travel with the session through save() and load(), b"" at first."""
        size = ffi.new("size_t *")
        with self._free():
            handle = self._native()
            data = lib.pf_session_note(handle, size)
            return bytes(ffi.buffer(data, size[0])) if data else b""

    @note.setter
    def note(self, data: bytes) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise ArgumentError(f"a note must be bytes, not {type(data).__name__}")
        copy = bytes(data)
        with self._free():
            handle = self._native()
            self._call(lib.pf_session_set_note, handle, copy, len(copy))

    def save(self, path: StrPath) -> None:
        """Writes the cache to a file, which appears under its name only when complete: all or nothing.

        A new file is its owner's alone; an old one keeps its permissions, and a symbolic link stays. FileError for a
        folder, device, pipe or socket, and where another session or process holds the file, or has changed it since
        this session loaded it or saved there.
        """
        with self._free():
            handle = self._native()
            self._call(lib.pf_session_save, handle, c_path(path))

    def load(self, path: StrPath) -> None:
        """Replaces the cache by a saved one, of the same model file and precision.

        What another kernel set or version of the arithmetic has computed is taken too, with a warning of the "pyflash"
        logger: see origin.
        """
        with self._free():
            handle = self._native()
            self._call(lib.pf_session_load, handle, c_path(path))
            self._silent.clear()
            self._checkpoint = 0  # the file's are not known here

    def hold(self, path: StrPath | None) -> None:
        """Keeps other sessions and processes from saving to a path until this session is closed; None: no longer.

        Says now what save() would: FileError for what cannot be written, or where another one holds it.
        """
        with self._free():
            handle = self._native()
            self._call(lib.pf_session_hold, handle, ffi.NULL if path is None else c_path(path))

    @property
    def origin(self) -> Origin:
        """What computed the file that was loaded last."""
        origin, error = ffi.new("pf_session_origin *"), ffi.new("pf_error *")
        origin.struct_size = ffi.sizeof("pf_session_origin")
        with self._free():
            handle = self._native()
            check(lib.pf_session_get_origin(handle, origin, error), error)
        return Origin(string(origin.kernels), origin.arithmetic, origin.n_foreign)

    # -- parts --

    @property
    def parts(self) -> PartsInfo:
        """What the parts of this session depend on. Reads a little of every tensor."""
        info, error = ffi.new("pf_parts_info *"), ffi.new("pf_error *")
        info.struct_size = ffi.sizeof("pf_parts_info")
        with self._free():
            handle = self._native()
            check(lib.pf_session_get_parts(handle, info, error), error)
        return PartsInfo(
            info.version, info.model, info.precision, info.arithmetic, string(info.kernels), info.kv_format, info.index_format,
            info.first_layer, info.end_layer, bool(info.has_mtp), info.n_device_layer, info.n_device_expert_layer,
            info.row_tokens,
        )  # fmt: skip

    def export_rows(self, begin: int, end: int) -> bytearray:
        """The cache's rows that tokens begin to end - 1 complete. They never change, and the same tokens at the beginning of
        another session with equal `parts` give the same ones: for stores that conversations share.
        ArgumentError beyond position."""
        return self._export(lib.pf_session_export_rows, integer("begin", begin, 0, 2**62), integer("end", end, 0, 2**62))

    def export_tail(self, position: int | None = None) -> bytearray:
        """What else than rows a position rests on: this one (None), or a checkpoint's. ArgumentError for others."""
        at = self.position if position is None else integer("position", position, 0, 2**62)
        return self._export(lib.pf_session_export_tail, at)

    def _export(self, function: Any, *arguments: int) -> bytearray:
        n_bytes = ffi.new("uint64_t *")
        with self._free():
            handle = self._native()
            self._call(function, handle, *arguments, ffi.NULL, 0, n_bytes)
            out = bytearray(n_bytes[0])
            if out:
                self._call(function, handle, *arguments, ffi.from_buffer(out), len(out), n_bytes)
        return out

    def import_rows(self, begin: int, end: int, data: bytes | bytearray | memoryview) -> None:
        """Takes rows of tokens that follow the session's own, which an import_tail() has to follow: until then nothing that
        can be asked of the session changes, and what moves it drops them. The first ones may be the session's already.
        ArgumentError for rows that leave a gap or are another number of bytes, ContextFullError."""
        with self._free():
            handle = self._native()
            self._call(lib.pf_session_import_rows, handle, integer("begin", begin, 0, 2**62), integer("end", end, 0, 2**62),
                       ffi.from_buffer(data), len(data))

    def import_tail(self, tokens: Tokens, data: bytes | bytearray | memoryview) -> None:
        """Moves the session to where a tail was exported. tokens: all before it; they go on with the session's own, and there
        must be rows for all of them. FormatError for what is no such tail, with nothing changed; damage within it is not
        noticed: whoever keeps it must."""
        ids = token_array(tokens)
        with self._free():
            handle = self._native()
            self._call(lib.pf_session_import_tail, handle, ints(ids), len(ids), ffi.from_buffer(data), len(data))

    @property
    def memory(self) -> Memory:
        memory = ffi.new("pf_session_memory *")
        memory.struct_size = ffi.sizeof("pf_session_memory")
        error = ffi.new("pf_error *")
        with self._free():
            handle = self._native()
            check(lib.pf_session_get_memory(handle, memory, error), error)
        return Memory(memory.cache_bytes, memory.buffer_bytes, memory.checkpoint_bytes, memory.device_cache_bytes,
                      memory.device_buffer_bytes, memory.draft_cache_bytes)

    def set_tap(self, tap: Tap | None) -> None:
        """Calls tap(name, layer, position, array) for every named intermediate of each token; None: stop.

        The array is a copy, float32, or int32 for "topk" and "experts". An exception in the tap ends the evaluation
        and comes out of it.
        """
        with self._free():
            handle = self._native()
            call = None if tap is None else _TapCall(tap, handle)
            lib.pf_session_set_tap(handle, ffi.NULL if call is None else call.callback, ffi.NULL)
            self._tap = call

    def collect(self, collector: Collector | None) -> None:
        """Adds to the collector what eval() evaluates from now on; None: no longer. The results are the same bits."""
        error = ffi.new("pf_error *")
        with self._free():
            handle = self._native()
            given = ffi.NULL if collector is None else collector.handle
            check(lib.pf_session_set_collector(handle, given, error), error)
            self._collector = collector

    def profile(self, profiler: Profiler | None) -> None:
        """Times the operations of what eval() evaluates from now on; None: no longer. The results are the same bits.
        ArgumentError while the session collects."""
        error = ffi.new("pf_error *")
        with self._free():
            handle = self._native()
            given = ffi.NULL if profiler is None else profiler.handle
            check(lib.pf_session_set_profiler(handle, given, error), error)
            self._profiler = profiler

    def note_choices(self, choices: Choices | None) -> None:
        """Has eval() write down what it chooses from now on, at the positions of its tokens; None: no longer. The results
        are the same bits. UnsupportedError with a device."""
        self._set_choices(choices, lib.PF_CHOICES_NOTE)

    def hold_choices(self, choices: Choices | None) -> None:
        """Has eval() take the noted experts and rows instead of choosing; None: no longer. Experts are weighted by the
        model's own scores for them. ArgumentError from eval() where what is noted cannot be this model's."""
        self._set_choices(choices, lib.PF_CHOICES_HOLD)

    def _set_choices(self, choices: Choices | None, mode: int) -> None:
        error = ffi.new("pf_error *")
        if choices is not None and not choices.fits(self._model.info):
            raise ArgumentError("the choices have another model's sizes: make them with Choices.of(model.info, n)")
        with self._free():
            handle = self._native()
            given = ffi.NULL
            if choices is not None:
                given = ffi.new("pf_choices *", {
                    "struct_size": ffi.sizeof("pf_choices"), "mode": mode, "n_position": choices.n_positions,
                    "experts": ints(choices.experts), "rows": ints(choices.rows) if choices.rows.size else ffi.NULL,
                })
            check(lib.pf_session_set_choices(handle, given, error), error)
            self._choices = choices

    # -- generation --

    def generate(
        self, tokens: Tokens, max_tokens: int | None = None, *, stop: str | Sequence[str] = (), logprobs: int = 0,
        grammar: Grammar | None = None, progress: Progress | None = None, draft: str | Propose = "auto",
        draft_max: int | None = None, **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """Evaluates tokens and yields one Piece for each token generated, the end token included.

        max_tokens: None for as many as the context holds. stop: strings that end the text; they are not part of it.
        logprobs: how many of the likeliest tokens each Piece.top lists, at most 20. grammar: what the text must match;
        it may be cut short only by max_tokens, stop or the end of the context. progress: as in eval(), for tokens.
        draft: what proposes tokens that are then checked several in a step, see docs/speculation.md; no draft changes a
        token: "ngram": what followed like passages of the text; "mtp", "dspark": the model's MTP block or DSpark stages;
        "auto": what there is of these; "off". A function is given the tokens so far, which it must not change, and how many
        it may propose at most, and proposes some. draft_max: of one draft, at most 31. sampling: see SamplingOptions. The last
        piece's token has not been evaluated. close() of the iterator ends the generation, cancel() does from any thread, and
        `async for` works too; what was generated stays in the session.
        Raises what eval() raises, and after the last piece AnswerError, see Grammar.json_schema().
        """
        return generate(self, tokens, max_tokens, stop, logprobs, grammar, progress,
                        speculation(self, draft, draft_max), sampling)

    def chat(
        self, messages: Sequence[Message], think: str = "off", tools: Sequence[Mapping[str, Any]] | None = None, *,
        release: str | None = None, response_format: Mapping[str, Any] | None = None, max_tokens: int | None = None,
        stop: str | Sequence[str] = (), logprobs: int = 0, progress: Progress | None = None,
        draft: str | Propose = "auto", draft_max: int | None = None, prediction: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Reply:
        """Answers a conversation, see pyflash.chat; the Reply yields the answer's pieces while they are generated.

        think: "off", "low" (release 0731 only), "high" or "max". tools: functions that the model may call, as in
        OpenAI's chat API. release: "preview" or "0731"; None for the model file's. response_format: {"type":
        "json_object"}, {"type": "json_schema", "json_schema": {"schema": ...}} or a JSON schema: the content will be
        JSON of that kind; see Grammar.json_schema() for what cannot be made sure on the way, and is an AnswerError
        after the last piece. stop: strings that end the answer's content. prediction: a text that much of the content may
        be a copy of, such as a file that is to be changed: the nearer it is, the sooner the answer is there, which it does
        not change. The others as in generate().
        The last message is a user's or a tool's, or an assistant's with "prefix": true: then the answer goes on with
        its content, or with its reasoning_content where there is no content, and Reply.message has what was added.
        ArgumentError for conversations that end otherwise.
        What the session has already evaluated of the same conversation is not evaluated again.
        """
        from pyflash.chat.reply import reply  # the one way up from here

        return reply(
            self, messages, think, tools, release=release, response_format=response_format, max_tokens=max_tokens,
            stop=stop, logprobs=logprobs, progress=progress, draft=draft, draft_max=draft_max, prediction=prediction,
            sampling=sampling,
        )
