"""What binaries are made for: one row a platform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["elf", "macho", "pe"]
Arch = Literal["x86_64", "arm64"]

GLIBC = (2, 17)  # manylinux_2_17, that is manylinux2014: RHEL 7 and everything since
MUSL = (1, 2)  # musllinux_1_2: Alpine 3.13 and later
MACOS = (11, 0)  # the first one for arm64


@dataclass(frozen=True)
class Target:
    """A platform: how zig and CMake call it, and how its files are tagged."""

    name: str  # of the zip
    format: Format
    arch: Arch
    zig: str  # zig's target
    system: str  # CMAKE_SYSTEM_NAME
    processor: str  # CMAKE_SYSTEM_PROCESSOR
    platforms: tuple[str, ...]  # platform tags of the wheel
    library: str  # in the wheel's package folder, and in the zip

    @property
    def tags(self) -> list[str]:
        return [f"py3-none-{platform}" for platform in self.platforms]

    @property
    def libc(self) -> str:
        """ "glibc", "musl", "macos" or "windows"."""
        if self.format == "elf":
            return "musl" if "musl" in self.zig else "glibc"
        return "macos" if self.format == "macho" else "windows"


def _linux(arch: Arch) -> list[Target]:
    machine = {"x86_64": "x86_64", "arm64": "aarch64"}[arch]
    row = ("elf", arch)
    return [
        Target(f"linux-{machine}", *row, f"{machine}-linux-gnu.{GLIBC[0]}.{GLIBC[1]}", "Linux", machine,
               (f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{machine}", f"manylinux2014_{machine}"), "lib/libpyflash.so"),
        Target(f"musllinux-{machine}", *row, f"{machine}-linux-musl", "Linux", machine,
               (f"musllinux_{MUSL[0]}_{MUSL[1]}_{machine}",), "lib/libpyflash.so"),
    ]  # fmt: skip


def _macos(arch: Arch) -> Target:
    zig = f"{ {'x86_64': 'x86_64', 'arm64': 'aarch64'}[arch] }-macos.{MACOS[0]}.{MACOS[1]}"
    return Target(
        f"macos-{arch}", "macho", arch, zig, "Darwin", arch, (f"macosx_{MACOS[0]}_{MACOS[1]}_{arch}",), "lib/libpyflash.dylib"
    )


def _windows(arch: Arch) -> Target:
    machine, tag, name, processor = {
        "x86_64": ("x86_64", "win_amd64", "windows-x64", "AMD64"),
        "arm64": ("aarch64", "win_arm64", "windows-arm64", "ARM64"),
    }[arch]
    return Target(name, "pe", arch, f"{machine}-windows-gnu", "Windows", processor, (tag,), "bin/libpyflash.dll")


TARGETS = {
    target.name: target
    for target in (*_linux("x86_64"), *_linux("arm64"), _macos("arm64"), _macos("x86_64"), _windows("x86_64"), _windows("arm64"))
}
CUDA = "cuda"  # the plugin's wheel
CUDA_PLATFORM = "manylinux_2_28_x86_64"


def of_platforms(platforms: tuple[str, ...]) -> Target | None:
    """The target whose wheel has these platform tags, in any order."""
    return next((target for target in TARGETS.values() if set(target.platforms) == set(platforms)), None)
