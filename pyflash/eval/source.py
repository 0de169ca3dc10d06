"""Where windows come from: a text as a model reads it, or a file of log-probabilities."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gguf_export.errors import ConvertError
from gguf_export.reader import read_gguf
from pyflash.engine.model import Model
from pyflash.eval.logits_file import LogitsFile
from pyflash.eval.statistics import Tokens32
from pyflash.eval.windows import TextRules, Windows, encode_text, plan_windows, text_pieces, tokens_needed
from pyflash.native.errors import ArgumentError, FormatError


class Text:
    """A UTF-8 text file. special: whether text that spells special tokens becomes those. stream: what is read in the
    file's place, once; path is then what errors call it."""

    def __init__(self, path: str, special: bool = False, stream: BinaryIO | None = None) -> None:
        self.path = path
        self.special = special
        self._stream = stream
        self._streamed: list[str] | None = None

    def pieces(self) -> Iterator[str]:
        """As it is: newlines are not translated."""
        if self._stream is None:
            with open(self.path, encoding="utf-8", newline="") as file:
                yield from text_pieces(file, self.path)
            return
        if self._streamed is None:  # for two models it is read twice
            file = io.TextIOWrapper(self._stream, encoding="utf-8", newline="")
            try:
                self._streamed = list(text_pieces(file, self.path))
            finally:
                file.detach()  # whoever opened the stream closes it
        yield from self._streamed


class Subject:
    """A model file that is evaluated, and how it reads texts."""

    def __init__(self, model: Model, file: str) -> None:
        self.model = model
        self.file = file
        try:
            keys = read_gguf(Path(file)).keys
        except ConvertError as error:
            raise FormatError(str(error)) from error
        self._rules = TextRules.of(keys, model.info.bos_token)

    @property
    def bos(self) -> int | None:
        """What stands at the beginning of each window, where the file asks for it."""
        return self._rules.bos if self._rules.add_bos else None

    def tokens(self, text: Text, enough: int | None = None) -> Tokens32:
        """The text's tokens; where there are more, the first `enough`."""
        return encode_text(text.pieces(), self.model.tokenizer, self._rules, text.special, enough)


def text_windows(
    subject: Subject, text: Text, n_ctx: int, chunks: int | None = None, stride: int | None = None
) -> Windows:
    tokens = subject.tokens(text, tokens_needed(n_ctx, chunks, stride))
    return plan_windows(tokens, n_ctx, chunks, stride, subject.bos)


def common_windows(subject: Subject, base: Subject, text: Text, n_ctx: int, chunks: int | None = None) -> Windows:
    """The windows of a text that two models write in the same tokens. ArgumentError when they do not."""
    ours, theirs = subject.model.info.n_vocab, base.model.info.n_vocab
    if ours != theirs:
        raise ArgumentError(f"the vocabularies differ: {ours:,} tokens in {subject.file}, {theirs:,} in {base.file}; "
                            "compare files of the same model")
    windows = text_windows(subject, text, n_ctx, chunks)
    if base.file != subject.file:
        others = base.tokens(text, tokens_needed(n_ctx, chunks, None))
        if windows.tokens.tolist() != others.tolist() or subject.bos != base.bos:
            raise ArgumentError(f"the vocabularies differ: {subject.file} and {base.file} write {text.path} in "
                                "different tokens; compare files of the same model")
    return windows


def kept_windows(subject: Subject, kept: LogitsFile, text: Text | None, chunks: int | None = None) -> Windows:
    """The windows of a file of log-probabilities. ArgumentError when it cannot be this model's, or is of another
    text."""
    ours = subject.model.info.n_vocab
    if kept.n_vocab != ours:
        raise ArgumentError(f"the vocabularies differ: {ours:,} tokens in {subject.file}, {kept.n_vocab:,} in "
                            f"{kept.path}; compare files of the same model")
    windows = kept.windows
    if text is not None:
        tokens = subject.tokens(text, len(windows.tokens))
        if tokens.tolist() != windows.tokens.tolist():
            raise ArgumentError(f"{kept.path} was made of other tokens than {text.path} gives: give no text, or make "
                                "it again")
    return dataclasses.replace(windows, count=min(chunks or windows.count, windows.count), bos=subject.bos)
