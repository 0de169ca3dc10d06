"""The pyflash command. Text goes to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed (one line says what and what to do), 2 usage, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

import pyflash
from gguf_export.errors import reason
from pyflash.cli.commands.bench import bench
from pyflash.cli.commands.completion import completion
from pyflash.cli.commands.convert import convert
from pyflash.cli.commands.doctor import doctor
from pyflash.cli.commands.eval import evaluate
from pyflash.cli.commands.export import export
from pyflash.cli.commands.info import info
from pyflash.cli.commands.run import run
from pyflash.native.faults import catch_file_errors

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    catch_file_errors(prefix="pyflash: error: ")
    sys.exit(_exit_code(arguments))


def _open_closed_streams() -> None:
    """Gives a program that was started without stdin, stdout or stderr empty ones.

    Else the next file that is opened, such as the model, would get the number of what is missing.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # for the rest of the process


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        result = cli.main(args=arguments, prog_name="pyflash", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except pyflash.Error as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.filename}: {reason(error)}" if error.filename else reason(error))
    except MemoryError:
        return _failed("out of memory: close other programs, or take a smaller --ctx")


def _failed(message: str) -> int:
    click.echo(f"pyflash: error: {' '.join(message.split())}", err=True)
    return EXIT_FAILED


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pyflash.__version__, prog_name="pyflash")
def cli() -> None:
    """Run DeepSeek-V4-Flash on this machine."""


for _command in (bench, completion, convert, doctor, evaluate, export, info, run):
    cli.add_command(_command)
