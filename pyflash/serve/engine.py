"""The engine: one thread that owns a model and its sessions, and shares their time out among the requests."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from pyflash.chat.answer import AnswerRules
from pyflash.engine.model import Model
from pyflash.engine.sampling import SamplingOptions
from pyflash.engine.session import Session
from pyflash.engine.steps import eval_many
from pyflash.engine.stream import Cancellation
from pyflash.machine import hardware
from pyflash.native.errors import (
    ArgumentError,
    CancelledError,
    ClosedError,
    Error,
    MemoryLimitError,
    UnsupportedError,
)
from pyflash.native.values import FloatArray
from pyflash.serve import events, slots
from pyflash.serve.answer import Answer, Limits
from pyflash.serve.disk_cache import LEAST_TOKENS, DiskCache
from pyflash.serve.errors import RequestError
from pyflash.serve.job import Job
from pyflash.serve.metrics import Metrics
from pyflash.serve.prompts import Prompts
from pyflash.serve.request import Request
from pyflash.serve.tool_grammar import ToolGrammars
from pyflash.serve.trace import Trace, difference
from pyflash.serve.turns import TurnStore

_log = logging.getLogger("pyflash.serve")

_PATIENCE = 0.5  # seconds that a stream waits for others at most, where single steps are no longer
_LEAST_CHUNK = 8  # tokens of a prompt that are evaluated at once, however slow the machine
_CHECKPOINT_EVERY = 8192  # tokens of a long prompt
_WORTH_A_CHECKPOINT = 256
_WORTH_LOADING = 512  # tokens that a file has and no session
_IDLE_SAVE = 10.0  # seconds without a request after which conversations are put on disk

_AGENTS_TOP_P = {"0731": 0.95}  # by release

State = Literal["loading", "ready", "idle", "failed", "closed"]


@dataclass(frozen=True)
class EngineOptions:
    """context: of each session in tokens, None for the model's default. cache_type: of sessions. parallel: how many
    sessions; None for two where memory has room for them. queue_limit: requests that wait at most. think: the thinking
    mode of requests that name none. idle_unload: seconds without a request after which the model is let go; None: never."""

    context: int | None = None
    cache_type: str = "auto"
    parallel: int | None = None
    checkpoints: int = 12
    queue_limit: int = 32
    think: str = "high"
    idle_unload: float | None = None


@dataclass(frozen=True)
class Loaded:
    """A model that is ready, and what is the same for all requests to it."""

    model: Model
    slots: list[slots.Slot]
    prompts: Prompts
    tools: ToolGrammars
    n_ctx: int
    chunk: int


Work = Sequence[tuple[Session, list[int]]]


def evaluate(work: Work, logits: Literal["last", "all"], cancellation: Cancellation | None = None
             ) -> Sequence[FloatArray | BaseException | None]:
    """The tokens of sessions through the model together: float32 [vocab] or [n, vocab] of each, or its error where there
    are several. cancellation: of one session alone."""
    if len(work) == 1:
        session, tokens = work[0]
        return [session.eval(tokens, logits == "all", cancellation=cancellation)]
    return eval_many(work, logits, return_errors=True)


def shares_steps(model: Model) -> bool:
    """Whether a step of several sessions is quicker than one after the other; known once a step has been taken.

    Each session chooses experts of its own, so that there is nothing to gain where those come from a disk."""
    usable = hardware.memory().usable
    return not (model.placement.name or model.expert_reads.n_wanted or (usable and model.info.weight_bytes > usable))


def default_sampling(model: Model, request: Request) -> SamplingOptions:
    """How tokens are chosen where the request does not say: as the file recommends, and with tools as the release's model
    card does for agents."""
    found = model.sampling
    if request.tools and model.release in _AGENTS_TOP_P:
        found["top_p"] = min(found.get("top_p", 1.0), _AGENTS_TOP_P[model.release])
    return found


class Engine:
    """Answers requests. prepare(), submit(), cancel() and what it tells may be used from any thread.

    failure: why the model could not be opened, in state "failed".
    """

    def __init__(self, open_model: Callable[[], Model], options: EngineOptions, turns: TurnStore,
                 fitting: Callable[[Model, Session], int | None] | None = None, disk: DiskCache | None = None,
                 trace: Trace | None = None) -> None:
        """open_model: is called on the engine's thread, again after an idle_unload. fitting: how many sessions like the
        given one memory has room for; None where nobody knows. trace: is told what each request found."""
        self._open_model = open_model
        self._fitting = fitting
        self._disk = disk
        self._trace = trace
        self.options = options
        self.turns = turns
        self.metrics = Metrics()
        self.state: State = "loading"
        self.failure: Exception | None = None
        self.is_draining = False
        self._loaded: Loaded | None = None
        self._is_ready = threading.Event()
        self._orders: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of what follows
        self._n_open = 0  # submitted and not told the end of
        self._reading: tuple[Job, Cancellation, float] | None = None  # the chunk under way, and when it will be over
        self._is_closing = False
        # The thread's own.
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._may_admit = False
        self._shares: bool | None = None  # see shares_steps()
        self._chunk = 0  # tokens that fit _PATIENCE, as far as is known
        self._rate = 0.0  # tokens of prompts a second
        self._last_progress = 0.0  # when something was evaluated last
        self._thread = threading.Thread(target=self._run, name="pyflash engine", daemon=True)

    # -- from any thread --

    def start(self) -> None:
        self._thread.start()

    @property
    def is_healthy(self) -> bool:
        """Whether requests are answered."""
        return self.state in ("ready", "idle") and not self.is_draining

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Waits until the model is open, or cannot be opened; whether it is open."""
        self._is_ready.wait(timeout)
        return self.state == "ready"

    def prepare(self, request: Request, salt: bytes = b"") -> Job:
        """A request made ready to be submitted: rendered and tokenised. Takes a while for long ones. RequestError."""
        loaded = self.use()
        try:
            prompt = loaded.prompts.make(request, salt)
            if len(prompt.tokens) >= loaded.n_ctx:
                raise RequestError.context_length(len(prompt.tokens), loaded.n_ctx)
            opening = prompt.opening
            rules = AnswerRules() if opening is None else loaded.tools.rules(request, prompt.begun, opening)
            turn_id = self.turns.new_id()
            return Job(request, prompt, rules, salt, turn_id, self.turns.signature(salt, turn_id))
        except ClosedError:
            raise _loading() from None
        except (ArgumentError, UnsupportedError) as error:
            raise RequestError(str(error)) from None

    def count(self, request: Request, salt: bytes = b"") -> int:
        """Tokens of a request's prompt. RequestError."""
        return len(self.use().prompts.make(request, salt).tokens)

    def use(self) -> Loaded:
        """What is loaded, woken where it was let go. RequestError."""
        if self.failure is not None:
            raise RequestError(f"the model cannot be opened: {self.failure}", code="out_of_memory")
        if self.is_draining:
            raise _shutting_down()
        if self.state == "idle":
            self._orders.put(None)
            self._is_ready.wait(60)
        loaded = self._loaded
        if loaded is None:
            raise _loading()
        return loaded

    def submit(self, job: Job, tell: Callable[[events.Event], None]) -> None:
        """Queues a job, whose events go to tell from now on. RequestError where there is no place for it."""
        job.tell = tell
        with self._lock:
            if self.is_draining:
                raise _shutting_down()
            n_slots = len(self._loaded.slots) if self._loaded else 1
            if self._n_open >= self.options.queue_limit + n_slots:
                raise RequestError(
                    f"{self._n_open} requests are being answered or wait: send it again later, or start the server with a "
                    "longer queue", code="queue_full", retry_after=max(1.0, min(60.0, self.metrics.typical_seconds())))
            self._n_open += 1
            reading = self._reading
            if reading is not None and reading[2] - time.monotonic() > _PATIENCE:
                reading[1].request()  # it was alone, and so has a long chunk: what comes now may be short
            self._orders.put(job)

    def cancel(self, job: Job) -> None:
        """Ends a job, if it has not ended, without a further event. What was evaluated stays for the next one."""
        job.is_cancelled = True
        with self._lock:
            if self._reading is not None and self._reading[0] is job:
                self._reading[1].request()
        self._orders.put(None)

    def drain(self) -> None:
        """Takes no more requests; those that are there are answered."""
        self.is_draining = True

    def close(self, timeout: float | None = None) -> bool:
        """Drains, ends what is not answered after timeout seconds, and lets go of the model. Whether the thread is over."""
        self.drain()
        with self._lock:
            self._is_closing = True
        self._orders.put(None)
        if not self._thread.is_alive():
            return True
        self._thread.join(timeout)
        if self._thread.is_alive():
            for job in [*self._waiting, *self._running]:
                self.cancel(job)
            self._thread.join(10)
        return not self._thread.is_alive()

    def waiting_and_running(self) -> tuple[int, int]:
        return len(self._waiting) + self._orders.qsize(), len(self._running)

    @property
    def stalled_seconds(self) -> float:
        """How long requests have waited without anything being evaluated; 0 where there are none."""
        asked = [job.asked for job in (*self._waiting, *self._running)]
        return max(0.0, time.monotonic() - max(self._last_progress, min(asked))) if asked else 0.0

    # -- on the thread --

    def _run(self) -> None:
        self._load()
        while self.state != "failed" and not self._is_over():
            if not self._collect():
                self._unload("idle")
                self._collect_forever()
                if self._is_over():
                    break
                self._load()
                continue
            if self._may_admit:
                self._admit()
            self._round()
        self.is_draining = True
        self._collect_left()
        for job in [*self._waiting, *self._running]:
            self._fail(job, _shutting_down())
        if self.state != "failed":
            self._unload("closed")

    def _is_over(self) -> bool:
        return self._is_closing and not self._waiting and not self._running and self._orders.empty()

    def _load(self) -> None:
        try:
            model = self._open_model()
            try:
                self._loaded = self._opened(model)
            except BaseException:
                model.close()
                raise
        except Exception as error:  # whoever waits must hear of it, whatever it is
            _log.info("the model cannot be opened: %s", error)
            self.state, self.failure = "failed", error
        else:
            self.state = "ready"
            self._shares = None
            self._chunk = min(16, self._loaded.chunk)
        self._is_ready.set()

    def _opened(self, model: Model) -> Loaded:
        options = self.options
        first = model.session(options.context, cache=options.cache_type, checkpoints=options.checkpoints)
        n = options.parallel
        if n is None:
            fitting = self._fitting(model, first) if self._fitting else None
            n = 2 if fitting is None or fitting >= 2 else 1
        sessions = [first]
        while len(sessions) < n:
            sessions.append(model.session(options.context, cache=options.cache_type, checkpoints=options.checkpoints))
        if self._disk is not None:
            self._disk.open(model, first, options.cache_type)
            self.turns.restore(self._disk.read_turns(), model.info.n_vocab)
        prompts = Prompts(model.tokenizer, model.info, model.release, options.think, self.turns)
        return Loaded(model, [slots.Slot(i, each) for i, each in enumerate(sessions)], prompts,
                      ToolGrammars(model.tokenizer, model.info), first.capacity, first.chunk)

    def _unload(self, state: State) -> None:
        self._is_ready.clear()
        self._save()
        loaded, self._loaded = self._loaded, None
        self.state = state
        if loaded is not None:
            for slot in loaded.slots:
                slot.session.close()
            loaded.model.close()

    def _save(self) -> None:
        """Puts on disk what only memory has."""
        if self._disk is not None and self._loaded is not None:
            for slot in self._loaded.slots:
                slot.save(self._disk)
            self._disk.write_turns(self.turns.dump())

    def _has_unsaved(self) -> bool:
        return self._disk is not None and self._loaded is not None and any(slot.is_unsaved for slot in self._loaded.slots)

    def _collect(self) -> bool:
        """Takes the orders that there are; waits for one where there is nothing to do, and puts on disk what is not there.
        False after an idle_unload's time."""
        has_work = bool(self._running or self._waiting)
        wait = self.options.idle_unload
        if not has_work and self._has_unsaved() and self._orders.empty():
            with contextlib.suppress(queue.Empty):
                self._orders.put(self._orders.get(timeout=_IDLE_SAVE if wait is None else min(wait, _IDLE_SAVE)))
                return True
            self._save()
        try:
            while True:
                order = self._orders.get(timeout=wait) if not has_work else self._orders.get_nowait()
                has_work = True
                if order is not None:
                    self._waiting.append(order)
                    self._may_admit = True
        except queue.Empty:
            pass
        for job in [each for each in self._waiting if each.is_cancelled]:
            self._waiting.remove(job)
            self._end(job, "cancelled")
            self._may_admit = True
        for job in [each for each in self._running if each.is_cancelled]:
            self._end(job, "cancelled")
        return has_work

    def _collect_forever(self) -> None:
        order = self._orders.get()
        self.state = "loading"
        if order is not None:
            self._waiting.append(order)
            self._may_admit = True

    def _collect_left(self) -> None:
        """Takes what was submitted until the engine ended."""
        with self._lock, contextlib.suppress(queue.Empty):
            while True:
                order = self._orders.get_nowait()
                if order is not None:
                    self._waiting.append(order)

    def _admit(self) -> None:
        """Gives waiting jobs the slots that they can have, in their order."""
        assert self._loaded is not None
        self._may_admit = False
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            try:
                choice = slots.choose(self._loaded.slots, job.prompt.tokens, job.salt, job.request.hints,
                                      reuse=job.request.reuse)
                if choice is None:
                    self._waiting.append(job)
                    self._tell_place(job, len(self._waiting) - 1)
                    continue
                self._begin(job, choice)
            except Exception as error:
                self._fail(job, _as_request_error(error))

    def _tell_place(self, job: Job, place: int) -> None:
        if job.queue_position != place:
            job.queue_position = place
            job.tell(events.Progress(len(job.tokens), 0, 0, time.monotonic() - job.asked, place))

    def _begin(self, job: Job, choice: slots.Choice) -> None:
        loaded = self._loaded
        assert loaded is not None
        request, prompt = job.request, job.prompt
        choice = self._exchanged(job, choice)
        room = loaded.n_ctx - len(choice.tokens) + 1
        job.answer = Answer(request, prompt, Limits(room, request.max_tokens, request.thinking_budget),
                            default_sampling(loaded.model, request), loaded.model.tokenizer, loaded.model.info, job.rules)
        job.tokens, job.slot = choice.tokens, choice.slot
        job.began = job.served = time.monotonic()
        held = choice.slot.session.tokens.tolist() if self._trace is not None and choice.slot.salt == job.salt else []
        job.n_cached = slots.take(choice, prompt.tokens, job.salt, request.hints)
        if self._trace is not None:
            self._trace.write({
                "api": request.protocol, "slot": choice.slot.index, "n_prompt": len(job.tokens), "n_held": len(held),
                "n_cached": job.n_cached, "n_replayed_turns": prompt.n_replayed,
                "difference": difference(held, job.tokens, loaded.model.tokenizer)})
        if choice.slot.session.since_checkpoint >= _WORTH_A_CHECKPOINT:
            choice.slot.checkpoint()
        self._running.append(job)

    def _exchanged(self, job: Job, choice: slots.Choice) -> slots.Choice:
        """Puts on disk what a slot is about to drop, and takes from there what is better than what it has."""
        slot, prompt = choice.slot, job.prompt.tokens
        if self._disk is None or any(each.is_streaming for each in self._running):
            return choice
        if choice.n_lost >= LEAST_TOKENS:
            slot.save(self._disk)
        found = self._disk.find(prompt, job.salt, choice.n_kept + _WORTH_LOADING) if job.request.reuse else None
        if found is None:
            return choice
        unit, n_kept = found
        is_loaded = self._disk.load(unit, slot.session)
        slot.salt = job.salt
        return slots.Choice(slot, list(prompt), n_kept if is_loaded else 0, 0)

    def _round(self) -> None:
        """A step for each stream, then one piece of a prompt."""
        streams = [job for job in self._running if job.is_streaming]
        began = time.monotonic()
        for together in self._steps(streams):
            if left := [job for job in together if not job.is_cancelled]:
                self._decode(left)
        reading = [job for job in self._running if job.n_left > 0 and not job.is_streaming]
        if not reading:
            return
        now = time.monotonic()
        job = min(reading, key=lambda each: each.n_left / (1.0 + now - each.served))
        is_alone = len(self._running) == 1 and not self._waiting
        self._attempt(job, lambda each: self._read(each, None if is_alone else _PATIENCE - (now - began)))

    def _attempt(self, job: Job, work: Callable[[Job], None]) -> None:
        if job.is_cancelled:
            return  # the next _collect() ends it
        try:
            work(job)
        except CancelledError:
            pass
        except Exception as error:
            self._fail(job, _as_request_error(error))

    def _steps(self, streams: list[Job]) -> list[list[Job]]:
        """The streams that take a step together, or each by itself."""
        assert self._loaded is not None
        if len(streams) > 1 and self._shares is None:
            self._shares = shares_steps(self._loaded.model)
        return [streams] if self._shares else [[job] for job in streams]

    def _decode(self, jobs: list[Job]) -> None:
        """A step for the next tokens of streams, and those that are expected behind them."""
        work: list[tuple[Session, list[int]]] = []
        for job in jobs:
            assert job.slot is not None and job.answer is not None and job.answer.next_token is not None
            work.append((job.slot.session, [job.answer.next_token, *job.answer.expected]))
        results: Sequence[FloatArray | BaseException | None]
        try:
            results = evaluate(work, "all")
        except Exception as error:
            if len(jobs) > 1 and isinstance(error, Error):  # nothing has been evaluated: each may have its own
                for job in jobs:
                    self._decode([job])
                return
            results = [error] * len(jobs)
        for job, (session, run), result in zip(jobs, work, results, strict=True):
            if isinstance(result, np.ndarray) and job.answer is not None and job.answer.left_out:
                session.hide_last()
            self._attempt(job, partial(self._go_on, run=run, result=result))

    def _go_on(self, job: Job, run: list[int], result: FloatArray | BaseException | None) -> None:
        """Takes the logits behind each token of a run, as long as the next one is the one that is picked."""
        if isinstance(result, BaseException):
            raise result
        assert result is not None
        for n, logits in enumerate(result, 1):
            if not self._take(job, logits, run[n:]):
                break

    def _take(self, job: Job, logits: FloatArray, ahead: Sequence[int] = ()) -> bool:
        """Picks a token. ahead: those evaluated behind it already, which are dropped where it is not the first of them;
        whether it is."""
        answer = job.answer
        assert answer is not None and job.slot is not None
        now = time.monotonic()
        if job.last_token:
            self.metrics.between_tokens(now - job.last_token)
        else:
            job.first_token = now
            self.metrics.first_token(now - job.asked)
        job.last_token = self._last_progress = now
        told = answer.take(logits)
        agrees = bool(ahead) and answer.next_token == ahead[0] and not answer.left_out
        if ahead and not agrees:
            job.slot.session.rollback(len(ahead))
        for event in told:
            job.tell(event)
        if answer.end is not None:
            self._finish(job)
        return agrees

    def _read(self, job: Job, seconds: float | None) -> None:
        """Evaluates the next piece of a prompt, of about so many seconds; None: as much as one step can take."""
        assert job.slot is not None and self._loaded is not None
        session, position = job.slot.session, job.slot.session.position
        most = self._loaded.chunk if seconds is None else self._fitting_chunk(seconds)
        end = min(len(job.tokens), position + most)
        marks = [mark for mark in self._marks(job) if position < mark < end]
        end = min(marks, default=end)
        cancellation = Cancellation()
        began = time.monotonic()
        expected = began + (end - position) / self._rate if self._rate else began + 3600.0
        with self._lock:
            self._reading = (job, cancellation, expected if seconds is None else began)
        try:
            (logits,) = evaluate([(session, job.tokens[position:end])], "last", cancellation)
            assert isinstance(logits, np.ndarray)
        finally:
            with self._lock:
                self._reading = None
        self._learn(end - position, time.monotonic() - began)
        job.served = self._last_progress = time.monotonic()
        self.metrics.read(end - position, job.served - began)
        if end in self._marks(job):
            job.slot.checkpoint()
            if end == job.prompt.system_end and self._disk is not None and len(self._running) == 1:
                self._disk.save(session, job.salt)  # other conversations begin like this
        if end < len(job.tokens):
            job.tell(events.Progress(len(job.tokens), job.n_cached, end, job.served - job.began))
        else:
            job.slot.checkpoint()
            self._take(job, logits)

    def _marks(self, job: Job) -> list[int]:
        """Where a prompt is worth a checkpoint on the way."""
        marks = list(range(_CHECKPOINT_EVERY, len(job.tokens), _CHECKPOINT_EVERY))
        if job.prompt.system_end >= _WORTH_A_CHECKPOINT and job.tokens == job.prompt.tokens:
            marks.append(job.prompt.system_end)
        return marks

    def _fitting_chunk(self, seconds: float) -> int:
        assert self._loaded is not None
        share = max(0.0, seconds) / _PATIENCE
        return max(min(_LEAST_CHUNK, self._loaded.chunk), min(self._loaded.chunk, int(self._chunk * share)))

    def _learn(self, n: int, seconds: float) -> None:
        """Adapts the chunk to what one of n tokens took."""
        seconds = max(seconds, 1e-6)
        self._rate = n / seconds if n >= 64 or not self._rate else self._rate
        if n * 2 >= self._chunk or seconds > _PATIENCE:  # a step has a part that every length costs: short ones tell little
            self._chunk = max(1, int(min(n * _PATIENCE / seconds, 2 * n)))

    def _finish(self, job: Job) -> None:
        answer = job.answer
        assert answer is not None and answer.end is not None
        turn = answer.turn
        if turn is not None:
            self.turns.add(job.salt, job.turn_id, turn, answer.call_ids, job.prompt.chain)
        last = answer.finish(job.usage)
        self._end(job, answer.end)  # before it is told: whoever hears of it finds everything done
        for event in last:
            job.tell(event)

    def _fail(self, job: Job, error: RequestError) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
        self._end(job, "failed")
        job.tell(events.Failed(error))

    def _end(self, job: Job, how: str) -> None:
        """Lets go of a job's slot. What it holds stays."""
        if job in self._running:
            self._running.remove(job)
        if job.slot is not None:
            slots.release(job.slot)
        self._may_admit = True
        with self._lock:
            self._n_open -= 1
        self.metrics.ended(job, how)
        usage = job.usage
        _log.info("%s: %s, prompt %d (%d cached), generated %d, first token %.2f s, %.2f tokens/s%s", job.request.protocol,
                  how, usage.n_prompt, usage.n_cached, usage.n_generated, usage.prompt_seconds,
                  (usage.n_generated - 1) / usage.generate_seconds if usage.generate_seconds else 0.0,
                  f"; {'; '.join(job.answer.problems)}" if job.answer and job.answer.problems else "")


def _loading() -> RequestError:
    return RequestError("Loading model: send the request again in a moment", code="loading", retry_after=2)


def _shutting_down() -> RequestError:
    return RequestError("the server is shutting down: send the request to another one", code="shutting_down", retry_after=10)


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, (MemoryLimitError, MemoryError)):
        return RequestError(f"{error or 'out of memory'}; start the server with a smaller context or fewer slots",
                            code="out_of_memory", retry_after=10)
    if isinstance(error, ArgumentError):
        return RequestError(str(error))
    if not isinstance(error, Error):
        _log.exception("unforeseen")
    return RequestError(f"the answer broke off: {error}", code="generation_failed")
