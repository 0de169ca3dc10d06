"""Shows answers: on a terminal, in a pipe, or as JSON lines."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from typing import Any

import click

from pyflash.chat.conversation import Answer
from pyflash.chat.reply import ChatPiece
from pyflash.cli.chat.settings import Settings
from pyflash.cli.output import print_json
from pyflash.cli.streams import dimmed, on_terminal
from pyflash.machine.units import format_seconds
from pyflash.native.text import json_text, visible, visible_line

_REDRAW_SECONDS = 0.1
_SHOWN_FROM_TOKENS = 64  # fewer are evaluated in a blink, or in a few seconds on the slowest machine


class StatusLine:
    """One line on stderr that is written over and over and leaves no trace; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._active = on_terminal(sys.stderr)
        self._shown = False
        self._drawn = 0.0

    def show(self, text: str, at_once: bool = False) -> None:
        now = time.monotonic()
        if not self._active or (self._shown and not at_once and now - self._drawn < _REDRAW_SECONDS):
            return
        self._drawn, self._shown = now, True
        width = max(20, shutil.get_terminal_size().columns - 1)
        click.echo(f"\r{dimmed(text[:width])}\x1b[K", nl=False, err=True)

    def clear(self) -> None:
        if self._shown:
            self._shown = False
            click.echo("\r\x1b[K", nl=False, err=True)


@dataclass
class _Prefill:
    started: float
    total: int


class TextView:
    """Content to stdout; reasoning dimmed to a terminal, else to stderr; tool calls as JSON, one line each."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._status = StatusLine()
        self._terminal = on_terminal(sys.stdout)
        self._prefill: _Prefill | None = None
        self._reset()

    def _reset(self) -> None:
        self._kind = ""
        self._n_hidden = 0
        self._at_start = {False: True, True: True}  # of a line, of stdout and stderr

    def begin(self) -> None:
        self._reset()
        self._prefill = None

    def progress(self, done: int, total: int) -> None:
        if total < _SHOWN_FROM_TOKENS:
            return
        if self._prefill is None or self._prefill.total != total:
            self._prefill = _Prefill(time.monotonic(), total)
        elapsed = time.monotonic() - self._prefill.started
        line = f"reading {done:,} of {total:,} tokens ({done / total:.0%})"
        if done and elapsed > 0:
            rate = done / elapsed
            line += f", {rate:.{0 if rate >= 100 else 1}f} tok/s, {format_seconds((total - done) / rate)} left"
        self._status.show(line)

    def piece(self, piece: ChatPiece) -> None:
        if piece.kind == "reasoning" and self._settings.hide_thinking:
            self._n_hidden += 1
            self._status.show(f"thinking... {self._n_hidden}", at_once=self._n_hidden == 1)
        elif piece.kind == "tool_call":
            self._tool_call(piece)
        elif piece.text:
            self._status.clear()
            self._text(piece.kind, piece.text)

    def _text(self, kind: str, text: str) -> None:
        if kind != self._kind:
            if self._kind:
                self._between(kind)
            self._kind = kind
        to_stderr = kind == "reasoning" and not self._terminal
        self._write(text, to_stderr, dim=kind == "reasoning")

    def _between(self, kind: str) -> None:
        """An empty line between parts of an answer that go to the same place."""
        self._end_line(False)
        self._end_line(True)
        if self._terminal and {kind, self._kind} == {"reasoning", "content"}:
            click.echo()

    def _tool_call(self, piece: ChatPiece) -> None:
        if piece.call is None:
            if piece.name:
                self._end_line(False)
                self._status.show(f"calling {visible_line(piece.name)}...")
            return
        self._status.clear()
        self._end_line(False)
        self._end_line(True)
        self._kind = "tool_call"
        self._write(call_line(piece.call) + "\n", False)

    def _write(self, text: str, to_stderr: bool, dim: bool = False) -> None:
        stream = sys.stderr if to_stderr else sys.stdout
        self._at_start[to_stderr] = text.endswith("\n")
        if on_terminal(stream):
            text = visible(text)
            text = dimmed(text) if dim else text
        click.echo(text, nl=False, err=to_stderr)

    def _end_line(self, of_stderr: bool) -> None:
        if not self._at_start[of_stderr]:
            click.echo(err=of_stderr)
            self._at_start[of_stderr] = True

    def end(self) -> None:
        self._status.clear()
        self._end_line(False)
        self._end_line(True)


def call_line(call: dict[str, Any]) -> str:
    """A tool call in one line: {"name": ..., "arguments": {...}}, with its id where it has one."""
    function = call["function"]
    named = {"id": call["id"]} if call.get("id") else {}
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        arguments = function["arguments"]
    return json_text({**named, "name": function["name"], "arguments": arguments})


class JsonView:
    """One JSON object a line: each piece, and at last {"done": true, ...}."""

    def __init__(self, settings: Settings, logprobs: int) -> None:
        self._settings = settings
        self._logprobs = logprobs
        self._status = StatusLine()

    def begin(self) -> None:
        pass

    def progress(self, done: int, total: int) -> None:
        if total >= _SHOWN_FROM_TOKENS and not on_terminal(sys.stdout):
            self._status.show(f"reading {done:,} of {total:,} tokens ({done / total:.0%})")

    def piece(self, piece: ChatPiece) -> None:
        self._status.clear()
        hidden = piece.kind == "reasoning" and self._settings.hide_thinking
        line: dict[str, Any] = {"kind": piece.kind, "text": piece.text}
        if piece.kind == "tool_call":
            line |= {"index": piece.index, "name": piece.name}
        if piece.call:
            line["call"] = piece.call
        if piece.problem:
            line["problem"] = piece.problem
        if self._logprobs:
            top = [{"token": other.token, "text": other.text, "logprob": other.logprob} for other in piece.top]
            line |= {"token": piece.token, "logprob": piece.logprob, "top": top}
        if not hidden and (piece.text or len(line) > (4 if piece.kind == "tool_call" else 2)):
            print_json(line)

    def end(self) -> None:
        self._status.clear()

    def finished(self, answer: Answer) -> None:
        """The last line."""
        print_json({
            "done": True,
            "finish": "interrupted" if answer.interrupted else answer.finish,
            "message": answer.message,
            "n_prompt": answer.n_prompt,
            "n_reused": answer.n_reused,
            "n_generated": answer.n_generated,
            "prompt_seconds": round(answer.prompt_seconds, 6),
            "generate_seconds": round(answer.generate_seconds, 6),
            "context_used": answer.used,
            "context": answer.capacity,
            "n_steps": answer.drafts.n_steps,
            "n_drafted": answer.drafts.n_drafted,
            "n_drafts_kept": answer.drafts.n_kept,
            "problems": list(answer.problems),
        })  # fmt: skip


def stats_line(answer: Answer) -> str:
    """Counts, speed and context of an answer."""
    made = f"{answer.n_generated} {'token' if answer.n_generated == 1 else 'tokens'}"
    if answer.finish == "length" and not answer.context_full:
        made += " (max_tokens)"
    if answer.n_generated > 1 and answer.generate_seconds > 0:
        made += f", {_rate(answer.n_generated - 1, answer.generate_seconds)}"  # the first one is the prompt's work
    if answer.drafts.n_drafted:
        made += (f", {answer.drafts.tokens_per_step:.1f} tokens a step, "
                 f"{answer.drafts.n_kept / answer.drafts.n_drafted:.0%} of drafts kept")
    prompt = f"prompt {answer.n_evaluated:,}"
    if answer.n_reused:
        prompt += f" + {answer.n_reused:,} reused"
    if answer.n_evaluated and answer.prompt_seconds > 0:
        prompt += f", {_rate(answer.n_evaluated, answer.prompt_seconds)}"
    return f"{made} | {prompt} | context {answer.used:,}/{answer.capacity:,}"


def _rate(count: int, seconds: float) -> str:
    rate = count / max(seconds, 1e-9)
    return f"{rate:.{0 if rate >= 100 else 1}f} tok/s"


def remarks(answer: Answer, stopped: bool = True) -> list[str]:
    """What a person should know about an answer, in lines for stderr. stopped: tell that Ctrl-C ended it."""
    lines = []
    if answer.problems:
        lines.append("pyflash: the answer's format is broken: " + "; ".join(dict.fromkeys(answer.problems)))
    if answer.context_full:
        larger = "-c makes it larger, " if answer.can_grow else ""
        lines.append(f"pyflash: the context is full; {larger}/undo and /clear make room in a chat")
    if answer.interrupted and stopped:
        lines.append("(stopped)" if answer.n_generated else "(stopped before the answer began: nothing has changed)")
    return lines
