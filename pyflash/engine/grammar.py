"""Grammars that a generated text must match, by llguidance: the extra "grammar" of the package."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyflash.engine.schema import Validator, one_line, read_schema, without_patterns
from pyflash.native import forks
from pyflash.native.errors import AnswerError, ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from pyflash.engine.model import ModelInfo
    from pyflash.engine.tokenizer import Tokenizer

# Between JSON's tokens: nothing, a space, or a new line with its indentation. Without a bound, models happen to write
# white space for ever.
_JSON_OPTIONS = {"whitespace_pattern": r"( |\n[ \t]{0,40})?"}

_making = forks.Lock()


def _llguidance() -> Any:
    try:
        import llguidance
        import llguidance.numpy
    except ImportError as error:
        raise UnsupportedError("grammars and JSON output need one more package: pip install llguidance"
                               ) from error  # fmt: skip
    return llguidance


def _text(what: str, value: str) -> str:
    if not isinstance(value, str):
        raise ArgumentError(f"the {what} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"the {what} holds half a character (a lone surrogate)") from None
    return value


def _problem(source: str) -> str:
    """What is wrong with a grammar, "" when nothing is."""
    return one_line(_llguidance().LLMatcher.validate_grammar(source))


def _of_schema(schema: Mapping[str, Any]) -> str:
    """llguidance's grammar of a schema that has its options."""
    source: str = _llguidance().LLMatcher.grammar_from_json_schema(json.dumps(schema, ensure_ascii=False))
    return source


def _of_lark(text: str) -> str:
    source: str = _llguidance().LLMatcher.grammar_from_lark(text)
    return source


def _refuses(pattern: str) -> bool:
    return bool(_problem(_of_schema({"type": "string", "pattern": pattern})))


def _enforceable(schema: dict[str, Any]) -> tuple[dict[str, Any], Validator | None]:
    """As much of a schema as a grammar can hold, with llguidance's options, and what checks the rest, if there is any.

    ArgumentError where nothing fits the schema, or it is none.
    """
    options = {**_options_of(schema), **_JSON_OPTIONS}
    strict = {**schema, "x-guidance": {**options, "lenient": False, "coerce_one_of": False}}
    problem = _problem(_of_schema(strict))
    if not problem:
        return strict, None
    lenient = {**without_patterns(schema, _refuses), "x-guidance": {**options, "lenient": True}}
    if still := _problem(_of_schema(lenient)):
        raise ArgumentError(f"the grammar cannot be used: {still}")
    return lenient, Validator({key: value for key, value in schema.items() if key != "x-guidance"})


def _options_of(schema: dict[str, Any]) -> dict[str, Any]:
    options = schema.get("x-guidance", {})
    if not isinstance(options, dict):
        raise ArgumentError('"x-guidance" of a schema must be an object')
    return options


class Grammar:
    """What a generated text must match as a whole. Sessions, models and threads may share one.

    The four ways to make one raise ArgumentError for what is not understood, and UnsupportedError without the extra.
    """

    def __init__(self, source: str, check: Callable[[str], None] | None = None) -> None:
        """Not for callers: use json_schema(), json(), regex() or lark().

        check: raises AnswerError for finished texts that the grammar allows and should not.
        """
        if problem := _problem(source):
            raise ArgumentError(f"the grammar cannot be used: {problem}")
        self._source = source
        self.check = check

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """JSON that a JSON schema, given as a mapping or as JSON text, allows; object members in its order.

        What cannot be enforced token by token, such as "not", "if", "uniqueItems" or a pattern with look-ahead, is left
        out, and the finished text validated by the package jsonschema (UnsupportedError without it): AnswerError then
        where it does not match. A text that was cut is not checked. What "$ref" names is never fetched.
        """
        enforceable, check = _enforceable(read_schema(schema))
        return cls(_of_schema(enforceable), check)

    @classmethod
    def json(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that a regular expression matches; the notation of Rust's regex package, without look-around."""
        return cls(_llguidance().LLMatcher.grammar_from_regex(_text("pattern", pattern)))

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Text of a context-free grammar in llguidance's variant of the Lark notation; it begins with rule "start"."""
        return cls(_of_lark(_text("grammar", text)))

    def matcher(self, tokenizer: Tokenizer, info: ModelInfo) -> Matcher:
        """A new match of this grammar, from its beginning, by the tokens of a model."""
        return Matcher(self._source, tokenizer, info)


def json_or(schema: Mapping[str, Any], other: str, rules: str) -> Grammar:
    """JSON of a schema, or else what another rule allows. other: an expression of lark()'s notation; rules: what it needs."""
    enforceable, check = _enforceable(read_schema(schema))
    return Grammar(_of_lark(f"start: answer | {other}\nanswer: %json {json.dumps(enforceable)}\n{rules}"), check)


def json_or_calls(schema: Mapping[str, Any], marker: int, names: Iterable[str] | None = None) -> Grammar:
    """JSON of a schema, or else tool calls; marker is the id of the token that those contain, names are the tools' (None:
    any)."""
    any_head = r'/invoke name="[^"\n]+">\n/'
    heads = [json.dumps(f'invoke name="{name}">\n', ensure_ascii=False) for name in names or ()]
    mark = f"<[{marker}]>"
    # The marker, which no text can contain, ends what is read as STRING.
    return json_or(schema, "calls", f"""\
calls: "\\n\\n<" {mark} "tool_calls>\\n<" call ("\\n<" call)* "\\n</" {mark} "tool_calls>"
call: {mark} HEAD ("<" parameter ("\\n<" parameter)*)? "\\n</" {mark} "invoke>"
parameter: {mark} (STRING | VALUE value "</") {mark} "parameter>"
value: %json {json.dumps({"x-guidance": _JSON_OPTIONS})}
HEAD: {" | ".join(heads) or any_head}
STRING: /parameter name="[^"\\n]+" string="true">(?s:.)*<\\//
VALUE: /parameter name="[^"\\n]+" string="false">/
""")


class Matcher:
    """A text on its way through a grammar. For one thread."""

    def __init__(self, source: str, tokenizer: Tokenizer, info: ModelInfo) -> None:
        module = _llguidance()
        self._fill = module.numpy.fill_next_token_bitmask
        self._matcher = module.LLMatcher(_vocabulary(tokenizer, info), source, log_level=0)
        self._mask = np.zeros((1, (info.n_vocab + 31) // 32), dtype=np.int32)
        if problem := self._problem():
            raise ArgumentError(f"the grammar cannot be used: {problem}")

    def _problem(self) -> str:
        return one_line(self._matcher.get_error())[:200] if self._matcher.is_error() else ""

    def _check(self) -> None:
        if problem := self._problem():
            raise AnswerError(f"the grammar cannot go on: {problem}")

    def allowed(self) -> npt.NDArray[np.uint32]:
        """A bit for each token that may come next, the lowest first; valid until the next call."""
        self._fill(self._matcher, self._mask)
        self._check()
        words: npt.NDArray[np.uint32] = self._mask[0].view(np.uint32)
        return words

    def consume(self, token: int) -> None:
        """Goes on by a token that was allowed."""
        self._matcher.consume_token(token)
        self._check()

    def forced(self) -> list[int]:
        """Tokens of the text that must come next, as the tokenizer cuts it: allowed() may have others of the same text."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        self._check()
        return tokens

    @property
    def is_over(self) -> bool:
        """Whether the text is complete, and nothing can follow."""
        return bool(self._matcher.is_stopped())


class _Vocabulary:
    """A model's tokens in the form that llguidance asks for."""

    def __init__(self, tokenizer: Tokenizer, info: ModelInfo) -> None:
        self.tokens, self.special_token_ids = tokenizer.vocabulary()
        self.eos_token_id = info.eos_token
        self.bos_token_id = info.bos_token if info.bos_token >= 0 else None
        # One of its own: it is called from where Python's garbage collector sees no cycles.
        self._encode = tokenizer.retained(share=False).encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def _vocabulary(tokenizer: Tokenizer, info: ModelInfo) -> Any:
    """llguidance's form of a vocabulary: made once a model, because that takes seconds."""
    with _making:
        found = tokenizer.made.get("llguidance")
        if found is None:
            module = _llguidance()
            wrapped = module.TokenizerWrapper(_Vocabulary(tokenizer, info))
            found = tokenizer.made["llguidance"] = module.LLTokenizer(wrapped, n_vocab=info.n_vocab)
        return found
