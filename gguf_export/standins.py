"""What stands in a file's place when a download went wrong: links to nothing, Git LFS pointers, web pages."""

from __future__ import annotations

import os
from pathlib import Path

from gguf_export.errors import ConvertError, reason

HEAD_BYTES = 512  # of a file, which standin_reason() looks at

_LFS = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body")


def is_there(path: Path) -> bool:
    """Whether the file exists. ConvertError for a link that leads nowhere and for anything that is no regular file."""
    try:
        if path.is_file():
            return True
        if not os.path.lexists(path):
            return False
        if path.is_symlink() and not path.exists():
            raise ConvertError(
                f"{path} is a link to {os.readlink(path)}, which is not there: download the checkpoint again"
            )
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {reason(error)}") from None
    raise ConvertError(f"{path} is no regular file: download the checkpoint again")


def standin_reason(head: bytes) -> str | None:
    """What a file that begins with these bytes is instead of itself, and the way out; None for any other."""
    if head.startswith(_LFS):
        return "is a Git LFS pointer, not the file itself: run `git lfs pull` there, or download it again"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_WEB_PAGE):
        return "is a web page, not the file itself: download it again (logged in, where the model asks for that)"
    return None
