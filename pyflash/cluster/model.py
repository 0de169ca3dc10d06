"""A model in stages on several machines, with the API of pyflash.Model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from pyflash.cluster.layout import planned
from pyflash.cluster.pipeline import Pipeline
from pyflash.cluster.ray_runtime import Connection
from pyflash.cluster.session import Session
from pyflash.cluster.streams import PRECISIONS, Precision
from pyflash.engine import model as engine_model
from pyflash.engine import session as engine_session
from pyflash.engine.options import chosen
from pyflash.engine.sampling import SamplingOptions
from pyflash.engine.stages import Layers
from pyflash.native.errors import ArgumentError, UnsupportedError
from pyflash.native.values import StrPath

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger("pyflash")

STAGE_TIMEOUT: Final = 30.0


class Model:
    """The stages of a model, each an actor of a Ray cluster, from the embedding to the head. A context manager.

    info: the whole model's. This process has the file's vocabulary only; it holds the sessions' tokens, and so can have a
    lost stage's part of them evaluated again.
    """

    def __init__(self, connection: Connection, pipeline: Pipeline, beginning: engine_model.Model) -> None:
        """Not for callers: use Model.open()."""
        self._connection = connection
        self._beginning = beginning
        self.pipeline: Final = pipeline
        self.info: Final = pipeline.info
        self.n_stages: Final = len(pipeline.stages)
        self.tokenizer, self.release, self.release_known = beginning.tokenizer, beginning.release, beginning.release_known
        self.metadata, self.placement = beginning.metadata, beginning.placement
        self.expert_reads = beginning.expert_reads

    @classmethod
    def open(cls, path: StrPath, stages: str | int | Sequence[Layers] = "auto", address: str | None = None, *,
             streams: Precision = "float32", stage_timeout: float = STAGE_TIMEOUT,
             tell: Callable[[str], None] | None = None, **options: Any) -> Model:
        """Opens a file in stages on the machines of a Ray cluster. Those that do not have it at this path get what their stage
        reads of it.

        stages: "auto" for as few as have room, their number, or the layers (first, end) of each; where there are several
        machines, placement.place() says which has which, by memory and bandwidth. address: of the cluster's head,
        HOST:PORT, or "auto" for the one that runs on this machine; None: the one that this process is in already, else a
        cluster of this machine alone, for as long as the model is open. streams: how stages hand residual streams
        on; "bfloat16" halves what crosses the network, and gives other bits than the whole model, a little less accurate.
        stage_timeout: seconds within which a silent stage is taken to be lost, and told of. tell: is called with a line when that
        happens, and when the stages are back; None: the "pyflash" logger, as a warning. options: of pyflash.Model.open(), for
        each stage; device is always "cpu".

        A lost stage is opened again, and the sessions' tokens are evaluated again, as they go on: nobody gets another token.
        Raises what pyflash.Model.open() raises; UnsupportedError without Ray, and where machines have different versions,
        files or kernel sets; DeviceError where no cluster answers.
        """
        if options.pop("device", "cpu") not in ("auto", "cpu"):
            raise UnsupportedError('stages are computed by the processor: open the model with device "cpu"')
        if not stage_timeout > 0:
            raise ArgumentError("stage_timeout must be more than 0 seconds")
        chosen("precision of streams", streams, {name: i for i, name in enumerate(PRECISIONS)})
        if "layers" in options:
            raise ArgumentError("the layers of a model in stages are what stages=[(first, end), ...] says")
        release = options.pop("release", None)
        progress = options.pop("progress", None)
        beginning = engine_model.Model.open(path, "cpu", 1, layers=(0, 1), release=release)
        connection = None
        try:
            connection = Connection(address)
            places = planned(connection, path, stages, beginning.info.n_layer)
            pipeline = Pipeline(connection, os.path.abspath(path), places, {"device": "cpu", "streams": streams, **options},
                                stage_timeout, tell or _log.warning, progress)
        except BaseException:
            beginning.close()
            if connection is not None:
                connection.close()
            raise
        if progress is not None:
            progress(pipeline.info.weight_bytes, pipeline.info.weight_bytes)
        return cls(connection, pipeline, beginning)

    def session(self, context: int | None = None, **options: Any) -> Session:
        """A new, empty session: a part of it in each stage. options: those of pyflash.Model.session()."""
        return Session(self, {"context": context, **options})

    def holder(self) -> engine_session.Session:
        """A session that holds files on this machine for another one."""
        return self._beginning.session(1)

    @property
    def sampling(self) -> SamplingOptions:
        return self._beginning.sampling

    def listen(self, hear: Callable[[str], None]) -> None:
        """hear is called, beside tell, with what is told; on the thread of the session that noticed it."""
        self.pipeline.listeners.append(hear)

    def prepare_drafts(self) -> None:
        """As pyflash.Model.prepare_drafts(), in the stage that drafts."""
        self.pipeline.prepare_drafts()

    def close(self) -> None:
        """Ends the stages. Open sessions are closed with it."""
        self.pipeline.close()
        self._beginning.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
