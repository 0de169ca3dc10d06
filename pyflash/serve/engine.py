"""The engine: one thread that owns a model and its sessions, and shares their time out among the requests."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
from pyflash.native.errors import ArgumentError, CancelledError, ClosedError, Error, UnsupportedError
from pyflash.native.values import FloatArray
from pyflash.serve import errors, events, slots
from pyflash.serve.answer import Answer, Limits
from pyflash.serve.disk_cache import DiskCache
from pyflash.serve.drafting import Drafting, check_draft
from pyflash.serve.errors import RequestError
from pyflash.serve.job import Job
from pyflash.serve.keeping import Keeping
from pyflash.serve.metrics import Metrics
from pyflash.serve.pacing import PATIENCE, Pacing
from pyflash.serve.prompts import Prompts
from pyflash.serve.reading import Reading
from pyflash.serve.request import Request
from pyflash.serve.tool_grammar import ToolGrammars
from pyflash.serve.trace import Trace, difference, role_of_difference
from pyflash.serve.turns import TurnStore

_log = logging.getLogger("pyflash.serve")

_CHECKPOINT_EVERY = 8192  # tokens of a long prompt
_WORTH_A_CHECKPOINT = 256
_WAKING = 60.0  # seconds that requests wait for a model that was let go; then they are told to come again

_AGENTS_TOP_P = {"0731": 0.95}  # by release

State = Literal["loading", "ready", "idle", "waking", "failed", "closed"]


@dataclass(frozen=True)
class EngineOptions:
    """context: of each session in tokens, None for the model's default. cache_type: of sessions. parallel: how many
    sessions; None for two where memory has room for them. queue_limit: requests that wait at most. think: the thinking
    mode of requests that name none. idle_unload: seconds without a request after which the model is let go; None: never. draft,
    draft_max: as in Session.generate()."""

    context: int | None = None
    cache_type: str = "auto"
    parallel: int | None = None
    checkpoints: int = 12
    queue_limit: int = 32
    think: str = "high"
    idle_unload: float | None = None
    draft: str = "auto"
    draft_max: int | None = None


@dataclass(frozen=True)
class Loaded:
    """A model that is ready, and what is the same for all requests to it."""

    model: Model
    slots: list[slots.Slot]
    prompts: Prompts
    tools: ToolGrammars
    drafting: Drafting
    n_ctx: int
    pacing: Pacing


Work = Sequence[tuple[Session, list[int]]]


def evaluate(work: Work, logits: Literal["last", "all"], cancellation: Cancellation | None = None
             ) -> Sequence[FloatArray | BaseException | None]:
    """The tokens of sessions through the model together: float32 [vocab] behind all of them, or [n, vocab] behind each, of
    each session, or its error where there are several. With "all" a session goes on with the first token only, and the
    others are evaluated ahead: see Session.eval_ahead(). cancellation: of one session alone."""
    if logits == "last":
        return [session.eval(tokens, cancellation=cancellation) for session, tokens in work]
    if len(work) == 1:
        session, tokens = work[0]
        return [session.eval_ahead(tokens, cancellation=cancellation)]
    results = eval_many(work, logits, keep=False, return_errors=True)
    for (session, _), result in zip(work, results, strict=True):
        if isinstance(result, np.ndarray):
            session.keep(1)
    return results


def shares_steps(model: Model) -> bool:
    """Whether a step of several sessions is quicker than one after the other; known once a step has been taken.

    Each session chooses experts of its own, so that there is nothing to gain where those come from a disk. Stages work on
    several sessions at once."""
    if model.n_stages > 1:
        return True
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
        self._keeping = Keeping(disk, turns)
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
        self._last_progress = 0.0  # when something was evaluated last
        self._thread = threading.Thread(target=self._run, name="pyflash engine", daemon=True)

    # -- from any thread --

    def start(self) -> None:
        self._thread.start()

    @property
    def is_healthy(self) -> bool:
        """Whether requests are answered."""
        return self.state in ("ready", "idle", "waking") and not self.is_draining

    @property
    def loaded(self) -> Loaded | None:
        """What is loaded just now; None before, and while it is let go."""
        return self._loaded

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
            check_draft(request, loaded.model)
            opening = prompt.opening
            rules = AnswerRules() if opening is None else loaded.tools.rules(request, prompt.begun, opening)
            turn_id = self.turns.new_id()
            return Job(request, prompt, rules, salt, turn_id, self.turns.signature(salt, turn_id))
        except ClosedError:
            raise errors.loading() from None
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
            raise errors.shutting_down()
        if self.state in ("idle", "waking"):
            self._orders.put(None)
            self._is_ready.wait(_WAKING)
        loaded = self._loaded
        if loaded is None:
            raise errors.loading()
        return loaded

    def submit(self, job: Job, tell: Callable[[events.Event], None]) -> None:
        """Queues a job, whose events go to tell from now on. RequestError where there is no place for it."""
        job.tell = tell
        with self._lock:
            if self.is_draining:
                raise errors.shutting_down()
            n_slots = len(self._loaded.slots) if self._loaded else 1
            if self._n_open >= self.options.queue_limit + n_slots:
                raise RequestError(
                    f"{self._n_open} requests are being answered or wait: send it again later, or start the server with a "
                    "longer queue", code="queue_full", retry_after=max(1.0, min(60.0, self.metrics.typical_seconds())))
            self._n_open += 1
            reading = self._reading
            if reading is not None and reading[2] - time.monotonic() > PATIENCE:
                reading[1].request()  # it was alone, and so has a long chunk: what comes now may be short
            for on_its_way in [each.reading for each in [*self._running]]:
                if on_its_way is not None and on_its_way.seconds_in_front > PATIENCE:
                    on_its_way.cancel()  # likewise, in stages
            self._orders.put(job)

    def cancel(self, job: Job) -> None:
        """Ends a job, if it has not ended, without a further event. What was evaluated stays for the next one."""
        job.is_cancelled = True
        if (reading := job.reading) is not None:
            reading.cancel()
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
                job.why_cancelled = "shutdown"
                self.cancel(job)
            self._thread.join(10)
        return not self._thread.is_alive()

    def waiting_and_running(self) -> tuple[int, int]:
        return len(self._waiting) + self._orders.qsize(), len(self._running)

    @property
    def stalled_seconds(self) -> float:
        """How long requests have waited without anything being evaluated; 0 where there are none."""
        asked = [job.asked for job in (*self._waiting, *self._running)]
        latest = max([self._last_progress, *(job.reading.latest for job in [*self._running] if job.reading is not None)])
        return max(0.0, time.monotonic() - max(latest, min(asked))) if asked else 0.0

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
            self._fail(job, errors.shutting_down())
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
        self._is_ready.set()

    def _opened(self, model: Model) -> Loaded:
        options = self.options
        model.listen(self._tell_all)
        first = model.session(options.context, cache=options.cache_type, checkpoints=options.checkpoints)
        n = options.parallel
        if n is None and model.n_stages:
            n = max(2, model.n_stages)  # so that every stage has something to do; what fits, the machines themselves know
        if n is None:
            fitting = self._fitting(model, first) if self._fitting else None
            n = 2 if fitting is None or fitting >= 2 else 1
        sessions = [first]
        while len(sessions) < n:
            sessions.append(model.session(options.context, cache=options.cache_type, checkpoints=options.checkpoints))
        self._keeping.open(model, first)
        prompts = Prompts(model.tokenizer, model.info, model.release, options.think, self.turns)
        return Loaded(model, [slots.Slot(i, each) for i, each in enumerate(sessions)], prompts,
                      ToolGrammars(model.tokenizer, model.info), Drafting(model, options.draft, options.draft_max),
                      first.capacity, Pacing(first.chunk))

    def _unload(self, state: State) -> None:
        self._is_ready.clear()
        self._keeping.close()
        loaded, self._loaded = self._loaded, None
        self.state = state
        if loaded is not None:
            for slot in loaded.slots:
                slot.session.close()
            loaded.model.close()

    def _collect(self) -> bool:
        """Takes the orders that there are; waits for one where there is nothing to do. False after an idle_unload's time."""
        is_idle = not (self._running or self._waiting)
        has_work = bool(self._waiting and self._may_admit) or any(
            job.reading is None or job.reading.is_over for job in self._running)
        wait = self.options.idle_unload if is_idle else None
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
            if job.reading is None or job.reading.is_over:
                self._end(job, "cancelled")
        return has_work or not is_idle

    def _collect_forever(self) -> None:
        order = self._orders.get()
        self.state = "waking"
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
                self._fail(job, errors.as_request_error(error))

    def _tell_place(self, job: Job, place: int) -> None:
        if job.queue_position != place:
            job.queue_position = place
            job.tell(events.Progress(len(job.tokens), 0, 0, time.monotonic() - job.asked, place))

    def _tell_all(self, notice: str) -> None:
        """Tells whoever waits what everybody waits for. On any thread."""
        for job in [*self._running, *self._waiting]:
            job.tell(events.Progress(len(job.tokens), job.n_cached, job.n_cached, time.monotonic() - job.asked, job.queue_position,
                                     notice))  # fmt: skip

    def _begin(self, job: Job, choice: slots.Choice) -> None:
        loaded = self._loaded
        assert loaded is not None
        request, prompt = job.request, job.prompt
        is_on_disk = self._keeping.has_better(job, choice.n_kept)
        if is_on_disk:
            choice = slots.measured(choice.slot, prompt.tokens, job.salt, aligned=False)
        room = loaded.n_ctx - len(choice.tokens) + 1
        job.answer = Answer(request, prompt, Limits(room, request.max_tokens, request.thinking_budget),
                            default_sampling(loaded.model, request), loaded.model.tokenizer, loaded.model.info, job.rules)
        job.tokens, job.slot = choice.tokens, choice.slot
        job.began = job.served = time.monotonic()
        held = choice.slot.session.tokens if choice.slot.salt == job.salt else np.empty(0, np.int32)
        job.first_difference = role_of_difference(held, job.tokens, loaded.model.tokenizer)
        job.n_cached = slots.take(choice, prompt.tokens, job.salt, request.hints)
        job.drafts = loaded.drafting.begin(request, choice.slot.session, job.salt)
        if self._trace is not None:
            self._trace.write({
                "api": request.protocol, "slot": choice.slot.index, "n_prompt": len(job.tokens), "n_held": len(held),
                "n_cached": job.n_cached, "n_replayed_turns": prompt.n_replayed,
                "difference": difference(held, job.tokens, loaded.model.tokenizer)})
        if choice.slot.session.since_checkpoint >= _WORTH_A_CHECKPOINT:
            choice.slot.checkpoint()
        if is_on_disk:
            job.restoring = self._keeping.restoring(job)
        self._running.append(job)

    def _round(self) -> None:
        """A step for each stream, then one piece of a prompt."""
        streams = [job for job in self._running if job.is_streaming]
        began = time.monotonic()
        for together in self._steps(streams):
            if left := [job for job in together if not job.is_cancelled]:
                self._decode(left)
        for job in [job for job in self._running if job.reading is not None and job.reading.is_over]:
            self._attempt(job, self._has_read)
        reading = [job for job in self._running if job.reading is None and job.n_left > 0 and not job.is_streaming]
        if self._loaded is not None and self._loaded.model.n_stages > 1:
            for job in [each for each in reading if each.restoring is None and not each.is_cancelled]:
                self._read_in_stages(job, self._loaded)
                reading.remove(job)
        if not reading:
            return
        now = time.monotonic()
        job = min(reading, key=lambda each: 0.0 if each.restoring else each.n_left / (1.0 + now - each.served))
        is_alone = len(self._running) == 1 and not self._waiting
        self._attempt(job, lambda each: self._read(each, None if is_alone else PATIENCE - (now - began)))

    def _attempt(self, job: Job, work: Callable[[Job], None]) -> None:
        if job.is_cancelled:
            return  # the next _collect() ends it
        try:
            work(job)
        except CancelledError:
            pass
        except Exception as error:
            self._fail(job, errors.as_request_error(error))

    def _steps(self, streams: list[Job]) -> list[list[Job]]:
        """The streams that take a step together, or each by itself."""
        assert self._loaded is not None
        if len(streams) > 1 and self._shares is None:
            self._shares = shares_steps(self._loaded.model)
        return [streams] if self._shares else [[job] for job in streams]

    def _decode(self, jobs: list[Job]) -> None:
        """A step for the next tokens of streams, and those that are drafted behind them."""
        assert self._loaded is not None
        drafting = self._loaded.drafting
        runs = drafting.runs([(job.drafts, job.answer) for job in jobs if job.drafts and job.answer])
        work = [(job.slot.session, run) for job, run in zip(jobs, runs, strict=True) if job.slot]
        results: Sequence[FloatArray | BaseException | None]
        began = time.perf_counter()
        try:
            results = evaluate(work, "all")
        except Exception as error:
            if len(jobs) > 1 and isinstance(error, Error):  # nothing has been evaluated: each may have its own
                for job in jobs:
                    self._decode([job])
                return
            results = [error] * len(jobs)
        drafting.took(sum(map(len, runs)), time.perf_counter() - began)
        for job, (session, run), result in zip(jobs, work, results, strict=True):
            if isinstance(result, np.ndarray) and job.answer is not None and job.answer.left_out:
                session.hide_last()
            self._attempt(job, partial(self._go_on, run=run, result=result))

    def _go_on(self, job: Job, run: list[int], result: FloatArray | BaseException | None) -> None:
        """Takes the logits behind each token of a run, as long as the next one is the one that is picked."""
        assert job.drafts is not None and job.slot is not None
        if isinstance(result, Error) and len(run) > 1 and not isinstance(result, CancelledError):
            run = run[:1]  # what fails because of drafts must not be heard of
            (result,) = evaluate([(job.slot.session, run)], "all")
        if isinstance(result, BaseException):
            raise result
        assert result is not None
        job.drafts.stats.n_drafted += len(run) - 1
        for n, logits in enumerate(result, 1):
            if not self._take(job, logits, run[n:]):
                break

    def _take(self, job: Job, logits: FloatArray, ahead: Sequence[int] = ()) -> bool:
        """Picks a token. ahead: those that are evaluated ahead; whether it is the first of them, with which the session then
        goes on."""
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
        if answer.next_token is not None and job.drafts is not None:
            job.drafts.picked(answer.next_token)
        agrees = bool(ahead) and answer.next_token == ahead[0] and not answer.left_out and job.slot.session.advance()
        if agrees and job.drafts is not None:
            job.drafts.stats.n_kept += 1
        for event in told:
            job.tell(event)
        if answer.end is not None:
            self._finish(job)
        return agrees

    def _read(self, job: Job, seconds: float | None) -> None:
        """Evaluates the next piece of a prompt, of about so many seconds; None: as much as one step can take."""
        assert job.slot is not None and self._loaded is not None
        if job.restoring is not None:
            self._restore(job, job.restoring, PATIENCE if seconds is None else seconds)
            return
        session, position, pacing = job.slot.session, job.slot.session.position, self._loaded.pacing
        end = self._next_mark(job, min(len(job.tokens), position + pacing.chunk(seconds)))
        cancellation = Cancellation()
        began = time.monotonic()
        over = began if seconds is not None else began + pacing.seconds(end - position)
        with self._lock:
            self._reading = (job, cancellation, over)
        try:
            (logits,) = evaluate([(session, job.tokens[position:end])], "last", cancellation)
            assert isinstance(logits, np.ndarray)
        finally:
            with self._lock:
                self._reading = None
        job.served = self._last_progress = time.monotonic()
        pacing.learn(end - position, job.served - began)
        self._after_piece(job, end - position, end, job.served - began, logits)

    def _read_in_stages(self, job: Job, loaded: Loaded) -> None:
        """Sends a prompt on its way through the stages, to its end or to where it is worth a checkpoint."""

        def patience() -> float | None:
            n_reading = sum(each.reading is not None for each in [*self._running])
            is_alone = len(self._running) == 1 and not self._waiting
            return None if is_alone else PATIENCE / (loaded.model.n_stages + 1) / max(1, n_reading)

        job.reading = Reading(job, self._next_mark(job, len(job.tokens)), loaded.pacing, patience,
                              over=lambda: self._orders.put(None))  # fmt: skip

    def _has_read(self, job: Job) -> None:
        """When a prompt has gone as far as it was sent."""
        reading, job.reading = job.reading, None
        assert reading is not None
        logits = reading.result()
        job.served = self._last_progress = reading.latest
        self._after_piece(job, reading.end - reading.begin, reading.end, reading.seconds, logits)

    def _after_piece(self, job: Job, n: int, end: int, seconds: float, logits: FloatArray) -> None:
        """When n tokens of a job's prompt, those before end, have been evaluated."""
        assert job.slot is not None
        self.metrics.read(n, seconds)
        self._keeping.rows(job)
        if end in self._marks(job):
            job.slot.checkpoint()
            self._keeping.mark(job)
        if end < len(job.tokens):
            job.tell(events.Progress(len(job.tokens), job.n_cached, end, job.served - job.began))
        else:
            job.slot.checkpoint()
            self._take(job, logits)

    def _restore(self, job: Job, pieces: Iterator[None], seconds: float) -> None:
        """Reads from disk for so long, at least one piece."""
        assert job.slot is not None
        until = time.monotonic() + seconds
        for _ in pieces:
            if time.monotonic() >= until:
                return
        job.restoring = None
        n_kept = job.slot.session.reuse(job.tokens)
        job.n_cached, job.is_restored = n_kept, n_kept > job.n_cached
        job.slot.checkpoint()
        job.served = time.monotonic()

    def _next_mark(self, job: Job, end: int) -> int:
        """The first position of those that are worth a checkpoint, before end; else that."""
        return min((mark for mark in self._marks(job) if job.n_done < mark < end), default=end)

    def _marks(self, job: Job) -> list[int]:
        """Where a prompt is worth a checkpoint on the way."""
        marks = list(range(_CHECKPOINT_EVERY, len(job.tokens), _CHECKPOINT_EVERY))
        if job.prompt.system_end >= _WORTH_A_CHECKPOINT and job.tokens == job.prompt.tokens:
            marks.append(job.prompt.system_end)
        return marks

    def _finish(self, job: Job) -> None:
        answer = job.answer
        assert answer is not None and answer.end is not None
        turn = answer.turn
        if turn is not None:
            self.turns.add(job.salt, job.turn_id, turn, answer.call_ids, job.prompt.chain)
            self._keeping.turn(job)
        last = answer.finish(job.usage)
        self._end(job, answer.end)  # before it is told: whoever hears of it finds everything done

        def tell_last() -> None:
            for event in last:
                job.tell(event)

        self._keeping.when_kept(tell_last)

    def _fail(self, job: Job, error: RequestError) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
        self._end(job, "failed")
        job.tell(events.Failed(error))

    def _end(self, job: Job, how: str) -> None:
        """Lets go of a job's slot. What it holds stays."""
        if job.reading is not None:
            job.reading.cancel()
            with contextlib.suppress(BaseException):
                job.reading.result()
            job.reading = None
        if job in self._running:
            self._running.remove(job)
        if job.slot is not None:
            if self._loaded is not None and job.answer is not None:
                self._loaded.drafting.ended(job.salt, job.slot.session.tokens[len(job.tokens):])
            self._keeping.end(job)
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
