"""`python -m pyflash`: the command line, and --cmake-dir for programs that build against the library."""

from __future__ import annotations

import sys


def _run() -> None:
    if sys.argv[1:] == ["--cmake-dir"]:
        from pyflash._native import installed_file

        folder = installed_file("lib", "cmake", "pyflash")
        if folder is None:
            sys.exit("pyflash: error: this installation holds no CMake files; install it again with 'pip install .'")
        print(folder)
        return
    from pyflash.cli import main

    main()


if __name__ == "__main__":
    _run()
