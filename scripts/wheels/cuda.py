"""The toolkit for the CUDA plugin: PyPI's packages of CUDA 13, or one that is installed. zig's clang compiles the host's part."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

from wheels import zig
from wheels.targets import CUDA_PLATFORM

_HOST = f"x86_64-linux-gnu.{'.'.join(CUDA_PLATFORM.split('_')[1:3])}"


def nvcc() -> Path:
    """Raises SystemExit where there is none."""
    own = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin", "nvcc")
    found = str(own) if own.is_file() else shutil.which("nvcc")
    if found is None:
        raise SystemExit("build_wheels: there is no nvcc of CUDA 13: pip install '.[cuda-toolkit]'")
    return Path(found).resolve()


def settings(folder: Path, source: Path) -> dict[str, str]:
    """CMake's settings for a build of the plugin; what they need is written into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = f"-g0 -ffile-prefix-map={source}=."
    return {
        "CMAKE_C_COMPILER": str(zig.compiler(folder, _HOST)),
        "CMAKE_CUDA_COMPILER": str(nvcc()),
        "CMAKE_CUDA_HOST_COMPILER": str(zig.compiler(folder, _HOST, "c++")),
        "CMAKE_C_FLAGS": flags,
        "CMAKE_CUDA_FLAGS": "-Xcompiler=" + flags.replace(" ", ","),
        "CMAKE_MODULE_LINKER_FLAGS": "-s",
    }
