"""What a conversation can be told about answering: the options of `pyflash run` and of /set in the chat."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, field
from typing import Any

import click

from pyflash.chat.reply import THINKING_MODES
from pyflash.chat.settings import AnswerSettings
from pyflash.engine.sampling import SamplingOptions
from pyflash.engine.speculation import DRAFTERS
from pyflash.native.errors import ArgumentError


def _finite(number: Any, kind: click.ParamType[Any], param: click.Parameter | None, ctx: click.Context | None) -> float:
    """click lets NaN and infinity pass."""
    if not math.isfinite(number):
        kind.fail(f"{number} is not a number", param, ctx)
    return float(number)


class FiniteRange(click.FloatRange):
    """A number within bounds."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return _finite(super().convert(value, param, ctx), self, param, ctx)


class FiniteFloat(click.types.FloatParamType):
    """Any number."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return _finite(super().convert(value, param, ctx), self, param, ctx)


@dataclass(frozen=True)
class Setting:
    """One thing to set. keyword: its name as an argument of Session.chat(). default: where the model has none."""

    name: str
    keyword: str
    kind: click.ParamType[Any]
    default: Any
    help: str
    short: str | None = None


_UNIT = FiniteRange(0, 1)

# In the order in which they act.
SAMPLING = (
    Setting("repeat_penalty", "repetition_penalty", FiniteRange(0, min_open=True), 1.0,
            "Divide the logit of each token that was there lately by this; 1: off."),
    Setting("presence_penalty", "presence_penalty", FiniteFloat(), 0.0,
            "Subtract this from the logit of each such token; 0: off."),
    Setting("frequency_penalty", "frequency_penalty", FiniteFloat(), 0.0,
            "Subtract this for each time it was there; 0: off."),
    Setting("repeat_last_n", "penalty_last_n", click.IntRange(-1, 2**31 - 1), 64,
            "How many tokens \"lately\" is for the penalties; 0: none, -1: all."),
    Setting("top_k", "top_k", click.IntRange(0, 2**31 - 1), 0, "Keep the k likeliest; 0: all."),
    Setting("top_p", "top_p", _UNIT, 1.0, "Nucleus sampling; 1: off."),
    Setting("min_p", "min_p", _UNIT, 0.0, "Drop tokens less likely than this share of the likeliest; 0: off."),
    Setting("temp", "temperature", FiniteRange(0), 1.0, "Temperature; 0: likeliest."),
    Setting("seed", "seed", click.INT, None, "Makes the answer repeatable; -1: random."),
)
MAX_TOKENS = Setting("max_tokens", "max_tokens", click.IntRange(1), None, "Most tokens to generate.", "-n")

_SWITCH = {"on": True, "off": False, "true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
_OTHERS = {
    "think": "off, low, high or max",
    "draft": "What proposes tokens to be checked at once: auto, off, ngram, mtp or dspark.",
    "stop": 'Strings that end the answer: "..." "..."; off: none.',
    "hide_thinking": "Show only that the model thinks, not what: on or off.",
    "stats": "A line about speed and context after each answer: on or off.",
    "history": "Keep what is typed for the next chat: on or off.",
}
_ALIASES = {"temperature": "temp", "repetition_penalty": "repeat_penalty", "penalty_last_n": "repeat_last_n",
            "num_predict": "max_tokens", "n_predict": "max_tokens"}  # fmt: skip
_WITHOUT = ("off", "none", "default")


def _defaults() -> dict[str, Any]:
    return {setting.keyword: setting.default for setting in SAMPLING}


@dataclass
class Settings(AnswerSettings):
    """What a terminal's user can set. defaults: what the sampling options are that were not chosen."""

    hide_thinking: bool = False
    stats: bool = False
    history: bool = True
    defaults: dict[str, Any] = field(default_factory=_defaults)

    def follow(self, recommended: SamplingOptions) -> None:
        """Makes what a model recommends the defaults."""
        self.defaults = {**_defaults(), **recommended}

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of Session.chat()."""
        return {**self.defaults, **super().arguments()}

    def change(self, name: str, text: str) -> None:
        """Sets what /set NAME TEXT says. ArgumentError in one line for what does not exist or makes no sense."""
        name = canonical(name)
        text = text.strip()
        numeric = _NUMERIC.get(name)
        if name == "stop":
            self.stop = () if text.lower() in _WITHOUT else stop_strings(_words(text))
        elif name == "think":
            if text not in THINKING_MODES:
                raise ArgumentError(f"think is one of {', '.join(THINKING_MODES)}, not {text!r}")
            self.think = text
        elif name == "draft":
            if text not in DRAFTERS:
                raise ArgumentError(f"draft is one of {', '.join(DRAFTERS)}, not {text!r}")
            self.draft = text
        elif numeric is None:
            if text.lower() not in _SWITCH:
                raise ArgumentError(f"{name} is on or off, not {text!r}")
            setattr(self, name, _SWITCH[text.lower()])
        else:
            self._change_number(numeric, text)

    def _change_number(self, setting: Setting, text: str) -> None:
        if text.lower() == "default" and setting is not MAX_TOKENS:
            self.sampling.pop(setting.keyword, None)
            return
        if text.lower() in _WITHOUT:
            value = setting.default
        else:
            try:
                value = setting.kind.convert(text, None, None)
            except click.BadParameter as error:
                raise ArgumentError(f"{setting.name}: {error.message}") from None
        if setting is MAX_TOKENS:
            self.max_tokens = value
        else:
            self.sampling[setting.keyword] = value

    def shown(self, name: str) -> str:
        """A value as /set takes it."""
        name = canonical(name)
        numeric = _NUMERIC.get(name)
        value = self.arguments()[numeric.keyword] if numeric else getattr(self, name)
        if name == "stop":
            return " ".join(f'"{escaped(text)}"' for text in value) or "off"
        if isinstance(value, bool):
            return "on" if value else "off"
        return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


_NUMERIC = {setting.name: setting for setting in (*SAMPLING, MAX_TOKENS)}


def canonical(name: str) -> str:
    """The name of a setting, also written with dashes or as others call it."""
    plain = name.lower().lstrip("-").replace("-", "_")
    plain = _ALIASES.get(plain, plain)
    if plain not in _NUMERIC and plain not in _OTHERS:
        raise ArgumentError(f"there is no setting {name!r}; /set lists them")
    return plain


def helps() -> dict[str, str]:
    """What each setting does, by its name."""
    return {**{name: setting.help for name, setting in _NUMERIC.items()}, **_OTHERS}


def _words(text: str) -> list[str]:
    """Words as a shell splits them, backslashes left alone."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.escape = lexer.commenters = ""
    try:
        return list(lexer)
    except ValueError:
        raise ArgumentError(f"a quote is not closed in {text!r}") from None


def stop_strings(texts: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    r"""Stop strings as typed, where \n, \t and \\ stand for what they do in Python. ArgumentError for empty ones."""
    found = tuple(_unescaped(text) for text in texts)
    if not found or not all(found):
        raise ArgumentError("a stop string is empty")
    return found


def _unescaped(text: str) -> str:
    out, rest = "", text
    while rest:
        known = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}.get(rest[:2])
        out += known or rest[0]
        rest = rest[2 if known else 1 :]
    return out


def escaped(text: str) -> str:
    """The inverse of what stop_strings() does to one of them."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace("\t", r"\t")
