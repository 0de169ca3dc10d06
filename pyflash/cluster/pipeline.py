"""The stages of a model on their machines, from the driver's side: opening, calling, watching, and opening again."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from pyflash.cluster.identity import FileDirectory, FileIdentity
from pyflash.cluster.layout import StagePlace, another_node, in_common
from pyflash.cluster.messages import Outcome, Pulse, StageFacts
from pyflash.cluster.provide import Progress, Provider
from pyflash.cluster.ray_runtime import Connection
from pyflash.cluster.stage_actor import MOST_CALLS, StageActor
from pyflash.engine.stages import whole_info
from pyflash.native.errors import ClosedError, DeviceError, UnsupportedError
from pyflash.native.library import __version__, lib

MOST_TRIES: Final = 5
_TURN_SECONDS: Final = 0.2  # after which a conversation that waits for its turn looks whether it is cancelled
_OPENING_SECONDS: Final = 600.0  # that a stage may take to open its layers


_SEE_MEMORY: Final = "see whether its machine has memory for it: pyflash cluster plan tells what a stage takes"


class StageDied(DeviceError):
    """A stage's process ended, or its machine did, while it was opened."""


class StageLost(Exception):
    """A stage is gone or silent; all sessions' parts in all stages are to be made again. epoch: that was lost."""

    def __init__(self, epoch: int, why: str) -> None:
        super().__init__(why)
        self.epoch = epoch


@dataclass(frozen=True)
class Stage:
    """A stage that is open. actor: Ray's handle."""

    actor: Any
    place: StagePlace
    facts: StageFacts


Mail = queue.SimpleQueue[str]  # what wakes a waiting call: "done", "asked" or "lost"


class Pipeline:
    """The stages of a model. For any thread.

    epoch: counts how often the stages have begun anew; messages of an earlier one are void. listeners: are called with a line
    when a stage is lost, and when it is back. short: " (HOST has run out of memory)" where that is known of what was lost since
    something was last done, else "".
    """

    def __init__(self, connection: Connection, path: str, places: Sequence[StagePlace], options: dict[str, Any],
                 stage_timeout: float, tell: Callable[[str], None], progress: Progress | None = None) -> None:
        """options: of Model.open(). stage_timeout: seconds within which whoever waits is told that a stage is silent, and so lost.
        progress: as of Provider."""
        self._connection = connection
        self._ray = connection.ray
        self._options = options
        directory = FileDirectory(path)
        self._with_files = Provider(connection, path, directory, progress)
        self._files = [directory.identity(place.layers) for place in places]  # that the stages are to have
        self._is_whole = directory.is_whole
        self._timeout = stage_timeout
        self._silence = stage_timeout * 2 / 3  # so that users hear of it before they have waited for stage_timeout
        self.listeners = [tell]
        self.epoch = 0
        self.new_key: Final = itertools.count().__next__  # of a step
        self.new_number: Final = itertools.count().__next__  # of a session
        self._begin_lock = threading.Lock()  # held while the stages begin anew
        self._lock = threading.Lock()  # of what follows, held briefly
        self._boxes: list[Mail] = []  # of the calls that wait just now
        self._lost: str | None = None  # why, in this epoch
        self._failure: DeviceError | None = None  # for good
        self._head_seen = time.monotonic()
        self._tries = 0  # to begin anew since something was last computed
        self.short = ""
        self._heard: list[float] = []  # when each stage was heard of
        self._moved = (0.0, -1)  # when something was last done, and how much there was then
        self._drafts = False  # whether the last stage has been prepared for them
        self._turns = threading.Condition()
        self._again: list[tuple[int, int]] = []  # conversations to evaluate again, in their order, and their tokens
        self._rate = 0.0  # tokens a second of prompts, as last measured
        self._closing = threading.Event()
        self.stages: list[Stage] = []
        try:
            self.stages = self._opened(list(enumerate(places)))
            self.info: Final = whole_info([stage.facts.info for stage in self.stages])
            self._connect()
        except BaseException:
            self._kill(self.stages)
            raise
        threading.Thread(target=self._feel_pulses, name="pyflash pulse", daemon=True).start()

    # -- opening --

    def _new_actor(self, node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return self._ray.remote(StageActor).options(
            num_cpus=0, max_concurrency=MOST_CALLS, max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()  # fmt: skip

    def _opened(self, places: Sequence[tuple[int, StagePlace]]) -> list[Stage]:
        """New stages, side by side, by their numbers. All compute by one kernel set."""
        found = self._with_files([place for _, place in places])
        places = [(at, place) for (at, _), place in zip(places, found, strict=True)]
        actors = [self._new_actor(place.node) for _, place in places]
        try:
            facts = self._open_all(actors, places, self._options)
            if self._options.get("isa") is None and len({each.info.cpu_isa for each in facts}) > 1:
                self._options = {**self._options, "isa": common_kernels([each.kernels for each in facts])}
                facts = self._open_all(actors, places, self._options)
            for (at, _), each in zip(places, facts, strict=True):
                check_alike(each, self._files[at], self._is_whole)
        except BaseException:
            for actor in actors:
                self._ray.kill(actor)
            raise
        return [Stage(actor, place, fact) for actor, (_, place), fact in zip(actors, places, facts, strict=True)]

    def _open_all(self, actors: Sequence[Any], places: Sequence[tuple[int, StagePlace]],
                  options: dict[str, Any]) -> list[StageFacts]:
        refs = [actor.open.remote(at, place.file, place.layers, options)
                for actor, (at, place) in zip(actors, places, strict=True)]  # fmt: skip
        return [self._got(ref, _OPENING_SECONDS) for ref in refs]

    def _got(self, ref: Any, seconds: float) -> Any:
        """An Outcome's value. DeviceError where a stage does not answer."""
        try:
            outcome: Outcome = self._ray.get(ref, timeout=seconds)
        except self._ray.exceptions.GetTimeoutError as error:
            raise DeviceError(f"a stage has not answered for {seconds:.0f} s") from error
        except self._ray.exceptions.RayError as error:
            raise StageDied(f"a stage cannot be started: {first_line(error)}", _SEE_MEMORY) from error
        return outcome.unwrap()

    def _connect(self) -> None:
        """Tells every stage which one follows, and begins an epoch in it."""
        following = [*(stage.actor for stage in self.stages[1:]), None]
        refs = [stage.actor.connect.remote(self.epoch, each) for stage, each in zip(self.stages, following, strict=True)]
        for ref in refs:
            self._got(ref, self._timeout)
        epoch = self.epoch
        for at, stage in enumerate(self.stages):

            def heard(why: Any, at: int = at) -> None:
                self._lose(epoch, self._told(at, why))

            self._then(stage.actor.watch.remote(epoch), heard)
        self._heard = [time.monotonic()] * len(self.stages)

    def _told(self, at: int, why: Any) -> str:
        stage = self.stages[at]
        reason = first_line(why) if isinstance(why, Exception) else str(why)
        return f"{self.name_of(at)} on {stage.facts.host}: {reason}"

    def tell(self, line: str) -> None:
        for hear in self.listeners:
            hear(line)

    def name_of(self, at: int) -> str:
        first, end = self.stages[at].place.layers
        return f"stage {at + 1} of {len(self.stages)} (layers {first} to {end - 1})"

    # -- calling --

    def _then(self, ref: Any, act: Callable[[Any], None]) -> None:
        """Calls act with what a call gives, or Ray's exception; on a thread of Ray's."""

        def done(future: Future[Any]) -> None:
            error = future.exception()
            act(error if error is not None else future.result())

        ref.future().add_done_callback(done)

    def check(self, epoch: int) -> None:
        """StageLost where that epoch is over; ClosedError."""
        if self._closing.is_set():
            raise ClosedError("the model has been closed")
        if self._failure is not None:
            raise self._failure
        if epoch != self.epoch or self._lost is not None:
            raise StageLost(epoch, self._lost or "the stages have begun anew")

    def note_done(self) -> None:
        """Something that was asked for has been done: the stages work."""
        self._tries, self.short = 0, ""

    def _lose(self, epoch: int, why: str) -> None:
        with self._lock:
            if epoch == self.epoch and self._lost is None:
                self._lost = why
                for mail in self._boxes:
                    mail.put("lost")

    def wait(self, refs: Sequence[Any], epoch: int, mail: Mail, asked: Callable[[], None]) -> list[Any]:
        """What calls give. asked: is called when the mail says so. StageLost, ClosedError."""
        found: dict[int, Any] = {}
        for i, ref in enumerate(refs):

            def done(value: Any, i: int = i) -> None:
                found[i] = value
                mail.put("done")

            self._then(ref, done)
        with self._lock:
            if not self._boxes:  # nobody has looked since
                self._head_seen = time.monotonic()
                self._heard, self._moved = [time.monotonic()] * len(self.stages), (time.monotonic(), -1)
            self._boxes.append(mail)
        try:
            while True:
                self.check(epoch)
                for value in list(found.values()):
                    if isinstance(value, Exception):
                        self._lose(epoch, first_line(value))
                        raise StageLost(epoch, self._lost or "")
                if len(found) == len(refs):
                    return [found[i] for i in range(len(refs))]
                if mail.get() == "asked":
                    asked()
        finally:
            with self._lock:
                self._boxes.remove(mail)

    def prepare_drafts(self) -> None:
        """Model.prepare_drafts() of the stage that drafts, now and whenever that is started again."""
        with self._begin_lock:
            if not self._drafts:
                self._got(self.stages[-1].actor.prepare_drafts.remote(), _OPENING_SECONDS)
                self._drafts = True

    # -- evaluating again --

    def note_rate(self, n_tokens: int, seconds: float) -> None:
        """So many tokens of a prompt took so long."""
        if seconds > 0:
            self._rate = n_tokens / seconds

    @contextlib.contextmanager
    def evaluating_again(self, n_tokens: int, check: Callable[[], None]) -> Iterator[None]:
        """A conversation's turn to be evaluated again, one after the other; what is before it, and for how long, is told.
        check: is called while it waits."""
        own = (self.new_key(), n_tokens)
        with self._turns:
            self._again.append(own)
            before, tokens = len(self._again) - 1, sum(n for _, n in self._again)
        first = f", {before} others first" if before else ""
        about = f", about {tokens / self._rate:.0f} s" if self._rate else ""
        self.tell(f"a conversation of {n_tokens} tokens is evaluated again{first}{about}")
        try:
            with self._turns:
                while self._again[0] is not own:
                    self._turns.wait(_TURN_SECONDS)
                    check()
            yield
        finally:
            with self._turns:
                self._again.remove(own)
                self._turns.notify_all()

    # -- watching --

    def _feel_pulses(self) -> None:
        """Asks the stages whether they live, as long as somebody waits for them."""
        interval = self._timeout / 12
        while not self._closing.wait(interval):
            with self._lock:
                epoch, is_needed = self.epoch, bool(self._boxes) and self._lost is None
            if not is_needed:
                continue
            pulses: dict[int, Pulse] = {}
            for at, stage in enumerate(self.stages):

                def felt(pulse: Any, at: int = at) -> None:
                    if isinstance(pulse, Pulse):
                        pulses[at] = pulse
                        self._heard[at] = time.monotonic()

                self._then(stage.actor.pulse.remote(), felt)
            if self._closing.wait(interval):
                return
            if self._closing.is_set() or self._is_head_gone():
                return
            now = time.monotonic()
            for at, heard in enumerate(self._heard):
                if now - heard > self._silence:
                    self._lose(epoch, self._told(at, f"silent for {now - heard:.0f} s"))
            self._note_progress(epoch, now, pulses)

    def _is_head_gone(self) -> bool:
        """Whether the cluster's head is, for as long as a stage may be silent: Ray ends this process some time after that."""
        why = self._connection.head_problem(self._timeout / 6)
        if not why:
            self._head_seen = time.monotonic()
        elif time.monotonic() - self._head_seen > self._silence:
            with self._lock:
                self._failure = DeviceError(f"the Ray cluster's head at {self._connection.head} is gone ({why})",
                                            "start the cluster and this again")
                for mail in self._boxes:
                    mail.put("lost")
        return self._failure is not None

    def _note_progress(self, epoch: int, now: float, pulses: dict[int, Pulse]) -> None:
        """A step that no stage computes, and that never comes out, has been lost on the way."""
        n_done = sum(pulse.n_done for pulse in pulses.values())
        if n_done != self._moved[1] or any(pulse.is_busy for pulse in pulses.values()) or len(pulses) < len(self.stages):
            self._moved = (now, n_done)
        elif now - self._moved[0] > self._silence:
            self._lose(epoch, f"a step was lost between two stages: nothing has moved for {now - self._moved[0]:.0f} s")

    def begin_anew(self, lost: StageLost) -> None:
        """Makes the stages whole again: those that are gone are started, on another machine where theirs is gone. All begin
        without sessions. DeviceError where that cannot be done."""
        with self._begin_lock:
            if lost.epoch != self.epoch:
                return  # another session has seen to it
            why = str(lost)
            while why:
                self._note_try(why)
                try:
                    self._start_again(why)
                    why = ""
                except StageDied as died:
                    why = died.what

    def _note_try(self, why: str) -> None:
        """DeviceError where there have been too many, or the head is gone."""
        if problem := self._connection.head_problem(self._timeout / 6):
            self._failure = DeviceError(f"the Ray cluster's head at {self._connection.head} is gone ({problem}), and {why}",
                                        "start the cluster and this again")
            raise self._failure
        self._tries += 1
        if self._tries > MOST_TRIES:
            self._tries = 0
            raise DeviceError(f"the stages were started {MOST_TRIES} times, and each time lost before a step was done{self.short}; "
                              f"the last time: {why}", _SEE_MEMORY)  # fmt: skip

    def _start_again(self, why: str) -> None:
        began = time.monotonic()
        gone = self._gone()
        names = ", ".join(f"{self.name_of(at)} on {self.stages[at].facts.host}" for at in gone) or "a message"
        self.tell(f"{names} is lost ({why}): it is started again, and conversations are evaluated again as they go on")
        for at in gone:
            self._kill([self.stages[at]])
        nodes = self._reachable({self.stages[at].place.node for at, is_silent in gone.items() if is_silent})
        used = [stage.place.node for at, stage in enumerate(self.stages) if at not in gone]
        places = []
        for at in gone:
            place = self.stages[at].place
            places.append((at, StagePlace(place.layers, another_node(place.node, nodes, used))))
            used.append(places[-1][1].node)
        for at, stage in zip(gone, self._opened(places), strict=True):
            before, self.stages[at] = self.stages[at].facts, stage
            if before.node == stage.facts.node and before.memory_kills < stage.facts.memory_kills:
                self.short = f" ({stage.facts.host} has run out of memory)"
        with self._lock:
            self.epoch += 1
            self._lost = None
        self._connect()
        if self._drafts and len(self.stages) - 1 in gone:
            self._got(self.stages[-1].actor.prepare_drafts.remote(), _OPENING_SECONDS)
        self.tell(f"all {len(self.stages)} stages are there again, after {time.monotonic() - began:.1f} s{self.short}")

    def _reachable(self, silent: set[str]) -> list[dict[str, Any]]:
        """The machines, without those of silent stages if there are others: Ray takes a machine that is cut off to be there
        for up to a minute."""
        nodes = self._connection.nodes()
        return [node for node in nodes if node["NodeID"] not in silent] or nodes

    def _gone(self) -> dict[int, bool]:
        """The stages that do not answer, and whether they are silent, rather than known to be dead."""
        refs = [stage.actor.pulse.remote() for stage in self.stages]
        ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=self._timeout / 6)
        gone = {}
        for at, ref in enumerate(refs):
            if ref not in ready:
                gone[at] = True
                continue
            try:
                self._ray.get(ref)
            except self._ray.exceptions.RayError:
                gone[at] = False
        return gone

    def _kill(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            with contextlib.suppress(Exception):  # it is gone already, or Ray is
                self._ray.kill(stage.actor)

    @property
    def is_closed(self) -> bool:
        return self._closing.is_set()

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            for mail in self._boxes:
                mail.put("lost")
        self._kill(self.stages)


def first_line(error: Exception) -> str:
    """What Ray says of an error, which has many lines, in one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]:.160}" if lines else type(error).__name__


def common_kernels(sets: Sequence[Sequence[str]]) -> str:
    """The best kernel set that all machines have; each has its own listed best first."""
    found = in_common(sets)
    if not found:
        raise UnsupportedError("the machines have no kernel set in common: use machines of one kind")
    return found[0]


def check_alike(facts: StageFacts, file: FileIdentity, is_whole: bool) -> None:
    """UnsupportedError where a stage has another version or file than this process: it would give other bits, or none.
    is_whole: whether this machine has all of the file, and not only what comes before the weights."""
    arithmetic = int(lib.PF_ARITHMETIC_VERSION)
    for what, here, there in (("version of pyflash", __version__, facts.version),
                              ("version of the arithmetic", str(arithmetic), str(facts.arithmetic))):  # fmt: skip
        if here != there:
            raise UnsupportedError(f"{facts.host} has another {what}, {there}, than here, {here}",
                                   "install the same everywhere")
    if facts.file.directory != file.directory or (is_whole and facts.file.samples != file.samples):
        raise UnsupportedError(f"{facts.host} has another file of this name than here", "copy the same to all machines")
