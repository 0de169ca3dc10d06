"""examples/desktop/cpp: built by CMake against the installed package and FLTK, and used under a virtual display."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from .screen import picture, virtual_display, write_png
from .test_embed import build

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SIZE = (760, 560)  # as main.cpp asks for
STEPS = ["empty", "open", "ask", "think", "stop", "clear", "error", "close", "end"]

pytestmark = [
    pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the virtual display is of X11"),
    pytest.mark.skipif(shutil.which("Xvfb") is None, reason="no Xvfb"),
    pytest.mark.skipif(None in (shutil.which("fltk-config"), shutil.which("fluid")), reason="no FLTK (Debian: libfltk1.3-dev, fluid)"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
]


def shares(pixels: np.ndarray) -> dict[str, float]:
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    return {"#" + bytes(colour).hex(): count / counts.sum() for colour, count in zip(colours, counts)}


def test_the_window_in_use(tmp_path: Path, demo_model: Path) -> None:
    """A driver in the place of main.cpp types and clicks to the end."""
    for folder in ("embed", "desktop/cpp"):
        shutil.copytree(EXAMPLES / folder, tmp_path / folder)
    shutil.copy(Path(__file__).with_name("window_driver.cpp"), tmp_path / "desktop" / "cpp" / "main.cpp")
    driver = build(tmp_path / "desktop" / "cpp", tmp_path) / "desktop"
    broken, copy = tmp_path / "broken.gguf", tmp_path / "screen"
    broken.write_bytes(demo_model.read_bytes()[:5000])
    with virtual_display(tmp_path, *SIZE) as display:
        done = subprocess.run([driver, demo_model, broken, tmp_path / "Xvfb_screen0", copy], env={**os.environ, "DISPLAY": display},
                              capture_output=True, text=True, timeout=300)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout.split() == STEPS
    pixels = picture(copy)
    write_png(tmp_path / "window.png", pixels)  # to look at
    share = shares(pixels)
    assert share["#ffffff"] > 0.3 and share["#f3f4f6"] > 0.05 and share.get("#000000", 0) < 0.05
    assert {"#1f2328", "#1a66c2", "#727a84"} <= set(share)  # the answer's ink, the questions', the thinking's


def test_the_program(tmp_path: Path, demo_model: Path) -> None:
    """As it is: with a model it shows the model's name, and it says what is wrong with its arguments."""
    program = build(EXAMPLES / "desktop" / "cpp", tmp_path) / "desktop"
    wrong = subprocess.run([program, "a.gguf", "b.gguf"], capture_output=True, text=True, timeout=60)
    assert (wrong.returncode, wrong.stderr) == (2, "usage: desktop [MODEL.gguf]\n")
    with virtual_display(tmp_path, *SIZE) as display:
        with subprocess.Popen([program, demo_model], env={**os.environ, "DISPLAY": display}) as window:
            try:
                deadline = time.monotonic() + 60
                while shares(picture(tmp_path / "Xvfb_screen0")).get("#ffffff", 0) < 0.3:
                    assert window.poll() is None and time.monotonic() < deadline
                    time.sleep(0.1)
            finally:
                window.terminate()
