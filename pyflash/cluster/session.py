"""A session of a model that several machines have, with the API of pyflash.Session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyflash.cluster.chain import RemoteChain
from pyflash.engine.chained_session import ChainedSession

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

    def close(self) -> None:
        super().close()
        self.tokenizer.close()
