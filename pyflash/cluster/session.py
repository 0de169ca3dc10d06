"""A session of a model that several machines have, with the API of pyflash.Session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyflash.cluster.chain import RemoteChain
from pyflash.engine.chained_session import ChainedSession
from pyflash.engine.session import PartsInfo

if TYPE_CHECKING:
    from pyflash.cluster.model import Model


class Session(ChainedSession):
    """Made by Model.session(). What the stages of a lost machine held of it is evaluated again, when it goes on."""

    def __init__(self, model: Model, options: Mapping[str, Any]) -> None:
        self.chain = RemoteChain(model.pipeline, options, model.holder)
        super().__init__(self.chain, model.info, model.tokenizer.retained())
        self._model = model

    @property
    def model(self) -> Model:
        return self._model

    @property
    def parts(self) -> tuple[PartsInfo, ...]:
        """As ChainedSession.parts. model: of what each stage has read, wherever it lies: a copy has holes elsewhere."""
        stages = self._model.pipeline.stages
        return tuple(replace(own, model=stage.facts.file_number) for own, stage in zip(super().parts, stages, strict=True))

    def close(self) -> None:
        super().close()
        self.tokenizer.close()
