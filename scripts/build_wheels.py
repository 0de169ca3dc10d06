#!/usr/bin/env python3
"""Wheels, zips and the source distribution for every platform, made on one Linux machine with PyPI's ziglang.

    python scripts/build_wheels.py list                            # platforms, and how they are tagged
    python scripts/build_wheels.py build linux-x86_64 windows-x64  # those, into dist/
    python scripts/build_wheels.py check dist/*                    # what is wrong with files, by rules
    python scripts/build_wheels.py release                         # all of it, with SHA256SUMS and an SBOM: dist/ is complete

`pip install '.[wheels]'` brings what it needs; the CUDA plugin's wheel needs `pip install '.[cuda-toolkit]'`, or nvcc of CUDA 13.
The wheels are built from the source distribution that is made first. A build of the same commit gives the same bytes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from wheels import build, checks, release
from wheels.targets import CUDA, TARGETS


def _list() -> int:
    for target in TARGETS.values():
        print(f"{target.name:18}{target.zig:28}{', '.join(target.platforms)}")
    print(f"{CUDA:18}the CUDA plugin, for Linux x86-64; no zip")
    return 0


def _check(paths: list[Path]) -> int:
    """Prints a line for each file, and under it what is wrong. Returns 1 where something is."""
    version, failed = build.version(), False
    for path in sorted(paths):
        beside = [other for other in path.parent.iterdir() if other.is_file()]
        told = release.check(path, beside, version) if release.is_about_others(path) else checks.check(path, version)
        print(f"{'good' if not told else 'BAD'}  {path.name}", *(f"     {sentence}" for sentence in told), sep="\n")
        failed = failed or bool(told)
    return int(failed)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the platforms, and how they are tagged")
    building = commands.add_parser("build", help="the source distribution, and wheels and zips of it")
    building.add_argument(
        "platforms", nargs="+", choices=[*TARGETS, CUDA], metavar="PLATFORM", help=f"{', '.join(TARGETS)} or {CUDA}"
    )
    releasing = commands.add_parser("release", help="everything, checked, with SHA256SUMS and an SBOM")
    releasing.add_argument("--without-cuda", action="store_true", help="leave out the CUDA plugin's wheel")
    releasing.add_argument("--dirty", action="store_true", help="also where the tree differs from the commit")
    for command in (building, releasing):
        command.add_argument("--out", type=Path, default=build.ROOT / "dist", metavar="FOLDER", help="where to (default: dist)")
        command.add_argument(
            "--work", type=Path, metavar="FOLDER", help="where to build, to go on there later (default: a temporary one)"
        )
        command.add_argument("--cuda-architectures", metavar="LIST", help="as CMAKE_CUDA_ARCHITECTURES (default: CMakeLists.txt's)")
    checking = commands.add_parser("check", help="say what is wrong with files")
    checking.add_argument("files", nargs="+", type=Path, metavar="FILE")
    return parser.parse_args()


def _make(arguments: argparse.Namespace, work: Path) -> int:
    if arguments.command == "build":
        return _check(build.make(arguments.platforms, arguments.out, work, arguments.cuda_architectures))
    names = [*TARGETS, *([] if arguments.without_cuda else [CUDA])]
    made = build.make(names, arguments.out, work, arguments.cuda_architectures)
    made += release.complete(arguments.out, made)
    return _check(made)


def main() -> int:
    arguments = _parse()
    if arguments.command == "list":
        return _list()
    if arguments.command == "check":
        return _check(arguments.files)
    if arguments.command == "release":
        release.require_clean(arguments.out, dirty=arguments.dirty)
    if arguments.work is not None:
        return _make(arguments, arguments.work)
    with tempfile.TemporaryDirectory(prefix="pyflash-wheels-") as work:
        return _make(arguments, Path(work))


if __name__ == "__main__":
    sys.exit(main())
