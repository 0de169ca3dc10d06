"""How the tests themselves are run: sets that are left out unless asked for, and signals that a shell has ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import named_sets
import pytest

ROOT = Path(__file__).resolve().parent.parent


def collected(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_what_is_left_out_is_told() -> None:
    done = collected("--collect-only", "tests/oracle", "tests/backend")
    for name in ("oracle (1 file and 2 tests)", "device (2 files)", "long (", "pytest --set long"):
        assert name in done.stdout, done.stdout
    assert "test_transformers" not in done.stdout and "test_avx512_emulated" not in done.stdout
    assert "test_native[scalar]" in done.stdout and done.stderr == ""


def test_a_set_is_run_alone_and_all_with_the_rest() -> None:
    long = collected("--collect-only", "--set", "long", "tests/backend").stdout
    assert "test_avx512_emulated" in long and "test_native" not in long and "set long" not in long
    everything = collected("--collect-only", "--set", "all", "tests/backend").stdout
    assert "test_avx512_emulated" in everything and "test_native" in everything and "not run" not in everything
    assert collected("--collect-only", "--set", "short").returncode == 4


@pytest.mark.parametrize("test", ["", "::test_avx512_emulated"])
def test_what_is_named_runs(test: str) -> None:
    done = collected("--collect-only", f"tests/backend/test_gate.py{test}")
    assert "test_avx512_emulated" in done.stdout and "not run" not in done.stdout


def test_processes_side_by_side_tell_it_too() -> None:
    pytest.importorskip("xdist")
    done = collected("-n", "1", "tests/oracle", "-k", "kl_divergence")
    assert "1 passed" in done.stdout and "not run: set oracle (1 file and 2 tests)" in done.stdout


def test_every_set_has_tests() -> None:
    marked = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    for name in (*named_sets.SETS, "quick"):
        assert f"pytest.mark.{name}\n" in marked, name


@pytest.mark.skipif(sys.platform == "win32", reason="signals are ignored by children as Unix has it")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM"])
def test_ignored_signals_are_not_inherited(name: str) -> None:
    """Tests started by nohup, or in the background, whose children must end by these signals."""
    number = getattr(signal, name)
    child = f"import signal; print(repr(signal.getsignal({int(number)})))"
    program = f"import conftest, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "tests", capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
                          preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))  # fmt: skip
    expected = "default_int_handler" if name == "SIGINT" else "SIG_DFL"
    assert expected in done.stdout, done.stdout + done.stderr
