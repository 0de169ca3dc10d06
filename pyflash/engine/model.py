"""Model: the loaded weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_export.chat_texts import Release, told_release
from pyflash.engine.collector import Collector
from pyflash.engine.options import CACHES, PRECISIONS, RELEASES, DeviceOptions, chosen
from pyflash.engine.profiler import Profiler
from pyflash.engine.sampling import SamplingOptions, recommended_sampling
from pyflash.engine.session import Session
from pyflash.engine.tokenizer import Tokenizer
from pyflash.native.errors import ArgumentError, check
from pyflash.native.library import ffi, lib
from pyflash.native.values import ModelHandle, StrPath, c_path, integer, open_handle, string

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyflash.engine.options import DeviceKeywords

_log = logging.getLogger("pyflash")

MAX_THREADS = 1024  # of the library
_DRAFTS = {lib.PF_DRAFTS_NONE: "none", lib.PF_DRAFTS_MTP: "mtp", lib.PF_DRAFTS_DSPARK: "dspark"}
DRAFT_HEAD = 32768  # rows: nearly all of a text's tokens are among V4's first so many
_LOG_LEVELS = {lib.PF_LOG_DEBUG: logging.DEBUG, lib.PF_LOG_INFO: logging.INFO, lib.PF_LOG_WARNING: logging.WARNING}


# Lives as long as the process, because sessions may outlive the Model object that passed it on.
@ffi.callback("pf_log_fn")  # type: ignore[untyped-decorator]
def _forward_log(_user: Any, level: int, message: Any) -> None:
    _log.log(_LOG_LEVELS.get(level, logging.INFO), "%s", string(message))


@dataclass(frozen=True)
class ModelInfo:
    """What a model file is: pf_model_info of pyflash.h, with the same names, and every layer's compression ratio.

    drafts: what it can draft with, "none", "mtp" or "dspark"; draft_most: tokens of a DSpark draft, at most.
    """

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
    widened_bytes: int
    drafts: str
    draft_bytes: int
    draft_file_bytes: int
    draft_most: int
    first_layer: int
    end_layer: int
    directory_bytes: int
    layer_ratios: tuple[int, ...]


def _filled(struct: str, get: Callable[[Any, Any, Any], int], native: Any) -> Any:
    """A versioned struct that a getter of a model fills in."""
    out, error = ffi.new(f"{struct} *"), ffi.new("pf_error *")
    out.struct_size = ffi.sizeof(struct)
    check(get(native, out, error), error)
    return out


def _read_info(native: Any) -> ModelInfo:
    info = _filled("pf_model_info", lib.pf_model_get_info, native)
    values = {name: getattr(info, name) for name in ModelInfo.__dataclass_fields__ if name != "layer_ratios"}
    values["precision"] = next(name for name, value in PRECISIONS.items() if value == info.precision)
    values["has_mtp"] = bool(info.has_mtp)
    values["drafts"] = _DRAFTS[info.drafts]
    for name in ("name", "profile", "cpu_isa"):
        values[name] = string(values[name])
    ratios = tuple(lib.pf_model_layer_ratio(native, layer) for layer in range(info.n_layer))
    return ModelInfo(**values, layer_ratios=ratios)


@dataclass(frozen=True)
class ExpertReads:
    """How a model's expert_budget has worked out so far: pf_expert_reads of pyflash.h, with the same names."""

    n_wanted: int
    n_read: int
    bytes_read: int
    expert_bytes: int


@dataclass(frozen=True)
class Placement:
    """What of a model a device holds, and what the session that was planned for takes there: pf_placement_info of
    pyflash.h, with the same names. All zeros without a device."""

    name: str
    n_layer: int
    n_expert_layer: int
    head: bool
    weight_bytes: int
    cache_bytes: int
    buffer_bytes: int
    free_bytes: int
    total_bytes: int
    stream_bytes: int
    hot_bytes: int
    kept: str


@dataclass(frozen=True)
class ExpertUploads:
    """How a model's stream_experts has worked out so far: pf_expert_uploads of pyflash.h, with the same names."""

    n_sent: int
    n_kept: int
    bytes_sent: int


@dataclass(frozen=True)
class HotExperts:
    """How a model's hot_experts have worked out so far: pf_hot_expert_info of pyflash.h, with the same names."""

    n_slot: int
    n_hit: int
    n_missed: int
    n_brought: int
    n_replaced: int
    bytes_sent: int


def _open_handle(path: StrPath, params: Any) -> ModelHandle:
    out, error = ffi.new("pf_model **"), ffi.new("pf_error *")
    encoded = c_path(path)
    open_handle(lambda: lib.pf_model_open(encoded, params, out, error), out, lib.pf_model_release, error)
    return ModelHandle(out[0])


def _layer_range(layers: tuple[int, int]) -> tuple[int, int]:
    try:
        first, end = layers
    except (TypeError, ValueError):
        raise ArgumentError(f"layers must be the first one and the end, not {layers!r:.40}") from None
    return integer("the first layer", first, 0, 2**31 - 1), integer("the end of the layers", end, 1, 2**31 - 1)


class Model:
    """The loaded weights: immutable, and shared by any number of sessions and threads.

    info: what the file is. tokenizer: its vocabulary. release: the rules of its chats, "preview" or "0731".
    release_known: whether open() was given the release or the file tells it; else it is taken to be the preview.
    """

    n_stages = 0  # it is not one of those in stages
    _draft_rows = DRAFT_HEAD

    def __init__(self, handle: ModelHandle, release: Release | None = None) -> None:
        """Not for callers: use Model.open()."""
        self._handle = handle
        with handle.borrow() as native:
            self.info = _read_info(native)
        self.tokenizer = Tokenizer(handle)
        told = release or told_release(self.metadata)
        self.release: Release = told or "preview"
        self.release_known = told is not None
        self._sampling = recommended_sampling(self._number)

    @classmethod
    def open(
        cls, path: StrPath, device: str | DeviceOptions = "auto", threads: int | None = None, precision: str = "fast",
        isa: str | None = None, mtp: StrPath | None = None, pin: bool = False, prefault: bool = False,
        mlock: bool = False, progress: Callable[[int, int], None] | None = None, expert_budget: int = 0, *,
        upload: bool = True, release: Release | None = None, overlay: StrPath | None = None,
        layers: tuple[int, int] | None = None, draft_head: int = DRAFT_HEAD, **more: Unpack[DeviceKeywords],
    ) -> Model:
        """Maps a GGUF (of several shards: the first) and checks everything but the weights' values.

        device: "auto", "cpu", "cuda" or "cuda:1", together with the other fields of DeviceOptions as arguments, or
        DeviceOptions. threads: None for one per physical core. precision: "fast" (16-bit activations into quantised
        weights), "int8" (8 bits: quicker, less accurate), or "exact" for float32 activations and cache. isa: the CPU
        kernel set, "scalar", "avx2", "avxvnni", "avx512" or "amx"; None takes $PYFLASH_CPU or else the best of this machine.
        mtp: a GGUF that drafts for the model: its MTP block, or DSpark stages. pin: keep each worker thread on a core of its
        own (Linux and Windows). prefault: read all weights into memory now; mlock: and keep them there; progress is called meanwhile
        with the bytes read and all there are. expert_budget: for files larger than memory: bytes of routed experts that
        are kept there, the others being read ahead from disk when they are chosen; 0 leaves it to the system.
        A device's weights are sent before open() returns, and progress is called meanwhile; without upload they are not,
        and nothing can be evaluated: for looking at the placement and at what sessions take.
        release: the rules of chats, "preview" or "0731"; None for the file's, as far as it tells. overlay: a GGUF of tensors
        that take the place of those with the same names. layers: (first, end) for a stage of the model, the layers first to
        end - 1 alone: only their weights are read and counted, with the embedding where first is 0, and with the head and
        the MTP block where end is the number of layers. The processor computes it, by eval_stage(); see also StagedModel.
        draft_head: rows of a small copy of the output head, which is made when an MTP block or DSpark stages first draft and
        makes drafts quicker; 0: they draft with the head itself.
        Raises FileError, FormatError, UnsupportedError, MemoryLimitError or DeviceError.
        """
        if isinstance(device, DeviceOptions):
            if more:
                raise ArgumentError(f"{next(iter(more))} is given beside DeviceOptions, where it belongs")
            options = device
        else:
            options = DeviceOptions(device, **more)
        params = ffi.new("pf_model_params *")
        lib.pf_model_params_init(params)
        texts = [options.write(params)]  # what params points to must outlive the call

        def c_string(text: bytes) -> Any:
            texts.append(ffi.new("char[]", text))
            return texts[-1]

        isa = isa or os.environ.get("PYFLASH_CPU") or None
        params.precision = chosen("precision", precision, PRECISIONS)
        params.n_threads = 0 if threads is None else integer("threads", threads, 1, MAX_THREADS)
        params.cpu_isa = c_string(os.fsencode(isa)) if isa else ffi.NULL
        params.expert_budget = integer("expert_budget", expert_budget, 0, 2**63 - 1)
        params.mtp_path = c_string(c_path(mtp)) if mtp is not None else ffi.NULL
        params.overlay_path = c_string(c_path(overlay)) if overlay is not None else ffi.NULL
        params.log = _forward_log
        if layers is not None:
            params.first_layer, params.end_layer = _layer_range(layers)
        params.pin_threads = bool(pin)
        params.chat_release = 0 if release is None else chosen("release", release, RELEASES)
        model = cls(_open_handle(path, params), release)
        model._draft_rows = integer("draft_head", draft_head, 0, 2**31 - 1)
        try:
            if upload:
                model._upload(progress)
            if prefault or mlock:
                model._read_weights(mlock, progress)
        except BaseException:
            model.close()
            raise
        return model

    @property
    def draft_head_bytes(self) -> int:
        """What the copy of the head takes that prepare_drafts() makes; 0: it makes none."""
        with self._handle.borrow() as native:
            return int(lib.pf_model_draft_bytes(native, self._draft_rows))

    def prepare_drafts(self) -> None:
        """Makes what the MTP block drafts with, at the first call. MemoryLimitError."""
        error = ffi.new("pf_error *")
        with self._handle.borrow() as native:
            check(lib.pf_model_prepare_drafts(native, self._draft_rows, error), error)

    def _upload(self, progress: Callable[[int, int], None] | None) -> None:
        done, total, error = ffi.new("uint64_t *"), ffi.new("uint64_t *"), ffi.new("pf_error *")
        sent = 0
        while True:
            with self._handle.borrow() as native:
                check(lib.pf_model_upload(native, done, total, error), error)
            if done[0] == 0:
                return
            sent += done[0]
            if progress is not None:
                progress(sent, total[0])

    def _read_weights(self, lock: bool, progress: Callable[[int, int], None] | None) -> None:
        done, total, error = ffi.new("uint64_t *"), ffi.new("uint64_t *"), ffi.new("pf_error *")
        flags = lib.PF_PREFAULT_LOCK if lock else 0
        position = 0
        while True:
            with self._handle.borrow() as native:
                check(lib.pf_model_prefault(native, flags, position, done, total, error), error)
            if done[0] == 0:
                return
            position += done[0]
            if progress is not None:
                progress(position, total[0])

    def read_bandwidth(self, size: int = 1 << 29) -> float:
        """Bytes a second that the model's threads read from memory: the best of three passes over size fresh bytes."""
        rate, error = ffi.new("double *"), ffi.new("pf_error *")
        with self._handle.borrow() as native:
            check(lib.pf_model_read_bandwidth(native, integer("size", size, 1 << 20), rate, error), error)
        return float(rate[0])

    def session(
        self, context: int | None = None, chunk: int | None = None, poison: bool = False, cache: str = "auto",
        checkpoints: int | None = None,
    ) -> Session:
        """A new, empty session.

        context: capacity in tokens; None for the model's, at most 65536. chunk: most tokens that one native step
        evaluates. poison: fill the cache with garbage first (for tests). cache: the precision of its rows, "f32", "f16" or
        "reference" (FP8 and FP4 as the published model has them, about half of f16's size); "auto" is reference, and f32
        under precision="exact". checkpoints: how many are kept at most; None for 8.
        """
        params = ffi.new("pf_session_params *")
        lib.pf_session_params_init(params)
        params.n_ctx = 0 if context is None else integer("context", context, 1, 2**31 - 1)
        params.n_chunk = 0 if chunk is None else integer("chunk", chunk, 1, 2**31 - 1)
        params.flags = lib.PF_SESSION_POISON if poison else 0
        params.cache_type = chosen("cache precision", cache, CACHES)
        if checkpoints is not None:
            params.n_checkpoint = integer("checkpoints", checkpoints, 0, 2**31 - 1)
        out, error = ffi.new("pf_session **"), ffi.new("pf_error *")
        with self._handle.borrow() as native:
            open_handle(lambda: lib.pf_session_open(native, params, out, error), out, lib.pf_session_close, error)
        return Session(self, ffi.gc(out[0], lib.pf_session_close))

    def collector(self) -> Collector:
        """Empty sums of squares of what matrix products take, see Session.collect(). UnsupportedError with a device."""
        out, error = ffi.new("pf_collector **"), ffi.new("pf_error *")
        with self._handle.borrow() as native:
            open_handle(lambda: lib.pf_collector_open(native, out, error), out, lib.pf_collector_close, error)
        return Collector(ffi.gc(out[0], lib.pf_collector_close))

    def profiler(self) -> Profiler:
        """A clock for every operation, see Session.profile(). UnsupportedError with a device."""
        out, error = ffi.new("pf_profiler **"), ffi.new("pf_error *")
        with self._handle.borrow() as native:
            open_handle(lambda: lib.pf_profiler_open(native, out, error), out, lib.pf_profiler_close, error)
        return Profiler(ffi.gc(out[0], lib.pf_profiler_close))

    @property
    def placement(self) -> Placement:
        """What of the model a device holds."""
        with self._handle.borrow() as native:
            info = _filled("pf_placement_info", lib.pf_model_get_placement, native)
        values = {name: getattr(info, name) for name in Placement.__dataclass_fields__}
        return Placement(**values | {"name": string(info.name), "kept": string(info.kept), "head": bool(info.head)})

    @property
    def expert_reads(self) -> ExpertReads:
        """Experts wanted and read from disk so far under an expert_budget, and the bytes of all routed experts."""
        with self._handle.borrow() as native:
            reads = _filled("pf_expert_reads", lib.pf_model_get_expert_reads, native)
        return ExpertReads(reads.n_wanted, reads.n_read, reads.bytes_read, reads.expert_bytes)

    @property
    def expert_uploads(self) -> ExpertUploads:
        """How many layers of long chunks had their routed experts sent to the device so far, and the bytes sent."""
        with self._handle.borrow() as native:
            uploads = _filled("pf_expert_uploads", lib.pf_model_get_expert_uploads, native)
        return ExpertUploads(uploads.n_sent, uploads.n_kept, uploads.bytes_sent)

    @property
    def hot_experts(self) -> HotExperts:
        """How often a token's expert was held in the device's spare memory so far, and what was brought there."""
        with self._handle.borrow() as native:
            info = _filled("pf_hot_expert_info", lib.pf_model_get_hot_experts, native)
        return HotExperts(*(getattr(info, name) for name in HotExperts.__dataclass_fields__))

    def metadata(self, key: str) -> str | None:
        """A string value of the file by its key, such as "tokenizer.chat_template"; None when it has none."""
        size = ffi.new("size_t *")
        with self._handle.borrow() as native:
            text = lib.pf_model_meta_string(native, key.encode(), size)
            return bytes(ffi.buffer(text, size[0])).decode("utf-8", "replace") if text else None

    def _number(self, key: str) -> float | None:
        number = ffi.new("double *")
        with self._handle.borrow() as native:
            return float(number[0]) if lib.pf_model_meta_number(native, key.encode(), number) else None

    @property
    def sampling(self) -> SamplingOptions:
        """The sampling options that the file recommends (general.sampling.*), for generate() and chat() to begin with.

        Empty where there are none; values out of an option's range are left out. A copy.
        """
        return self._sampling.copy()

    def listen(self, hear: Callable[[str], None]) -> None:
        """Of models in stages: hear is called with a line when something has gone wrong, and when it is right again."""

    def close(self) -> None:
        """Lets go of the weights. Open sessions keep working and keep them in memory."""
        self._handle.close()
        self.tokenizer.made.clear()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
