"""Made-up requests over real sockets: no answer is an error of the server's own, and each refusal is the protocol's."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from serving import becomes_idle, serving
from test_connections import listening

pytest.importorskip("schemathesis", reason="schemathesis is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

SECONDS = 45.0  # scripts/fuzz_serve.py does it for longer


@pytest.mark.parametrize("keys", [(), ("a key",)])
def test_made_up_requests(tiny_model: Path, caplog: pytest.LogCaptureFixture, keys: tuple[str, ...]) -> None:
    from fuzzing import fuzz

    caplog.set_level(logging.WARNING, "pyflash.serve")
    with serving(tiny_model, context=256, keys=keys) as made, listening(made) as port:
        n = fuzz(port, 10.0 if keys else SECONDS)
        assert n[401] if keys else n[200] and n[400]
        assert becomes_idle(made)
    assert not [record for record in caplog.records if record.name == "pyflash.serve"]
