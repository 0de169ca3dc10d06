"""docs/commands.md is what the commands declare."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pyflash.cli.main import cli

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "make_command_reference.py"


def test_reference_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, encoding="utf-8", timeout=120)
    if done.returncode != 0:
        pytest.fail(done.stderr.strip())  # names the command that writes it
    assert done.stderr == ""


def test_every_option_is_in_it() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")

    def check(command: click.Command) -> None:
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.opts[0] in text
                assert not option.envvar or str(option.envvar) in text
        for inner in command.commands.values() if isinstance(command, click.Group) else ():
            check(inner)

    check(cli)


def test_a_changed_command_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = runpy.run_path(str(SCRIPT))
    main = module["main"]
    main.__globals__["PATH"] = tmp_path / "commands.md"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--check"])
    with pytest.raises(SystemExit, match="python scripts/make_command_reference.py"):
        main()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    main()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--check"])
    main()
    monkeypatch.setattr(cli.commands["doctor"].params[0], "help", "Something else.")
    with pytest.raises(SystemExit, match="not up to date"):
        main()
