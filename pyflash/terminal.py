"""Answers on the terminal: streaming one, and a simple chat."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from pyflash.session import Session
from pyflash.chat import Message

_HELP = "/clear: forget the conversation   /bye: leave (also Ctrl-D)   Ctrl-C: stop the answer"


class Answer:
    """Streams answers of one session: content to stdout; reasoning dimmed, and only on a terminal to stdout."""

    def __init__(self, session: Session, *, think: str, verbose: bool, **sampling: Any) -> None:
        self._session = session
        self._think = think
        self._verbose = verbose
        self._sampling = sampling

    def stream(self, messages: Sequence[Message], kept: list[str] | None = None) -> None:
        """Prints the answer as it comes. kept collects its content, also when Ctrl-C ends it."""
        started = time.monotonic()
        first: float | None = None
        n_prompt = 0
        count = 0
        finish = None
        try:
            pieces = self._session.chat(messages, think=self._think, **self._sampling)
            reused = self._session.position  # what is left of earlier turns
            for piece in pieces:
                if first is None:
                    first = time.monotonic()
                    n_prompt = self._session.position - reused
                count += 1
                finish = piece.finish
                if piece.kind == "content":
                    click.echo(piece.text, nl=False)
                    if kept is not None:
                        kept.append(piece.text)
                else:
                    on_terminal = sys.stdout.isatty()
                    click.echo(click.style(piece.text, dim=True), nl=False, err=not on_terminal)
        finally:
            if count:
                click.echo()
        if finish == "length" and self._session.position + 1 >= self._session.capacity:
            click.echo("pyflash: the context is full; -c makes it larger", err=True)
        if self._verbose and first is not None:
            self._print_speed(n_prompt, first - started, count, time.monotonic() - first)

    @staticmethod
    def _print_speed(n_prompt: int, prompt_seconds: float, n_answer: int, answer_seconds: float) -> None:
        prompt_rate = n_prompt / max(prompt_seconds, 1e-9)
        line = f"pyflash: {n_prompt} prompt tokens in {prompt_seconds:.2f} s ({prompt_rate:.1f}/s)"
        if n_answer > 1:
            rate = (n_answer - 1) / max(answer_seconds, 1e-9)
            line += f", {n_answer} answer tokens, {rate:.1f}/s after the first"
        click.echo(line, err=True)


def chat_loop(answer: Answer, opening: Sequence[Message]) -> None:
    """Reads a line, answers it, until Ctrl-D. On a terminal Ctrl-C stops an answer and keeps what there is."""
    messages: list[Message] = list(opening)
    prompt = ""
    if on_terminal := sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):  # Windows has its own line editing
            import readline  # noqa: F401  (gives input() line editing and history)
        click.echo(_HELP, err=True)
        prompt = ">>> "
    while True:
        line = _read_line(prompt)
        if line is None or line == "/bye":
            return
        if line == "/help":
            click.echo(_HELP, err=True)
        elif line == "/clear":
            messages = list(opening)
        elif line.startswith("/"):
            click.echo(f"there is no command {line.split()[0]}; {_HELP}", err=True)
        elif line:
            kept: list[str] = []
            messages.append({"role": "user", "content": line})
            try:
                answer.stream(messages, kept)
            except KeyboardInterrupt:
                if not on_terminal:
                    raise
                click.echo("(stopped)", err=True)
            messages.append({"role": "assistant", "content": "".join(kept)})


def _read_line(prompt: str) -> str | None:
    """One line without its end; None at the end of the input. Where there is a prompt, Ctrl-C clears the line."""
    while True:
        try:
            return input(prompt).strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not prompt:
                raise
            click.echo(err=True)
