"""A model in stages of consecutive layers, all in this process: what a session asks of it, each stage does in its turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pyflash.engine.chained_session import ChainedSession
from pyflash.engine.model import Model, ModelInfo
from pyflash.engine.sampling import SamplingOptions
from pyflash.engine.session import Session, Tap
from pyflash.engine.stage_chain import LocalChain
from pyflash.native.errors import ArgumentError, UnsupportedError
from pyflash.native.values import StrPath

if TYPE_CHECKING:
    from typing_extensions import Self

Layers = tuple[int, int]


def cut(n_layer: int, n_stages: int) -> list[Layers]:
    """The layers (first, end) of stages of as many layers each, as far as that goes."""
    if not 1 <= n_stages <= n_layer:
        raise ArgumentError(f"{n_layer} layers cannot be cut into {n_stages} stages")
    ends = [n_layer * (i + 1) // n_stages for i in range(n_stages)]
    return list(zip([0, *ends], ends))


def whole_info(infos: Sequence[ModelInfo]) -> ModelInfo:
    """What the model is that stages are the parts of. ArgumentError where they do not follow each other or have other
    precisions, UnsupportedError where they compute by different kernel sets, which would give other bits."""
    ends = [0, *(info.end_layer for info in infos)]
    if not infos or [info.first_layer for info in infos] != ends[:-1] or ends[-1] != infos[-1].n_layer:
        raise ArgumentError(f"stages of the layers {[(i.first_layer, i.end_layer) for i in infos]} are not a whole model")
    if len({(info.precision, info.name, info.n_embd, info.n_vocab) for info in infos}) > 1:
        raise ArgumentError("the stages are of different models or precisions")
    if len(kernels := {info.cpu_isa for info in infos}) > 1:
        raise UnsupportedError(f"the stages compute by different kernel sets, {', '.join(sorted(kernels))}: open all of "
                               "them with the isa that all machines have")
    return replace(infos[-1], first_layer=0, weight_bytes=sum(info.weight_bytes for info in infos),
                   widened_bytes=sum(info.widened_bytes for info in infos))


class StagedModel:
    """The stages of one model, from the embedding to the head, with the API of Model as far as a chat needs it.

    It computes the same bits as the whole model. All in one process it gains nothing: it is what several machines do.
    info: the whole model's. stages: the models of the parts.
    """

    def __init__(self, stages: Sequence[Model]) -> None:
        """Takes the stages over: close() closes them. Errors of whole_info()."""
        self.info = whole_info([stage.info for stage in stages])
        self.stages: Final = tuple(stages)
        self.n_stages: Final = len(stages)
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


class StagedSession(ChainedSession):
    """A session of a StagedModel; the API is Session's. Made by StagedModel.session()."""

    def __init__(self, model: StagedModel, options: Mapping[str, Any]) -> None:
        chain = LocalChain(model.stages, options)
        super().__init__(chain, model.info, chain.sessions[0].tokenizer)
        self._local = chain
        self._model = model
        self._tap: Tap | None = None

    @property
    def model(self) -> StagedModel:
        return self._model

    @property
    def stages(self) -> tuple[Session, ...]:
        """Each stage's session. What is moved in one of them alone is no longer where the others are."""
        return tuple(self._local.sessions)

    @property
    def is_watched(self) -> bool:  # type: ignore[override]
        return any(each.is_watched for each in self.stages)

    def load(self, path: StrPath) -> None:
        super().load(path)
        self.set_tap(self._tap)

    def set_tap(self, tap: Tap | None) -> None:
        with self._free():
            self._tap = tap
            for each in self.stages:
                each.set_tap(tap)
