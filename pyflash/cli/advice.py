"""The way out of an error in the command line's words: what lies below it names the Python API's notions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from pyflash.engine.session import Session
from pyflash.native.errors import ArgumentError, ContextFullError, Error, FormatError

Ways = Mapping[type[Error], str]

# Arguments of gguf_export that its messages name.
OPTIONS = {
    'profile="native"': "--profile native",
    'profile="compat"': "--profile compat",
    'dense="bf16"': "--dense bf16",
    'dense="f32"': "--dense f32",
    'experts="bf16"': "--experts bf16",
    "mtp=True": "--mtp",
    "force=True": "--force",
    "resume=True": "--resume",
    "restart=True": "--restart",
    "place='link'": "--link",
}

LOADING: Ways = {
    ContextFullError: "a larger -c holds more",
    ArgumentError: "start with the same --precision and --cache-type, or take another file",
    FormatError: "/save and --session write them",
}


def answering(session: Session) -> Ways:
    """For what a session is asked in a conversation."""
    larger = "a larger -c holds more; " if session.capacity < session.model.info.n_ctx_train else ""
    return {ContextFullError: f"{larger}in a chat /undo and /clear make room"}


@contextlib.contextmanager
def ways_out(ways: Ways) -> Iterator[None]:
    """Errors raised within, told apart as what is wrong and a way out, get the one for their class."""
    try:
        yield
    except Error as error:
        way = next((text for kind, text in ways.items() if isinstance(error, kind)), None)
        if way is None or not error.way_out:
            raise
        raise type(error)(f"{error.what}: {way}") from error


def in_options(text: str) -> str:
    """What gguf_export says, with the options' names."""
    for argument, option in OPTIONS.items():
        text = text.replace(argument, option)
    return text
