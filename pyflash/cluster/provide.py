"""Gives every stage its file: on each machine the file at the same path, a copy that is there, or one that is made now."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from gguf_export.errors import ConvertError
from gguf_export.reader import read_gguf
from pyflash.cluster.files import Found, Head, LocalSource, Piece, Tensor, fetch, locate
from pyflash.cluster.identity import FileDirectory, FileIdentity
from pyflash.cluster.layout import StagePlace
from pyflash.cluster.messages import Outcome
from pyflash.cluster.ray_runtime import Connection
from pyflash.engine.model import Model, ModelInfo
from pyflash.machine.layer_tensors import is_opened
from pyflash.native.errors import DeviceError, Error, FileError
from pyflash.native.values import StrPath

_AHEAD: Final = 4  # pieces that are on their way at once
_PATIENCE: Final = 60.0  # seconds that a machine has to start a process and look for the file

Progress = Callable[[int, int], None]


class FileServer:
    """An actor that reads a file of its machine for others."""

    def __init__(self, path: str) -> None:
        self._source = LocalSource(path)

    def heads(self) -> Sequence[Head]:
        return self._source.heads()

    def tensors(self) -> Sequence[Tensor]:
        return self._source.tensors()

    def read_piece(self, piece: Piece) -> bytes:
        return next(self._source.read([piece]))

    def digest(self, name: str) -> str:
        return self._source.digest(name)


class _RemoteSource:
    """The files.Source that a FileServer is."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def _got(self, ref: Any) -> Any:
        import ray

        try:
            return ray.get(ref)
        except ray.exceptions.RayError as error:
            raise DeviceError("the machine that the file is copied from is gone: open the model again, what is copied is kept"
                              ) from error

    def heads(self) -> Sequence[Head]:
        found: Sequence[Head] = self._got(self._server.heads.remote())
        return found

    def tensors(self) -> Sequence[Tensor]:
        found: Sequence[Tensor] = self._got(self._server.tensors.remote())
        return found

    def digest(self, name: str) -> str:
        return str(self._got(self._server.digest.remote(name)))

    def read(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
        waiting: deque[Any] = deque()
        for piece in pieces:
            waiting.append(self._server.read_piece.remote(piece))
            if len(waiting) > _AHEAD:
                yield self._got(waiting.popleft())
        while waiting:
            yield self._got(waiting.popleft())


class Fetcher:
    """An actor on a stage's machine that sees to its file. progress() answers meanwhile."""

    def __init__(self) -> None:
        self._done = (0, 0)

    def locate(self, path: str, identity: FileIdentity, layers: tuple[int, int]) -> Found:
        return locate(path, identity, layers)

    def fetch(self, server: Any, identity: FileIdentity, layers: tuple[int, int], names: Sequence[str]) -> Outcome:
        """Outcome of the copy's path."""

        def note(done: int, total: int) -> None:
            self._done = (done, total)

        try:
            return Outcome(str(fetch(_RemoteSource(server), identity.directory, layers, names, note)))
        except (Error, ConvertError) as error:
            return Outcome(error=error if isinstance(error, Error) else FileError(str(error)))

    def progress(self) -> tuple[int, int]:
        return self._done


class Provider:
    """Says where each stage's file is on its machine, having copied what is missing. This machine has it at the path.

    progress(done, total) gets bytes of all copies that are made at once.
    """

    def __init__(self, connection: Connection, path: StrPath, directory: FileDirectory,
                 progress: Progress | None = None) -> None:
        """directory: of the file at that path."""
        self._ray = connection.ray
        self._directory = directory
        self._own = self._ray.get_runtime_context().get_node_id()
        self._path = str(Path(path).absolute())
        self._progress = progress
        self._lock = threading.Lock()

    def __call__(self, places: Sequence[StagePlace]) -> list[StagePlace]:
        """The stages with their files. FileError where another file is in the way, or a copy fails; DeviceError where a machine
        does not answer."""
        elsewhere = [place for place in places if place.node != self._own]
        with self._lock:
            fetchers = [self._on(Fetcher, place.node).remote() for place in elsewhere]
            try:
                found = iter(self._paths(elsewhere, fetchers) if elsewhere else [])
            finally:
                for fetcher in fetchers:
                    self._ray.kill(fetcher)
        return [replace(place, file=self._path if place.node == self._own else next(found)) for place in places]

    def _on(self, kind: type, node: str) -> Any:
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        return self._ray.remote(kind).options(num_cpus=0, max_concurrency=4, scheduling_strategy=strategy)

    def _paths(self, places: Sequence[StagePlace], fetchers: Sequence[Any]) -> list[str]:
        identities = [self._directory.identity(place.layers) for place in places]
        if not self._directory.is_whole:
            identities = [replace(each, samples="") for each in identities]
        asked = [fetcher.locate.remote(self._path, identity, place.layers)
                 for fetcher, identity, place in zip(fetchers, identities, places, strict=True)]
        found: list[Found] = [self._got(ref, place) for ref, place in zip(asked, places, strict=True)]
        for each, place in zip(found, places, strict=True):
            if each.state == "other":
                raise FileError(f"{self._name(place)} has another file at {self._path}: remove or rename it there, so that the "
                                "right one is copied")
        absent = [i for i, each in enumerate(found) if each.path is None]
        if absent and not self._directory.is_whole:
            raise FileError(f"{self._name(places[absent[0]])} has no file at {self._path}, and this machine has only a part of "
                            "it: copy it there")
        copies = self._copied([(places[i], fetchers[i], identities[i]) for i in absent]) if absent else []
        made = dict(zip(absent, copies, strict=True))
        return [each.path or made[i] for i, each in enumerate(found)]

    def _copied(self, wanted: Sequence[tuple[StagePlace, Any, FileIdentity]]) -> list[str]:
        server = self._on(FileServer, self._own).remote(self._path)
        names = list(read_gguf(Path(self._path)).tensors)
        info = self._whole_info()
        try:
            refs = [fetcher.fetch.remote(server, identity, place.layers,
                                         [name for name in names if is_opened(name, info, place.layers)])
                    for place, fetcher, identity in wanted]
            self._watch(refs, [fetcher for _, fetcher, _ in wanted])
            return [str(self._got(ref, place, None).unwrap()) for ref, (place, _, _) in zip(refs, wanted, strict=True)]
        finally:
            self._ray.kill(server)

    def _whole_info(self) -> ModelInfo:
        """Of the last layer's stage, which knows what drafts."""
        with Model.open(self._path, "cpu", 1, layers=(0, 1)) as first:
            last = first.info.n_layer - 1
        with Model.open(self._path, "cpu", 1, layers=(last, last + 1)) as model:
            return model.info

    def _watch(self, refs: Sequence[Any], fetchers: Sequence[Any]) -> None:
        """Tells how far the copies are until all are done."""
        left = list(refs)
        while left:
            _, left = self._ray.wait(left, num_returns=len(left), timeout=0.5)
            if self._progress is not None and left:
                try:
                    each = self._ray.get([fetcher.progress.remote() for fetcher in fetchers])
                except self._ray.exceptions.RayError:
                    return  # whoever asks for the results is told
                self._progress(sum(done for done, _ in each), max(1, sum(total for _, total in each)))

    def _got(self, ref: Any, place: StagePlace, seconds: float | None = _PATIENCE) -> Any:
        try:
            return self._ray.get(ref, timeout=seconds)
        except self._ray.exceptions.RayError as error:
            raise DeviceError(f"{self._name(place)} cannot be asked for its file: {type(error).__name__}",
                              "pyflash cluster check tells what it lacks") from error

    def _name(self, place: StagePlace) -> str:
        nodes = {node["NodeID"]: node for node in self._ray.nodes()}
        return str(nodes.get(place.node, {}).get("NodeName") or place.node[:8])
