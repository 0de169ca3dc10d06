"""Reading what a person types: several lines, history, completion by Tab, all without a terminal too."""

from __future__ import annotations

import codecs
import contextlib
import errno
import glob
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import click

from gguf_export.errors import ConvertError
from gguf_export.outputs import write_output
from pyflash.cli.streams import say
from pyflash.cli.text import MAX_TEXT_BYTES, Tell, decode_text, recoded, wide_encoding
from pyflash.native.errors import FileError, FormatError

_QUOTES = '"""'
_MAX_ENTRIES = 1000
_MAX_ENTRY_CHARACTERS = 20_000


class History:
    """What was typed, in a file that only its owner may read: an entry a line, the oldest dropped at the start.

    A file that cannot be read or written costs the history, never the chat. A device or pipe in its place, such as a
    link to /dev/null, means that none is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: list[str] = []
        with contextlib.suppress(OSError, ConvertError):
            if not self._is_kept():
                return
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            lines = [line for line in lines if line]
            self.entries = [_decoded(line) for line in lines[-_MAX_ENTRIES:]]
            if len(lines) > 2 * _MAX_ENTRIES:
                newest = "".join(line + "\n" for line in lines[-_MAX_ENTRIES:])
                write_output(path, newest.encode("utf-8"), streams=False, private=True)

    def _is_kept(self) -> bool:
        """Whether a file is there, or can be made. A pipe would be waited for."""
        try:
            return stat.S_ISREG(os.stat(self._path).st_mode)
        except FileNotFoundError:
            return True

    def add(self, entry: str) -> bool:
        """Appends an entry at once, so that a chat that is killed loses nothing; False when it is not worth it."""
        if not entry.strip() or len(entry) > _MAX_ENTRY_CHARACTERS or self.entries[-1:] == [entry]:
            return False
        self.entries.append(entry)
        with contextlib.suppress(OSError):
            if not self._is_kept():
                return True
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, (_encoded(entry) + "\n").encode("utf-8", "replace"))
            finally:
                os.close(file)
        return True


def _encoded(entry: str) -> str:
    return entry.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _decoded(line: str) -> str:
    # A doubled backslash must not lend its second half to an n: it waits as a character that no terminal sends.
    plain = line.replace("\\\\", "\0").replace("\\n", "\n").replace("\\r", "\r")
    return plain.replace("\0", "\\")


@dataclass(frozen=True)
class Entry:
    """What was typed at one prompt. quoted: it is no command, whatever it begins with."""

    text: str
    quoted: bool


class LineReader:
    """Reads entries from stdin. A line ending with a backslash goes on in the next, and so does anything in \"\"\"."""

    def __init__(self, terminal: bool, history: History | None, complete: Callable[[str], list[str]],
                 tell: Tell = say) -> None:
        """complete: the possible endings of a line, each with its beginning. tell: gets what a person should know."""
        self.keep_history = True
        self._terminal = terminal
        self._history = history
        self._tell = tell
        self._n_lines = 0
        self._readline = _readline(complete) if terminal else None
        for entry in history.entries if history is not None else ():
            self._offer(entry)

    def _offer(self, entry: str) -> None:
        """Lets the keys that go back bring an entry."""
        if self._readline is not None:
            with contextlib.suppress(ValueError):  # the terminal's locale cannot write it, or it holds a zero byte
                self._readline.add_history(entry)

    def read(self) -> Entry | None:
        """The next entry; None at the end of the input. KeyboardInterrupt drops what has been typed of it."""
        line = self._line(">>> ")
        if line is None:
            return None
        if line.lstrip().startswith(_QUOTES):
            return self._quoted("", line.lstrip()[len(_QUOTES) :])
        is_command = line.lstrip().startswith("/") and "\n" not in line  # a pasted text may begin with a slash
        if is_command and line.count(_QUOTES) == 1:  # /system """...
            command, _, rest = line.strip().partition(_QUOTES)
            return self._quoted(command, rest)
        while line.endswith("\\") and not is_command:
            more = self._line("... ")
            if more is None:
                break
            line = f"{line[:-1]}\n{more}"
        text = line.strip()
        self._remember(text)
        return Entry(text, quoted=not is_command)

    def _quoted(self, command: str, line: str) -> Entry | None:
        """The rest of a text of several lines, the first of which is line; it may be what a command takes."""
        lines, first = [], self._n_lines
        while not line.rstrip().endswith(_QUOTES):
            lines.append(line)
            more = self._line("... ")
            if more is None:
                problem = f'the text that {_QUOTES} began has no end and was not sent: close it with {_QUOTES}'
                if not self._terminal:
                    raise FormatError(f"line {first} of stdin: {problem}")
                self._tell(problem)
                return None
            line = more
        lines.append(line.rstrip()[: -len(_QUOTES)])
        text = "\n".join(lines).strip("\n")
        self._remember(f"{command}{_QUOTES}{text}{_QUOTES}")
        return Entry(command + text, quoted=not command)

    def _remember(self, entry: str) -> None:
        if not self._terminal or not self.keep_history:
            return
        if (self._history is None or self._history.add(entry)) and entry:
            self._offer(entry)

    def _line(self, prompt: str) -> str | None:
        self._n_lines += 1
        if not self._terminal:
            return self._piped_line()
        try:
            return recoded(input(prompt), "what you typed", self._tell)
        except EOFError:
            click.echo()
            return None
        except OSError as error:
            if error.errno == errno.EIO:  # the terminal is gone
                return None
            raise

    def _piped_line(self) -> str | None:
        """A line of stdin, read when it is wanted: whoever writes may wait for answers."""
        data = sys.stdin.buffer.readline(MAX_TEXT_BYTES + 1)
        if not data:
            return None
        source = f"line {self._n_lines} of stdin"
        if len(data) > MAX_TEXT_BYTES:
            raise FileError(f"{source} has more than {MAX_TEXT_BYTES >> 20} MiB, which no context holds")
        if self._n_lines == 1 and (encoding := wide_encoding(data)):
            raise FileError(f"stdin is {encoding}, of which no lines can be read: convert it to UTF-8, or use -f -")
        return decode_text(data, source, self._tell).removesuffix("\n")


_UTF8_LOCALES = ("C.UTF-8", "C.utf8", "en_US.UTF-8", "UTF-8")


def _write_utf8() -> None:
    """Gives readline, which goes by the C library's locale, UTF-8 where that locale only knows ASCII: LC_ALL=C, or one
    that is not installed. Python itself takes such terminals for UTF-8. Before readline is imported, which sets the
    locale of the environment whenever it reads a line."""
    import locale

    if sys.platform == "win32" or codecs.lookup(locale.nl_langinfo(locale.CODESET)).name != "ascii":
        return
    for name in _UTF8_LOCALES:
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)
            os.environ["LC_ALL"] = name
            return


def _readline(complete: Callable[[str], list[str]]) -> ModuleType | None:
    """The module, set up; None where there is none: Windows' console edits lines by itself."""
    _write_utf8()
    try:
        import readline
    except ImportError:
        return None
    if sys.platform == "win32":  # a stand-in: it can complete, but has not all that follows
        return None
    readline.set_auto_history(False)
    readline.set_completer_delims(" \t\n")
    readline.set_completer(_completer(readline, complete))
    if "libedit" in (readline.__doc__ or ""):
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        if os.environ.get("TERM", "dumb") != "dumb":
            # A pasted text of several lines comes as one entry; Python has switched this off for its own prompt.
            readline.parse_and_bind("set enable-bracketed-paste on")
    return readline


def _completer(readline: ModuleType, complete: Callable[[str], list[str]]) -> Callable[[str, int], str | None]:
    """readline completes a word, from the last space on, and asks for the candidates one by one."""
    found: list[str] = []

    def candidate(_word: str, index: int) -> str | None:
        if index == 0:
            begin = readline.get_begidx()
            found[:] = [line[begin:] for line in complete(readline.get_line_buffer()[: readline.get_endidx()])]
        return found[index] if index < len(found) else None

    return candidate


def complete_path(typed: str) -> list[str]:
    """Paths that begin as typed, folders with a slash at the end."""
    expanded = os.path.expanduser(typed)
    found = sorted(glob.glob(glob.escape(expanded) + "*"))
    kept = len(expanded)
    return [typed + path[kept:] + ("/" if os.path.isdir(path) else "") for path in found]
