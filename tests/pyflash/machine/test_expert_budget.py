"""`--expert-budget`: experts of a file larger than memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import pyflash
from pyflash.cli.main import cli
from pyflash.cli.options import parse_size
from pyflash.machine import hardware

Answer = Callable[..., tuple[str, str]]


@pytest.fixture
def answer(tiny_model: Path) -> Answer:
    """answer(*options): what goes to stdout and stderr."""
    def run(*options: str) -> tuple[str, str]:
        command = ["run", str(tiny_model), "Hello", "-n", "12", "--seed", "1", *options]
        result = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout, result.stderr

    return run


@pytest.fixture
def budgets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The budgets that models are opened with."""
    opened: list[int] = []
    real = pyflash.Model.open

    def spy(*arguments: object, **options: object) -> pyflash.Model:
        opened.append(int(str(options["expert_budget"])))
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pyflash.Model, "open", spy)
    return opened


def test_what_fits_has_no_budget(answer: Answer, budgets: list[int]) -> None:
    answer()
    assert budgets == [0]


def test_what_does_not_fit_gets_the_rest_of_the_memory(
    answer: Answer, tiny_model: Path, budgets: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = answer("-c", "1000")
    with pyflash.Model.open(tiny_model, expert_budget=0) as model, model.session(context=1000) as session:
        memory, total = session.memory, model.expert_reads.expert_bytes
        own = memory.cache_bytes + memory.buffer_bytes + memory.checkpoint_bytes
    needed = own + model.info.weight_bytes + 10**7
    usable = needed - total // 4
    monkeypatch.setattr(hardware, "process_memory", lambda: hardware.ProcessMemory(2 * 10**7, 10**7))
    monkeypatch.setattr(hardware, "memory", lambda: hardware.MachineMemory(10**12, 10**12, usable))
    budgets.clear()
    text, errors = answer("-c", "1000")
    assert text == plain[0]
    assert len(budgets) == 2 and budgets[0] == 0
    assert budgets[1] == max(1, total - total // 4 - (usable - int(usable * 0.95)))
    assert "read from disk again and again" in errors and "stay in memory" in errors


def test_given_and_off(answer: Answer, budgets: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {answer("--expert-budget", size)[0] for size in ("off", "200K", "1")}
    assert len(texts) == 1 and budgets == [0, 200_000, 1]
    monkeypatch.setenv("PYFLASH_EXPERT_BUDGET", "2M")
    answer()
    assert budgets[-1] == 2_000_000


def test_sizes() -> None:
    assert [parse_size(text) for text in ("1", "3k", "40G", "2T")] == [1, 3000, 40 * 10**9, 2 * 10**12]
    for text in ("", "0", "-1", "4.5G", "G", "many"):
        result = CliRunner().invoke(cli, ["run", "Hello", "--expert-budget", text])
        assert result.exit_code == 2 and "is no size" in result.output
