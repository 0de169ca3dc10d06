"""A Ray cluster of this machine alone for all tests of stages."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from cluster_logits import CONTEXT


@pytest.fixture(scope="session")
def ray_here(cache_dir: Path) -> Iterator[Any]:
    """Ray, started once: that takes seconds, and on a busy machine a minute. After cache_dir: stages see it too."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("no ray: pip install '.[test,cluster]'")
    from pyflash.cluster.ray_runtime import Connection

    connection = Connection(os.environ.get("PYFLASH_TEST_RAY"))  # of a cluster that is there already
    yield connection.ray
    connection.close()


@pytest.fixture(scope="session")
def whole(demo_model: Path) -> Iterator[pyflash.Model]:
    with pyflash.Model.open(demo_model, device="cpu", threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def tokens(whole: pyflash.Model) -> np.ndarray:
    return np.random.default_rng(5).integers(0, whole.info.n_vocab, 900).astype(np.int32)


@pytest.fixture(scope="session")
def reference(whole: pyflash.Model, tokens: np.ndarray) -> np.ndarray:
    """The whole model's logits behind each token."""
    with whole.session(context=CONTEXT) as session:
        logits: np.ndarray = session.eval(tokens, all_logits=True)
    return logits


@pytest.fixture(scope="session", params=[1, 2, 3], ids=["1 stage", "2 stages", "3 stages"])
def model(request: pytest.FixtureRequest, ray_here: Any, demo_model: Path) -> Iterator[Any]:
    with pyflash.cluster.Model.open(demo_model, request.param, threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def two(ray_here: Any, demo_model: Path) -> Iterator[Any]:
    """A model in two stages."""
    with pyflash.cluster.Model.open(demo_model, 2, threads=1) as model:
        yield model
