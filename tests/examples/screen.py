"""A virtual display and its picture: Xvfb keeps its screen in a file, in the X window dump format."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@contextlib.contextmanager
def virtual_display(folder: Path, width: int, height: int) -> Iterator[str]:
    """Runs Xvfb with its screen's file, Xvfb_screen0, in the folder; gives the value of DISPLAY."""
    read, write = os.pipe()
    command = [shutil.which("Xvfb") or "Xvfb", "-displayfd", str(write), "-screen", "0", f"{width}x{height}x24",
               "-fbdir", str(folder), "-nolisten", "tcp"]  # fmt: skip
    with open(read) as numbers, open(folder / "xvfb.log", "w") as log:
        server = subprocess.Popen(command, pass_fds=[write], stdout=log, stderr=log)
        os.close(write)
        try:
            number = numbers.readline().strip()  # comes when the server is ready; empty when it could not start
            if not number:
                raise RuntimeError(f"Xvfb did not start: {(folder / 'xvfb.log').read_text()}")
            yield f":{number}"
        finally:
            server.terminate()
            server.wait()


def picture(dump: Path) -> NDArray[np.uint8]:
    """Pixels [height, width, 3] of a window dump with 32 bits a pixel, the red ones in bits 16 to 23."""
    data = dump.read_bytes()
    header: Any = struct.unpack(">25I", data[:100])
    size, version, width, height = header[0], header[1], header[4], header[5]
    little_endian, bits, stride, red, n_colours = header[7] == 0, header[11], header[12], header[14], header[19]
    assert (version, bits, red) == (7, 32, 0xFF0000), header
    pixels = np.frombuffer(data, np.uint8, height * stride, size + 12 * n_colours)
    channels = pixels.reshape(height, stride)[:, : 4 * width].reshape(height, width, 4)
    return channels[..., [2, 1, 0] if little_endian else [1, 2, 3]]


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """pixels: [height, width, 3]."""
    height, width, _ = pixels.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, 3 * width)], axis=1)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
             chunk(b"IDAT", zlib.compress(rows.tobytes())), chunk(b"IEND", b"")]  # fmt: skip
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
