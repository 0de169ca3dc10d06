"""Fixtures of the tests against real llama.cpp."""

from __future__ import annotations

import pytest

from import_llama.runner import LlamaCpp, install


@pytest.fixture(scope="session")
def llama() -> LlamaCpp:
    return LlamaCpp(install())
