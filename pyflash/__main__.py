"""The pyflash command, also as `python -m pyflash`, which has two options more, each alone:

--cmake-dir prints the folder for programs that build against the library, --demo-checkpoint that of the demo model's
checkpoint, to be converted like any other.
"""

from __future__ import annotations

import os
import sys

try:
    from pyflash.cli.signals import end_on_interrupt

    end_on_interrupt()
except KeyboardInterrupt:
    sys.exit(130)


def run() -> None:
    """Runs the command line and exits, with one line and code 1 where the library does not load."""
    try:
        if sys.argv[1:] == ["--cmake-dir"]:
            _print_cmake_dir()
            return
        if sys.argv[1:] == ["--demo-checkpoint"]:
            _print_demo_checkpoint()
            return
        from pyflash.cli.main import main
    except ImportError as error:
        sys.exit(f"pyflash: error: {' '.join(str(error).split())}")
    except MemoryError:
        sys.exit("pyflash: error: not enough memory to start: close other programs, or raise ulimit -v")
    main()


def _print_cmake_dir() -> None:
    from pyflash.native.library import installed_file

    folder = installed_file("lib", "cmake", "pyflash")
    if folder is None:
        sys.exit("pyflash: error: this installation holds no CMake files; install it again with 'pip install .'")
    _print_path(folder)


def _print_demo_checkpoint() -> None:
    from pyflash import demo
    from pyflash.native.errors import Error

    try:
        _print_path(demo.checkpoint())
    except Error as error:
        sys.exit(f"pyflash: error: {error}")


def _print_path(path: os.PathLike[str]) -> None:
    """Byte for byte, whatever the locale: programs read it."""
    try:
        os.write(1, os.fsencode(path) + b"\n")
    except OSError as error:
        sys.exit(f"pyflash: error: cannot write to standard output: {error.strerror}")


if __name__ == "__main__":
    run()
