"""examples/desktop under a virtual display, with keys and clicks, to the end."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from .screen import picture, virtual_display, write_png

pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the virtual display is of X11")

SIZE = (760, 560)  # as desktop.py asks for


def test_window(tmp_path: Path, demo_model: Path, tiny_model: Path) -> None:
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb")
    if importlib.util.find_spec("_tkinter") is None:
        pytest.skip("this Python has no tkinter")
    broken, copy = tmp_path / "broken.gguf", tmp_path / "screen"
    broken.write_bytes(tiny_model.read_bytes()[:5000])
    driver = Path(__file__).with_name("desktop_driver.py")
    with virtual_display(tmp_path, *SIZE) as display:
        command = [sys.executable, driver, tiny_model, broken, tmp_path / "Xvfb_screen0", copy]
        done = subprocess.run(command, env={**os.environ, "DISPLAY": display}, capture_output=True, text=True,
                              cwd=tmp_path, timeout=120)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout.split() == ["ask", "think", "open", "stop", "clear", "error", "close"]
    pixels = picture(copy)
    write_png(tmp_path / "window.png", pixels)  # to look at
    check_picture(pixels)


def check_picture(pixels: NDArray[np.uint8]) -> None:
    """The window fills the screen, has its white paper and tinted questions, and text of many shades on them."""
    assert pixels.shape == (SIZE[1], SIZE[0], 3)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    share = {"#" + bytes(colour).hex(): count / counts.sum() for colour, count in zip(colours, counts)}
    assert share["#ffffff"] > 0.3 and share["#eaf2fd"] > 0.02 and share.get("#000000", 0) < 0.05
    assert len(share) > 50
