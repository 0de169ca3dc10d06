"""pyflash convert and export hf as commands: their JSON, and what they say when something is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ran import Ran

Run = Callable[..., Ran]


def test_plan_as_json(tmp_path: Path, tiny_checkpoint: Path, run: Run) -> None:
    out = tmp_path / "m.gguf"
    arguments = (tiny_checkpoint, out, "--mtp", "--split-max-size", "100K")
    plan = run("convert", *arguments, "--dry-run", "--json").json()
    assert os.listdir(tmp_path) == []
    assert (plan["release"], plan["profile"], plan["drafts"], plan["complete"]) == ("preview", "compat", "mtp", True)
    main, mtp = plan["files"]
    assert (main["kind"], mtp["kind"]) == ("model", "mtp")
    assert main["bytes"] == sum(main["shard_bytes"]) > sum(main["bytes_by_type"].values())
    done = run("convert", *arguments, "--json").json()
    assert done["total_bytes"] == plan["total_bytes"] == sum(Path(path).stat().st_size for path in done["files"])
    assert [Path(path).stat().st_size for path in done["files"]] == main["shard_bytes"] + mtp["shard_bytes"]
    assert sorted(map(os.path.basename, done["files"])) == sorted(os.listdir(tmp_path))
    assert done["warnings"] == [] and done["seconds"] > 0


def test_there_and_back_as_json(tmp_path: Path, tiny_checkpoint: Path, run: Run) -> None:
    """A warning goes to stderr as well; stdout is JSON alone."""
    ran = run("convert", tiny_checkpoint, tmp_path / "m.gguf", "--profile", "native", "--json")
    assert "native" in ran.stderr and ran.json()["warnings"] and ran.stdout.count("\n") == 1
    back = run("export", "hf", tmp_path / "m.gguf", tmp_path / "back", "--json").json()
    assert sorted(map(os.path.basename, back["files"])) == sorted(os.listdir(tmp_path / "back"))
    assert back["total_bytes"] == sum(path.stat().st_size for path in (tmp_path / "back").iterdir())


@pytest.mark.parametrize("size", ["0", "40X", "-1", "4.5G", "G", "", "٤G"])
def test_sizes_that_are_none(tmp_path: Path, tiny_checkpoint: Path, run: Run, size: str) -> None:
    ran = run("convert", tiny_checkpoint, tmp_path / "m.gguf", f"--split-max-size={size}")
    assert ran.code == 2 and "is no size" in ran.stderr and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments, reason",
    [(("convert", "{tmp}", "{tmp}/m.gguf"), "config.json"), (("convert", "{checkpoint}", "{tmp}/m.bin"), ".gguf"),
     (("convert", "{checkpoint}", "{tmp}/none/m.gguf"), "there is no folder"),
     (("export", "hf", "{tmp}/none.gguf", "{tmp}/x"), "No such file"),
     (("export", "lmstudio", "{tmp}", "{tmp}/x"), "is a folder")],
)  # fmt: skip
def test_failures_are_a_line(
    tmp_path: Path, tiny_checkpoint: Path, run: Run, arguments: tuple[str, ...], reason: str
) -> None:
    ran = run(*(text.format(tmp=tmp_path, checkpoint=tiny_checkpoint) for text in arguments), "--json")
    assert ran.code == 1 and reason in ran.stderr and ran.stdout == "" and os.listdir(tmp_path) == []


# Ends itself where the work is done, and shows what lies there at that moment.
ENDED = """
import os, signal, sys, time
from gguf_export import convert, placing
def end(*arguments, **options):
    print(sorted(name for name in os.listdir(".") if name.endswith(".part")), flush=True)
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    time.sleep(60)
convert.run_jobs = placing._copy = end
from pyflash.cli.main import main
main(sys.argv[2:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("command", ["convert", "export"])
def test_ended_from_outside(tmp_path: Path, tiny_checkpoint: Path, tiny_model: Path, name: str, command: str) -> None:
    """Also by a closed terminal, nothing half-written stays."""
    words = {"convert": ["convert", tiny_checkpoint, "m.gguf"],
             "export": ["export", "ollama", tiny_model, ".", "--copy"]}
    done = subprocess.run([sys.executable, "-c", ENDED, name, *map(str, words[command])], cwd=tmp_path,
                          capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert ".part" in done.stdout and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []
