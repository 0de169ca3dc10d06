"""The bits of the demo model's logits are those that are committed (scripts/logits_digest.py), on every kernel set that this
machine has and that digests are known for."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pyflash.machine.hardware import kernel_sets

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "logits_digest.py"
SETS = ("scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "dotprod", "i8mm")


@pytest.fixture(scope="module")
def script(demo_model: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("logits_digest", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SETS)
def test_bits(script: ModuleType, name: str) -> None:
    problem = {each.name: each.problem for each in kernel_sets()}.get(name, "is for other processors")
    if problem is not None:
        pytest.skip(f"{name}: {problem}")
    outcome = script.compare(name)
    if outcome.status == "unknown":
        pytest.skip(outcome.line)
    assert outcome.status == "same", outcome.line


def test_changed_only_knowingly(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "PATH", tmp_path / "digests.json")
    bits = dict.fromkeys(script.PRECISIONS, "aa")
    version = script.lib.PF_ARITHMETIC_VERSION
    script.write(["scalar", "avx2"], lambda _: bits)
    assert script.compare("avx2", lambda _: bits).status == "same"
    assert script.compare("neon", lambda _: bits).status == "unknown"

    other = {**bits, "int8": "bb"}
    outcome = script.compare("avx2", lambda _: other)
    assert outcome.status == "changed" and "in int8." in outcome.line and "PF_ARITHMETIC_VERSION" in outcome.line
    with pytest.raises(SystemExit, match="raise it first"):
        script.write(["avx2"], lambda _: other)
    assert script.compare("avx2", lambda _: bits).status == "same"  # nothing was written

    raised = type("lib", (), {"PF_ARITHMETIC_VERSION": version + 1})
    monkeypatch.setattr(script, "lib", raised)
    assert "--write" in script.compare("scalar", lambda _: bits).line
    script.write(["avx2"], lambda _: other)
    assert script.compare("avx2", lambda _: other).status == "same"
    assert script.compare("scalar", lambda _: bits).status == "unknown"  # of the version before

    monkeypatch.setattr(script, "math_digest", lambda: "of another C library")
    outcome = script.compare("avx2", lambda _: bits)
    assert outcome.status == "unknown" and "C library" in outcome.line
    assert json.loads(script.PATH.read_text())["arithmetic"] == version + 1
