"""The pyflash command. Text goes to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed (one line says what and what to do), 2 usage, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

import pyflash
from gguf_export.errors import reason
from pyflash.cli.commands.bench import bench
from pyflash.cli.commands.cache import cache
from pyflash.cli.commands.cluster import cluster
from pyflash.cli.commands.completion import completion
from pyflash.cli.commands.convert import convert
from pyflash.cli.commands.doctor import doctor
from pyflash.cli.commands.eval import evaluate
from pyflash.cli.commands.eval_sensitivity import sensitivity
from pyflash.cli.commands.export import export
from pyflash.cli.commands.imatrix import imatrix
from pyflash.cli.commands.info import info
from pyflash.cli.commands.launch import launch
from pyflash.cli.commands.list import list_models
from pyflash.cli.commands.pull import pull
from pyflash.cli.commands.quantize import quantize
from pyflash.cli.commands.run import run
from pyflash.cli.commands.serve import serve
from pyflash.cli.signals import EXIT_INTERRUPTED, raising_on_interrupt
from pyflash.cli.streams import leave_output, prepare_streams, say
from pyflash.native.faults import catch_file_errors

EXIT_FAILED = 1
_VERBOSE = "PYFLASH_VERBOSE"  # the variable of that option


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits."""
    prepare_streams()
    catch_file_errors(prefix="pyflash: error: ")
    code = _exit_code(sys.argv[1:] if arguments is None else arguments)
    leave_output()
    sys.exit(code)


def _exit_code(arguments: Sequence[str]) -> int:
    try:
        with raising_on_interrupt():
            result = cli.main(args=list(arguments), prog_name="pyflash", standalone_mode=False)
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        say(shown.getvalue().rstrip("\n"))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output has left
        return EXIT_FAILED
    except pyflash.Error as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.filename}: {reason(error)}" if error.filename else reason(error))
    except MemoryError:
        return _failed("out of memory: close other programs, or take less of it, as with a smaller --ctx of run")
    except Exception as error:
        if _is_verbose(arguments):
            say(traceback.format_exc().rstrip("\n"))
        return _failed(f"{type(error).__name__}, which nobody foresaw: {error}; --verbose shows where")


def _is_verbose(arguments: Sequence[str]) -> bool:
    chosen = os.environ.get(_VERBOSE, "").lower()
    return "--verbose" in arguments or chosen in ("1", "true", "yes", "on", "t", "y")  # as click reads it


def _failed(message: str) -> int:
    say(f"pyflash: error: {' '.join(message.split())}")
    return EXIT_FAILED


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pyflash.__version__, prog_name="pyflash")
def cli() -> None:
    """Run DeepSeek-V4-Flash on this machine."""


def _let_be_verbose(command: click.Command) -> None:
    """Gives --verbose to commands that have nothing else to tell by it."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _let_be_verbose(inner)
    elif all(parameter.name != "verbose" for parameter in command.params):
        click.option("--verbose", is_flag=True, expose_value=False,
                     help=f"Show where an error that nobody foresaw comes from; {_VERBOSE}=1 does, too.")(command)


evaluate.add_command(sensitivity)
for _command in (bench, cache, cluster, completion, convert, doctor, evaluate, export, imatrix, info, launch, list_models, pull,
                 quantize, run, serve):
    _let_be_verbose(_command)
    cli.add_command(_command)
