"""Text that a question is made of: what bytes of files and of stdin say, and which bytes say nothing."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable
from pathlib import Path

from gguf_export.errors import reason
from pyflash.native.errors import FileError

MAX_TEXT_BYTES = 64 << 20
Tell = Callable[[str], None]

_MARKS = (  # UTF-32 first: its mark begins as that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
_MOST_FOREIGN = 1 / 4  # of the characters: what has more bytes that are no UTF-8 is something else


def wide_encoding(data: bytes) -> str | None:
    """"UTF-16" or "UTF-32" where text begins with that one's byte order mark."""
    return next((name for mark, name in _MARKS if data.startswith(mark)), None)


def decode_text(data: bytes, source: str, tell: Tell) -> str:
    """Text of a file or stream, by the same rules wherever it comes from.

    A byte order mark falls away, and lines end with a newline. tell: gets a line where bytes were replaced, or it is
    UTF-16. source: its name in messages. Raises FileError for what is no text.
    """
    if encoding := wide_encoding(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            raise FileError(f"{source} is not a text file, though it begins like {encoding}") from None
        tell(f"pyflash: {source} is {encoding}, and is read as that")
    else:
        data = data.removeprefix(codecs.BOM_UTF8)
        text = data.decode("utf-8", "replace")
        if "\0" not in text:
            _check_foreign(data, text, source, tell)
    if "\0" in text:
        raise FileError(f"{source} is not a text file: it holds zero bytes, as binary files do, and UTF-16 without a mark")
    return text.replace("\r\n", "\n")


def _check_foreign(data: bytes, text: str, source: str, tell: Tell) -> None:
    """Tells where bytes are no UTF-8. FileError when too many are."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        count = text.count("\ufffd") - data.count("\ufffd".encode())
        if count > _MOST_FOREIGN * len(text):
            raise FileError(f"{source} is not UTF-8 text: convert it first, for instance with iconv") from None
        tell(f"pyflash: warning: {source} is not all UTF-8: \ufffd stands in {count:,} place{'s' if count > 1 else ''}, "
             f"first for byte {error.start + 1:,}; if it has another encoding, convert it first, for instance with iconv")


def recoded(text: str, source: str, tell: Tell) -> str:
    """Text of an argument, a variable or a terminal: Python keeps bytes that are not of its encoding as surrogates."""
    if not any("\udc80" <= letter <= "\udcff" for letter in text):
        return text
    return decode_text(text.encode("utf-8", "surrogateescape"), source, tell)


def read_text(path: str, tell: Tell) -> str:
    """A text file to put into a question. FileError in one line for what cannot be one."""
    file = Path(os.path.expanduser(path))
    if "\0" in path:
        raise FileError("a path cannot hold a zero byte")
    if file.is_dir():
        raise FileError(f"{path} is a folder; give a file")
    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise FileError(f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB, which no context holds")
        with file.open("rb") as opened:  # a pipe's size is not known before
            data = opened.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise FileError(f"cannot read {path}: {reason(error)}") from error
    if len(data) > MAX_TEXT_BYTES:
        raise FileError(f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB, which no context holds")
    text = decode_text(data, path, tell)
    if not text.strip():
        raise FileError(f"{path} is empty")
    return text
