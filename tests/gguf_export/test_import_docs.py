"""docs/import.md: its pyflash commands run in order, and its other commands fit what they print and write."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "import.md"


@pytest.mark.skipif(os.name == "nt", reason="the commands are for a POSIX shell")
def test_the_walk_through(tmp_path: Path, tiny_checkpoint: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    ours = [block for block in blocks if block.startswith("pyflash ")]
    assert len(ours) == 4
    shutil.copytree(tiny_checkpoint, tmp_path / "DeepSeek-V4-Flash")
    home = tmp_path / "home"
    home.mkdir()
    places = os.environ | {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    printed = []
    for block in ours:
        done = subprocess.run(["sh", "-euc", block], cwd=tmp_path, env=places, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, f"{block}{done.stderr}"
        printed.append(done.stdout)
    assert printed[1] in blocks  # the commands to run next
    assert (tmp_path / "ollama" / "Modelfile").is_file()
    lines = (tmp_path / "ollama-split" / "Modelfile").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == len(list(tmp_path.glob("split-*.gguf"))) > 1
    models = home / ".lmstudio" / "models"
    model = models / "deepseek-ai" / "DeepSeek-V4-Flash" / "flash.gguf"
    assert model.is_file() and str(model.relative_to(models)) in PAGE.read_text(encoding="utf-8")
