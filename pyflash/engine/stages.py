"""A model in stages of consecutive layers, all in this process: what a session asks of it, each stage does in its turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt

from pyflash.engine.draft_lengths import DraftLedger
from pyflash.engine.generation import Generation, Progress, generate
from pyflash.engine.model import Model
from pyflash.engine.sampling import SamplingOptions
from pyflash.engine.session import Memory, Session, Tap, checked_tokens, context_full, room_for_logits
from pyflash.engine.speculation import Propose, speculation
from pyflash.engine.steps import MOST_WAITING, eval_stage
from pyflash.native.errors import ArgumentError, BusyError, CancelledError, ClosedError, FormatError, UnsupportedError
from pyflash.native.values import FloatArray, StrPath, Tokens, integer, token_array

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from pyflash.chat import Message
    from pyflash.chat.reply import Reply
    from pyflash.engine.grammar import Grammar
    from pyflash.engine.stream import Cancellation

Layers = tuple[int, int]


def cut(n_layer: int, n_stages: int) -> list[Layers]:
    """The layers (first, end) of stages of as many layers each, as far as that goes."""
    if not 1 <= n_stages <= n_layer:
        raise ArgumentError(f"{n_layer} layers cannot be cut into {n_stages} stages")
    ends = [n_layer * (i + 1) // n_stages for i in range(n_stages)]
    return list(zip([0, *ends], ends))


class StagedModel:
    """The stages of one model, from the embedding to the head, with the API of Model as far as a chat needs it.

    It computes the same bits as the whole model. All in one process it gains nothing: it is what several machines do.
    info: the whole model's. stages: the models of the parts.
    """

    def __init__(self, stages: Sequence[Model]) -> None:
        """Takes the stages over: close() closes them. ArgumentError where they do not follow each other or have other
        precisions, UnsupportedError where they compute by different kernel sets, which would give other bits."""
        infos = [stage.info for stage in stages]
        ends = [0, *(info.end_layer for info in infos)]
        if not infos or [info.first_layer for info in infos] != ends[:-1] or ends[-1] != infos[-1].n_layer:
            raise ArgumentError(f"stages of the layers {[(i.first_layer, i.end_layer) for i in infos]} are not a whole model")
        if len({(info.precision, info.name, info.n_embd, info.n_vocab) for info in infos}) > 1:
            raise ArgumentError("the stages are of different models or precisions")
        if len(kernels := {info.cpu_isa for info in infos}) > 1:
            raise UnsupportedError(f"the stages compute by different kernel sets, {', '.join(sorted(kernels))}: open all of "
                                   "them with the isa that all machines have")
        self.stages: Final = tuple(stages)
        self.info = replace(infos[-1], first_layer=0, weight_bytes=sum(info.weight_bytes for info in infos),
                            widened_bytes=sum(info.widened_bytes for info in infos))
        last = stages[-1]
        self.tokenizer, self.release, self.release_known = last.tokenizer, last.release, last.release_known
        self.metadata, self.placement = last.metadata, last.placement

    @classmethod
    def open(cls, path: StrPath, stages: int | Sequence[Layers] = 2, **options: Any) -> StagedModel:
        """Opens every stage of a file here. stages: their number, or the layers (first, end) of each. options: those of
        Model.open()."""
        opened: list[Model] = []
        try:
            if isinstance(stages, int):
                with Model.open(path, layers=(0, 1), **options) as probe:
                    stages = cut(probe.info.n_layer, stages)
            for layers in stages:
                opened.append(Model.open(path, layers=layers, **options))
            return cls(opened)
        except BaseException:
            for stage in opened:
                stage.close()
            raise

    def session(self, context: int | None = None, **options: Any) -> StagedSession:
        """A new, empty session: one of each stage. options: those of Model.session()."""
        return StagedSession(self, {"context": context, **options})

    @property
    def sampling(self) -> SamplingOptions:
        return self.stages[-1].sampling

    def prepare_drafts(self) -> None:
        """As Model.prepare_drafts(), in the stage that drafts."""
        self.stages[-1].prepare_drafts()

    def close(self) -> None:
        for stage in self.stages:
            stage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class StagedSession:
    """One token timeline, a part of whose cache each stage has. Made by StagedModel.session(); the API is Session's.

    A step goes through all stages before any of them keeps it, so all stand at the same position whatever happens.
    """

    def __init__(self, model: StagedModel, options: Mapping[str, Any]) -> None:
        self._model = model
        self._options = dict(options)
        self._parts = self._open_parts()
        self._lock = threading.Lock()         # held while a call runs
        self._cancel_lock = threading.RLock()  # held briefly
        self._cancel_asked = False
        self._running: Session | None = None   # the part that computes just now
        self._tap: Tap | None = None
        self.n_moves = 0
        self.tokenizer: Final = self._first.tokenizer
        self.capacity: Final = self._first.capacity
        self.chunk: Final = self._first.chunk
        self.most_ahead: Final = min(part.most_ahead for part in self._parts)
        self.draft_ledger: Final = DraftLedger()

    def _open_parts(self) -> list[Session]:
        parts: list[Session] = []
        try:
            for stage in self._model.stages:
                parts.append(stage.session(**self._options))
        except BaseException:
            for part in parts:
                part.close()
            raise
        return parts

    @property
    def _first(self) -> Session:
        return self._parts[0]

    @property
    def _last(self) -> Session:
        return self._parts[-1]

    def _free(self) -> threading.Lock:
        """The lock of this session's calls, for a with statement."""
        if self._lock.locked():
            raise BusyError("the session is running another call")
        return self._lock

    @property
    def stages(self) -> tuple[Session, ...]:
        """Each stage's session. What is moved in one of them alone is no longer where the others are."""
        return tuple(self._parts)

    def cancel(self) -> None:
        """From any thread: the running call, or else the next one that evaluates, raises CancelledError."""
        with self._cancel_lock:
            self._first.position  # noqa: B018: ClosedError
            self._cancel_asked = True
            self._interrupt()

    def _interrupt(self) -> None:
        with self._cancel_lock:
            if self._running is not None:
                self._running.cancel()

    def _check_cancel(self, cancellation: Cancellation | None) -> None:
        with self._cancel_lock:
            asked, self._cancel_asked = self._cancel_asked, False
        if asked or (cancellation is not None and cancellation.requested):
            raise CancelledError("cancelled")

    def close(self) -> None:
        """Frees the caches; a call that runs on another thread is cancelled first."""
        if self._lock.locked():
            try:
                self.cancel()
            except ClosedError:
                return
        with self._lock:
            for part in self._parts:
                part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # -- the timeline --

    @property
    def model(self) -> StagedModel:
        return self._model

    @property
    def position(self) -> int:
        return self._first.position

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        return self._first.tokens

    def eval(self, tokens: Tokens, all_logits: bool = False, progress: Progress | None = None, *,
             cancellation: Cancellation | None = None) -> FloatArray:
        """As Session.eval(); a step that fails or is cancelled in any stage is one in none."""
        n_vocab = self._model.info.n_vocab
        ids = checked_tokens(tokens, n_vocab)
        with self._free():
            if len(ids) > self.capacity - self.position:
                raise context_full(len(ids), self.capacity, self.position)
            logits = room_for_logits(len(ids), len(ids) if all_logits else 1, n_vocab)
            for begin in range(0, len(ids), self.chunk):
                end = min(begin + self.chunk, len(ids))
                wish: Literal["all", "last", "none"] = "all" if all_logits else "last" if end == len(ids) else "none"
                step = self._step(ids[begin:end], wish, cancellation)
                self._keep(end - begin)
                if all_logits:
                    logits[begin:end] = step
                elif step is not None:
                    logits[0] = step
                if progress is not None:
                    progress(end, len(ids))
        return logits if all_logits else logits[0]

    def _step(self, ids: npt.NDArray[np.int32], logits: Literal["all", "last", "none"],
              cancellation: Cancellation | None) -> FloatArray | None:
        """One step through all stages, whose tokens wait in each of them; its logits."""
        streams: FloatArray | None = None
        try:
            for part in self._parts:
                streams = self._through(part, ids, streams, logits if part is self._last else "none", cancellation)
        except BaseException:
            for part in self._parts:
                if part.waiting:
                    part.keep(0)
            raise
        return streams

    def _through(self, part: Session, ids: npt.NDArray[np.int32], streams: FloatArray | None,
                 logits: Literal["all", "last", "none"], cancellation: Cancellation | None) -> FloatArray | None:
        while True:
            self._check_cancel(cancellation)
            try:
                with self._cancel_lock:
                    self._running = part
                if cancellation is None:
                    return cast("FloatArray | None", eval_stage([(part, ids, streams)], logits)[0])
                with cancellation.during(self._interrupt):
                    return cast("FloatArray | None", eval_stage([(part, ids, streams)], logits)[0])
            except CancelledError:
                self._check_cancel(cancellation)  # else the request was for a step that was over before it came
            finally:
                with self._cancel_lock:
                    self._running = None

    def _keep(self, n: int) -> None:
        for part in self._parts:
            part.keep(n)
        self.n_moves += 1

    def keep(self, n: int) -> None:
        count = integer("the number of tokens to keep", n, 0, 2**63 - 1)
        with self._free():
            self._keep(count)

    @property
    def waiting(self) -> int:
        return self._first.waiting

    def eval_ahead(self, tokens: Tokens, *, cancellation: Cancellation | None = None) -> FloatArray:
        ids = checked_tokens(tokens, self._model.info.n_vocab)
        most = min(MOST_WAITING, self.chunk)
        if len(ids) > most:
            raise ArgumentError(f"{len(ids)} tokens cannot be evaluated ahead: 1 to {most}")
        with self._free():
            if len(ids) > self.capacity - self.position:
                raise context_full(len(ids), self.capacity, self.position)
            logits = self._step(ids, "all", cancellation)
            self._keep(1)
        return cast("FloatArray", logits)

    def advance(self) -> bool:
        with self._free():
            if self.ahead == 0:
                return False
            for part in self._parts:
                part.advance()
            self.n_moves += 1
            return True

    @property
    def ahead(self) -> int:
        return min(part.ahead for part in self._parts)  # a draft makes the last stage forget its own

    @property
    def is_watched(self) -> bool:
        return any(part.is_watched for part in self._parts)

    def draft(self, next_token: int) -> FloatArray:
        with self._free():
            return self._last.draft(next_token)

    def draft_tokens(self, next_token: int, n: int) -> tuple[list[int], list[float]]:
        with self._free():
            return self._last.draft_tokens(next_token, n)

    def rollback(self, n: int) -> None:
        count = integer("the number of tokens to drop", n, 0, 2**63 - 1)
        with self._free():
            self._rollback(count)

    def _rollback(self, n: int) -> None:
        target = self.position - n
        if target > 0:  # a stage that cannot go there says so before another one has
            beginning = [*self.tokens[:target].tolist(), 0]
            for part in self._parts:
                if part.reusable(beginning) != target:
                    part.rollback(n)
        for part in self._parts:
            part.rollback(n)
        self.n_moves += 1

    @property
    def rollback_limit(self) -> int:
        return min(part.rollback_limit for part in self._parts)

    def checkpoint(self) -> None:
        with self._free():
            for part in self._parts:
                part.checkpoint()

    @property
    def since_checkpoint(self) -> int:
        return self._first.since_checkpoint

    def align(self, tokens: Tokens) -> list[int]:
        return self._first.align(tokens)

    def hide_last(self) -> None:
        self._first.hide_last()

    def reusable(self, tokens: Tokens) -> int:
        """The last position that all stages can return to."""
        ids = token_array(tokens)
        kept = len(ids)
        while kept > 0:
            found = min(part.reusable(ids[: kept + 1]) for part in self._parts)
            if found == kept:
                break
            kept = found
        return kept

    def reuse(self, tokens: Tokens) -> int:
        ids = token_array(tokens)
        if len(ids) == 0:
            raise ArgumentError("there are no tokens to compare with")
        with self._free():
            kept = self.reusable(ids)
            self._rollback(self.position - kept)
        return kept

    # -- files --

    @property
    def note(self) -> bytes:
        return self._first.note

    @note.setter
    def note(self, data: bytes) -> None:
        self._first.note = data

    def _files(self, path: StrPath) -> list[str]:
        """The first stage's file has the name, those of the others their layers too."""
        name = str(Path(path))
        return [name, *(f"{name}.layers-{stage.info.first_layer}-{stage.info.end_layer}" for stage in self._model.stages[1:])]

    def save(self, path: StrPath) -> None:
        """Each stage writes its file, path and path.layers-FIRST-END: each all or nothing, one after the other."""
        with self._free():
            for part, file in zip(self._parts, self._files(path), strict=True):
                part.save(file)

    def load(self, path: StrPath) -> None:
        """As Session.load(), from what save() wrote. FormatError where the stages' files were not saved together."""
        with self._free():
            loaded = self._open_parts()
            try:
                for part, file in zip(loaded, self._files(path), strict=True):
                    part.load(file)
                if any(not np.array_equal(part.tokens, loaded[0].tokens) for part in loaded):
                    raise FormatError(f"{path}: its stages' files are of different conversations: evaluate it again")
            except BaseException:
                for part in loaded:
                    part.close()
                raise
            old, self._parts = self._parts, loaded
            for part in old:
                part.close()
            self._set_tap(self._tap)
            self.n_moves += 1

    @property
    def memory(self) -> Memory:
        each = [part.memory for part in self._parts]
        return Memory(sum(m.cache_bytes for m in each), sum(m.buffer_bytes for m in each),
                      sum(m.checkpoint_bytes for m in each))  # fmt: skip

    def set_tap(self, tap: Tap | None) -> None:
        with self._free():
            self._set_tap(tap)

    def _set_tap(self, tap: Tap | None) -> None:
        self._tap = tap
        for part in self._parts:
            part.set_tap(tap)

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
