"""Model, Session and Tokenizer: the Python face of libpyflash.

Every object may be closed more than once; using a closed one raises ClosedError. Models and tokenizers may be shared by
threads. A session serves one call at a time: a call from a second thread meanwhile raises BusyError, except cancel(),
and close(), which cancels and waits.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import operator
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyflash import chat as chat_encoding
from pyflash._interrupt import InterruptibleRunner
from pyflash._native import ffi, lib
from pyflash.errors import (
    ArgumentError,
    BusyError,
    CancelledError,
    ClosedError,
    ContextFullError,
    MemoryLimitError,
    UnsupportedError,
    check,
)

__version__: str = ffi.string(lib.pf_version()).decode()

StrPath = str | os.PathLike[str]
Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.float32]
Tap = Callable[[str, int, int, npt.NDArray[Any]], None]

_log = logging.getLogger("pyflash")
_LOG_LEVELS = {lib.PF_LOG_DEBUG: logging.DEBUG, lib.PF_LOG_INFO: logging.INFO, lib.PF_LOG_WARNING: logging.WARNING}
_PRECISIONS = {"fast": lib.PF_PRECISION_FAST, "exact": lib.PF_PRECISION_EXACT}
_CACHES = {"auto": lib.PF_CACHE_AUTO, "f16": lib.PF_CACHE_F16, "reference": lib.PF_CACHE_REFERENCE}


# Lives as long as the process, because sessions may outlive the Model object that passed it on.
@ffi.callback("pf_log_fn")  # type: ignore[untyped-decorator]
def _forward_log(_user: Any, level: int, message: Any) -> None:
    _log.log(_LOG_LEVELS.get(level, logging.INFO), "%s", _string(message))


def _string(pointer: Any) -> str:
    return ffi.string(pointer).decode("utf-8", "replace") if pointer else ""


def _c_path(path: StrPath) -> bytes:
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ArgumentError(f"a path cannot hold a zero byte: {os.fspath(path)!r}")
    return encoded


def _open(call: Callable[[], int], out: Any, close: Callable[[Any], None], error: Any) -> None:
    """Runs an opening call, which may log, off the main thread: Ctrl-C would get lost in a callback from C."""
    runner = InterruptibleRunner()
    try:
        check(runner.run(call, cancel=lambda: None), error)
    except KeyboardInterrupt:
        if out[0]:
            close(out[0])
        raise
    finally:
        runner.close()


def _token_array(tokens: Tokens) -> npt.NDArray[np.int32]:
    array = np.asarray(tokens)
    if array.ndim != 1 or array.size and not np.issubdtype(array.dtype, np.integer):
        raise ArgumentError("tokens must be a sequence of integers")
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int32).max):
        raise ArgumentError("token ids must not be negative or exceed the vocabulary")
    return np.ascontiguousarray(array, dtype=np.int32)


def _integer(name: str, value: int, low: int | None = None, high: int | None = None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name} must be an integer, not {value!r:.40}") from None
    if low is not None and number < low:
        raise ArgumentError(f"{name} must be at least {low}")
    if high is not None and number > high:
        raise ArgumentError(f"{name} must be at most {high}")
    return number


def _floats(array: FloatArray) -> Any:
    return ffi.cast("float *", array.ctypes.data)


@dataclass(frozen=True)
class ModelInfo:
    """What a model file is: pf_model_info of pyflash.h, with the same names, and every layer's compression ratio."""

    precision: str
    n_threads: int
    n_vocab: int
    n_embd: int
    n_layer: int
    n_head: int
    head_dim: int
    rope_dim: int
    window: int
    n_expert: int
    n_expert_used: int
    n_ff_expert: int
    n_hash_layer: int
    index_topk: int
    n_stream: int
    has_mtp: bool
    bos_token: int
    eos_token: int
    n_ctx_train: int
    n_tensors: int
    file_bytes: int
    weight_bytes: int
    name: str
    profile: str
    cpu_isa: str
    layer_ratios: tuple[int, ...]


def _read_info(handle: Any) -> ModelInfo:
    info = ffi.new("pf_model_info *")
    info.struct_size = ffi.sizeof("pf_model_info")
    error = ffi.new("pf_error *")
    check(lib.pf_model_get_info(handle, info, error), error)
    values = {name: getattr(info, name) for name in ModelInfo.__dataclass_fields__ if name != "layer_ratios"}
    values["precision"] = next(name for name, value in _PRECISIONS.items() if value == info.precision)
    values["has_mtp"] = bool(info.has_mtp)
    for name in ("name", "profile", "cpu_isa"):
        values[name] = _string(values[name])
    ratios = tuple(lib.pf_model_layer_ratio(handle, layer) for layer in range(info.n_layer))
    return ModelInfo(**values, layer_ratios=ratios)


class Model:
    """The loaded weights: immutable, and shared by any number of sessions and threads."""

    def __init__(self, handle: Any) -> None:
        """Not for callers: use Model.open()."""
        self._handle: Any = handle
        self._lock = threading.Lock()
        self.info = _read_info(handle)
        self.tokenizer = Tokenizer(self)

    @classmethod
    def open(
        cls, path: StrPath, device: str = "auto", threads: int | None = None, precision: str = "fast",
        isa: str | None = None, mtp: StrPath | None = None,
    ) -> Model:
        """Maps a GGUF (of several shards: the first) and checks everything but the weights' values.

        device: "auto" or "cpu". threads: None for one per physical core. precision: "fast", or "exact" for float32
        activations and cache. isa: the CPU kernel set, "scalar", "avx2" or "avx512"; None takes $PYFLASH_CPU or else
        the best of this machine. mtp: a GGUF of the MTP block that belongs to the model.
        Raises FileError, FormatError, UnsupportedError, MemoryLimitError or DeviceError.
        """
        if precision not in _PRECISIONS:
            raise ArgumentError(f"unknown precision {precision!r}; use one of {', '.join(_PRECISIONS)}")
        if threads is not None and not 1 <= threads <= 4096:
            raise ArgumentError("threads must be between 1 and 4096")
        isa = isa or os.environ.get("PYFLASH_CPU") or None
        params = ffi.new("pf_model_params *")
        lib.pf_model_params_init(params)
        strings = []  # what params points to must outlive the call

        def c_string(text: bytes) -> Any:
            strings.append(ffi.new("char[]", text))
            return strings[-1]

        params.precision = _PRECISIONS[precision]
        params.n_threads = threads or 0
        params.device = c_string(device.encode())
        params.cpu_isa = c_string(isa.encode()) if isa else ffi.NULL
        params.mtp_path = c_string(_c_path(mtp)) if mtp is not None else ffi.NULL
        params.log = _forward_log
        out, error = ffi.new("pf_model **"), ffi.new("pf_error *")
        encoded = _c_path(path)
        _open(lambda: lib.pf_model_open(encoded, params, out, error), out, lib.pf_model_release, error)
        return cls(ffi.gc(out[0], lib.pf_model_release))

    @contextlib.contextmanager
    def _borrow(self) -> Iterator[Any]:
        """The native model, held for the length of a call even when another thread closes this object."""
        with self._lock:
            if self._handle is None:
                raise ClosedError("the model is closed")
            handle = lib.pf_model_retain(self._handle)
        try:
            yield handle
        finally:
            lib.pf_model_release(handle)

    def session(
        self, context: int | None = None, chunk: int | None = None, poison: bool = False, cache: str = "auto"
    ) -> Session:
        """A new, empty session.

        context: capacity in tokens; None for the model's, at most 65536. chunk: most tokens that one native step
        evaluates. poison: fill the cache with garbage first (for tests). cache: the precision of its rows, "f16" or
        "reference" (FP8 and FP4 as the published model has them, about half the size); "auto" is f16, and float32
        under precision="exact", which allows no other.
        """
        if cache not in _CACHES:
            raise ArgumentError(f"unknown cache precision {cache!r}; use one of {', '.join(_CACHES)}")
        for name, value in (("context", context), ("chunk", chunk)):
            if value is not None and not 1 <= value < 2**31:
                raise ArgumentError(f"{name} must be at least 1")
        params = ffi.new("pf_session_params *")
        lib.pf_session_params_init(params)
        params.n_ctx = context or 0
        params.n_chunk = chunk or 0
        params.flags = lib.PF_SESSION_POISON if poison else 0
        params.cache_type = _CACHES[cache]
        out, error = ffi.new("pf_session **"), ffi.new("pf_error *")
        with self._borrow() as handle:
            _open(lambda: lib.pf_session_open(handle, params, out, error), out, lib.pf_session_close, error)
        return Session(self, ffi.gc(out[0], lib.pf_session_close))

    def metadata(self, key: str) -> str | None:
        """A string value of the file by its key, such as "tokenizer.chat_template"; None when it has none."""
        size = ffi.new("size_t *")
        with self._borrow() as handle:
            text = lib.pf_model_meta_string(handle, key.encode(), size)
            return bytes(ffi.buffer(text, size[0])).decode("utf-8", "replace") if text else None

    def close(self) -> None:
        """Lets go of the weights. Open sessions keep working and keep them in memory."""
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is not None:
            ffi.release(handle)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class Tokenizer:
    """Text to tokens and back, by the vocabulary in the model file."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of text. special: text that spells a special token becomes that token. Adds no BOS."""
        data = text.encode("utf-8", "surrogatepass")
        ids = np.empty(len(data) + 1, dtype=np.int32)  # a token stands for at least one byte
        count, error = ffi.new("int64_t *"), ffi.new("pf_error *")
        flags = lib.PF_TOKENIZE_SPECIAL if special else 0
        out = ffi.cast("int32_t *", ids.ctypes.data)
        with self._model._borrow() as handle:
            check(lib.pf_tokenize(handle, data, len(data), flags, out, len(ids), count, error), error)
        return [int(token) for token in ids[: count[0]]]

    def encode_segments(self, segments: Sequence[chat_encoding.Segment]) -> list[int]:
        """Token ids of chat.segments(): only its special pieces may become special tokens."""
        return [token for text, special in segments for token in self.encode(text, special=special)]

    def decode(self, tokens: Tokens, special: bool = False) -> str:
        """Text of tokens; invalid UTF-8 becomes U+FFFD. special: write special tokens as their text."""
        return self.decode_bytes(tokens, special).decode("utf-8", "replace")

    def decode_bytes(self, tokens: Tokens, special: bool = False) -> bytes:
        """Bytes of tokens, which may end within a UTF-8 character."""
        ids = _token_array(tokens)
        size, error = ffi.new("size_t *"), ffi.new("pf_error *")
        flags = lib.PF_DETOKENIZE_SPECIAL if special else 0
        pointer = ffi.cast("int32_t *", ids.ctypes.data)
        with self._model._borrow() as handle:
            capacity = 16 * len(ids) + 256
            while True:
                out = ffi.new("char[]", capacity)
                check(lib.pf_detokenize(handle, pointer, len(ids), flags, out, capacity, size, error), error)
                if size[0] <= capacity:
                    return bytes(ffi.buffer(out, size[0]))
                capacity = size[0]

    def token_id(self, text: str) -> int | None:
        """Id of the token whose text is exactly this one, special tokens included."""
        data = text.encode("utf-8", "surrogatepass")
        with self._model._borrow() as handle:
            token = lib.pf_token_id(handle, data, len(data))
        return None if token < 0 else int(token)


@dataclass(frozen=True)
class Piece:
    """One generated token.

    text: what it adds, held back until its UTF-8 characters are complete, so it may be empty. logprob: natural
    logarithm of its probability before any filter. finish: on the last piece "stop" (the model's end token, which
    stands in the piece) or "length", else None.
    """

    token: int
    text: str
    logprob: float
    finish: Literal["stop", "length"] | None


@dataclass(frozen=True)
class ChatPiece(Piece):
    """A piece of an answer; kind tells the model's reasoning from the answer's content."""

    kind: Literal["reasoning", "content"]


@dataclass(frozen=True)
class Memory:
    """A session's memory in bytes: the cache as allocated for its capacity, and working buffers."""

    cache_bytes: int
    buffer_bytes: int


class Session:
    """One token timeline with its cache. Made by Model.session()."""

    def __init__(self, model: Model, handle: Any) -> None:
        """Not for callers: use Model.session()."""
        self._model = model
        self._handle: Any = handle
        self._call_lock = threading.Lock()    # held while a native call runs
        self._handle_lock = threading.Lock()  # held briefly, so that cancel() never meets a freed handle
        self._runner = InterruptibleRunner()
        self._position = 0
        self._stale_cancel = False
        self._tap: Any = ffi.NULL
        self._tap_error: BaseException | None = None
        self._tap_thread: threading.Thread | None = None
        self.capacity = int(lib.pf_session_capacity(handle))
        self.chunk = int(lib.pf_session_chunk(handle))

    # -- calls into the library --

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[Any]:
        if not self._call_lock.acquire(blocking=False):
            raise BusyError("the session is running another call")
        try:
            if self._handle is None:
                raise ClosedError("the session is closed")
            yield self._handle
        finally:
            self._call_lock.release()

    def _call(self, function: Any, *arguments: Any) -> None:
        """One native call that Ctrl-C can cancel. The caller holds _exclusive()."""
        error = ffi.new("pf_error *")
        status = self._attempt(function, *arguments, error)
        if status == lib.PF_ERR_CANCELLED and self._stale_cancel:
            status = self._attempt(function, *arguments, error)
        self._stale_cancel = False
        if self._tap_error is not None:
            tap_error, self._tap_error = self._tap_error, None
            raise tap_error
        check(status, error)

    def _attempt(self, function: Any, *arguments: Any) -> int:
        statuses: list[int] = []
        try:
            self._runner.run(lambda: statuses.append(function(*arguments)), self.cancel)
        except KeyboardInterrupt:
            # When the call finished before it saw the request, that waits for the next call, which _call() repeats.
            self._stale_cancel = statuses != [lib.PF_ERR_CANCELLED]
            raise
        return statuses[0]

    def cancel(self) -> None:
        """From any thread: the running call, or else the next one, raises CancelledError."""
        with self._handle_lock:
            if self._handle is None:
                raise ClosedError("the session is closed")
            lib.pf_session_cancel(self._handle)

    def close(self) -> None:
        """Frees the cache; a call that runs on another thread is cancelled first."""
        if threading.current_thread() is self._tap_thread:
            raise BusyError("a tap cannot close its session")
        with contextlib.suppress(ClosedError):
            if self._call_lock.locked():
                self.cancel()
        with self._call_lock, self._handle_lock:
            handle, self._handle = self._handle, None
        self._runner.close()
        if handle is not None:
            ffi.release(handle)

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
        if self._handle is None:
            raise ClosedError("the session is closed")
        return self._position

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """The tokens evaluated so far, [position], as a copy."""
        with self._exclusive() as handle:
            if self._position == 0:
                return np.empty(0, dtype=np.int32)
            data = ffi.buffer(lib.pf_session_tokens(handle), 4 * self._position)
            tokens: npt.NDArray[np.int32] = np.frombuffer(data, dtype=np.int32).copy()
            return tokens

    def eval(self, tokens: Tokens, all_logits: bool = False) -> FloatArray:
        """Evaluates tokens in bounded steps. Returns logits float32 [vocab] after the last token, or [n, vocab].

        When a step fails or is cancelled, or on Ctrl-C, the finished steps stay evaluated: see position.
        Raises ContextFullError (nothing evaluated), ArgumentError, CancelledError or MemoryLimitError.
        """
        ids = _token_array(tokens)
        n_vocab = self._model.info.n_vocab
        if len(ids) == 0:
            raise ArgumentError("there are no tokens to evaluate")
        if ids.max() >= n_vocab:
            raise ArgumentError(f"token {ids.max()} is outside the vocabulary of {n_vocab}")
        with self._exclusive() as handle:
            if len(ids) > self.capacity - self._position:
                raise ContextFullError(
                    f"{len(ids)} more tokens do not fit: the context holds {self.capacity}, {self._position} are used; "
                    "open a session with a larger context"
                )
            try:
                logits = np.empty((len(ids), n_vocab) if all_logits else (1, n_vocab), dtype=np.float32)
            except MemoryError as error:
                raise MemoryLimitError(f"no memory for the logits of {len(ids)} tokens; evaluate fewer") from error
            self._eval_steps(handle, ids, logits, all_logits)
        return logits if all_logits else logits[0]

    def _eval_steps(self, handle: Any, ids: npt.NDArray[np.int32], logits: FloatArray, all_logits: bool) -> None:
        mode = lib.PF_LOGITS_ALL if all_logits else lib.PF_LOGITS_LAST
        n_done = ffi.new("int64_t *")
        done = 0
        while done < len(ids):
            rest = ids[done:]
            out = logits[done:] if all_logits else logits
            pointer = ffi.cast("int32_t *", rest.ctypes.data)
            try:
                self._call(lib.pf_session_eval, handle, pointer, len(rest), mode, _floats(out), out.size, n_done)
            finally:  # after Ctrl-C the step may have finished all the same
                done += int(lib.pf_session_position(handle)) - self._position
                self._position = int(lib.pf_session_position(handle))

    def draft(self, next_token: int) -> FloatArray:
        """Logits [vocab] of the MTP block for position + 1, given the token that will stand at position."""
        logits = np.empty(self._model.info.n_vocab, dtype=np.float32)
        ids = _token_array([next_token])
        with self._exclusive() as handle:
            self._call(lib.pf_session_draft, handle, int(ids[0]), _floats(logits), logits.size)
        return logits

    def rollback(self, n: int) -> None:
        """Drops the last n tokens. RebuildError beyond rollback_limit, with nothing changed."""
        with self._exclusive() as handle:
            self._call(lib.pf_session_rollback, handle, _integer("the number of tokens to drop", n, 0, 2**63 - 1))
            self._position = int(lib.pf_session_position(handle))

    @property
    def rollback_limit(self) -> int:
        """How many tokens can be dropped now, short of all of them."""
        with self._exclusive() as handle:
            return int(lib.pf_session_rollback_limit(handle))

    def save(self, path: StrPath) -> None:
        """Writes the cache to a file, which appears under its name only when complete."""
        with self._exclusive() as handle:
            self._call(lib.pf_session_save, handle, _c_path(path))

    def load(self, path: StrPath) -> None:
        """Replaces the cache by a saved one, of the same model file and precision."""
        with self._exclusive() as handle:
            self._call(lib.pf_session_load, handle, _c_path(path))
            self._position = int(lib.pf_session_position(handle))

    @property
    def memory(self) -> Memory:
        memory = ffi.new("pf_session_memory *")
        memory.struct_size = ffi.sizeof("pf_session_memory")
        error = ffi.new("pf_error *")
        with self._exclusive() as handle:
            check(lib.pf_session_get_memory(handle, memory, error), error)
        return Memory(memory.cache_bytes, memory.buffer_bytes)

    def set_tap(self, tap: Tap | None) -> None:
        """Calls tap(name, layer, position, array) for every named intermediate of each token; None: stop.

        The array is a copy, float32, or int32 for "topk" and "experts". An exception in the tap ends the evaluation
        and comes out of it.
        """
        def forward(_user: Any, name: Any, layer: int, position: int, data: Any, n: int, is_int: int) -> None:
            if self._tap_error is not None or tap is None:
                return
            dtype: Any = np.int32 if is_int else np.float32
            array = np.frombuffer(ffi.buffer(data, 4 * n), dtype=dtype).copy() if n else np.empty(0, dtype=dtype)
            self._tap_thread = threading.current_thread()
            try:
                tap(_string(name), layer, position, array)
            except BaseException as error:
                self._tap_error = error
                lib.pf_session_cancel(self._handle)
            finally:
                self._tap_thread = None

        with self._exclusive() as handle:
            callback = ffi.NULL if tap is None else ffi.callback("pf_tap_fn", forward)
            lib.pf_session_set_tap(handle, callback, ffi.NULL)
            self._tap = callback

    # -- generation --

    def generate(
        self, tokens: Tokens, max_tokens: int | None = None, temperature: float = 1.0, top_k: int = 0,
        top_p: float = 1.0, min_p: float = 0.0, seed: int | None = None,
    ) -> Iterator[Piece]:
        """Evaluates tokens and yields one Piece for each token generated, the end token included.

        max_tokens: None for as many as the context holds. temperature 0 takes the likeliest token. The last piece's
        token has not been evaluated. Raises what eval() raises.
        """
        room = self.capacity - self.position - len(tokens)
        limit = room + 1 if max_tokens is None else min(max_tokens, room + 1)
        if limit < 1 and max_tokens is not None and max_tokens < 1:
            raise ArgumentError("max_tokens must be at least 1")
        return self._generate(tokens, limit, _sampler(temperature, top_k, top_p, min_p, seed))

    def _generate(self, tokens: Tokens, limit: int, sampler: Any) -> Iterator[Piece]:
        eos = self._model.info.eos_token
        tokenizer = self._model.tokenizer
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        token_out, logprob_out, error = ffi.new("int32_t *"), ffi.new("float *"), ffi.new("pf_error *")
        logits = self.eval(tokens)
        for count in range(1, limit + 1):
            check(lib.pf_sampler_pick(sampler, _floats(logits), logits.size, token_out, logprob_out, error), error)
            token = int(token_out[0])
            finish: Literal["stop", "length"] | None = None
            if token == eos:
                finish = "stop"
            elif count == limit:
                finish = "length"
            text = decoder.decode(tokenizer.decode_bytes([token]), final=finish is not None)
            yield Piece(token, text, float(logprob_out[0]), finish)
            if finish:
                return
            logits = self.eval([token])

    def chat(
        self, messages: Sequence[chat_encoding.Message], think: str = "off", tools: object = None,
        release: str = "preview", max_tokens: int | None = None, temperature: float = 1.0, top_k: int = 0,
        top_p: float = 1.0, min_p: float = 0.0, seed: int | None = None,
    ) -> Iterator[ChatPiece]:
        """Answers a conversation; yields a ChatPiece for each token. think: "off", "high" or "max".

        What this session has already evaluated of the same conversation is not evaluated again.
        """
        if think not in ("off", "high", "max"):
            raise ArgumentError(f"unknown thinking mode {think!r}; use off, high or max")
        if tools:
            raise UnsupportedError("tools are not supported yet")
        thinking = think != "off"
        pieces = chat_encoding.segments(
            messages, thinking=thinking, effort=think if thinking else None, release=release
        )
        ids = self._model.tokenizer.encode_segments(pieces)
        if len(ids) > self.capacity:
            raise ContextFullError(
                f"the conversation has {len(ids)} tokens and the context holds {self.capacity}; "
                "open a session with a larger context"
            )
        rest = self._keep_common_prefix(ids)
        generated = self.generate(rest, max_tokens, temperature, top_k, top_p, min_p, seed)
        return self._chat_pieces(generated, thinking)

    def _keep_common_prefix(self, ids: list[int]) -> list[int]:
        """Rolls back to what the session shares with ids, and returns the others; at least one, for its logits."""
        known = self.tokens
        shared = min(len(known), len(ids) - 1)
        differs = np.flatnonzero(known[:shared] != np.asarray(ids[:shared], dtype=np.int32))
        common = int(differs[0]) if len(differs) else shared
        drop = self.position - common
        if drop > self.rollback_limit:
            common, drop = 0, self.position
        if drop > 0:
            self.rollback(drop)
        return ids[common:]

    def _chat_pieces(self, pieces: Iterator[Piece], thinking: bool) -> Iterator[ChatPiece]:
        think_end = self._model.tokenizer.token_id(chat_encoding.THINK_END)
        kind: Literal["reasoning", "content"] = "reasoning" if thinking else "content"
        for piece in pieces:
            yield ChatPiece(piece.token, piece.text, piece.logprob, piece.finish, kind)
            if kind == "reasoning" and piece.token == think_end:
                kind = "content"


def _sampler(temperature: float, top_k: int, top_p: float, min_p: float, seed: int | None) -> Any:
    params = ffi.new("pf_sampler_params *")
    lib.pf_sampler_params_init(params)
    try:
        params.temperature, params.top_p, params.min_p = temperature, top_p, min_p
    except (TypeError, OverflowError) as problem:
        raise ArgumentError(f"temperature, top_p and min_p must be numbers: {problem}") from None
    params.top_k = _integer("top_k", top_k, 0, 2**31 - 1)
    params.seed = secrets.randbits(64) if seed is None else _integer("seed", seed) & (2**64 - 1)
    out, error = ffi.new("pf_sampler **"), ffi.new("pf_error *")
    check(lib.pf_sampler_open(params, out, error), error)
    return ffi.gc(out[0], lib.pf_sampler_close)
