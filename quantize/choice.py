"""Which type each tensor of a GGUF file is to become when it is quantised, and why another one than asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from pyflash.native.block_types import BLOCK_TYPES
from quantize.blocks import WRITABLE
from quantize.plan import GGMLType, block_shape

KEEP = "keep"
# By what they cost, the largest first. Those after MXFP4 are smaller than it.
EXPERT_TYPES = (KEEP, "Q8_0", "Q6_K", "Q5_K", "Q4_K", "MXFP4", "IQ3_S", "Q3_K", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS",
                "IQ2_XXS")  # fmt: skip
DENSE_TYPES = (KEEP, "Q8_0", "Q6_K", "Q5_K", "Q4_K")
HEAD_TYPES = (KEEP, "BF16", "Q8_0", "Q6_K")
TENSOR_TYPES = (KEEP, "MXFP4", "BF16", "Q8_0", *sorted(WRITABLE))

# What these hold is what a model was trained in, or so near to it that quantising it loses little more.
_SOURCES = ("F32", "F16", "BF16", "Q8_0", "MXFP4", "NVFP4")

_EXPERTS = re.compile(r"blk\.\d+\.ffn_(gate|up|down)_exps\.weight")
_DENSE = re.compile(
    r"blk\.\d+\.(attn_(q_a|q_b|kv|output_a|output_b)|ffn_(gate|up|down)_shexp|nextn\.(e_proj|h_proj|eh_proj))\.weight"
)
_HEAD = ("output.weight", "token_embd.weight")


class Group(Enum):
    """What an option names. KEPT is never quantised: router, mHC, compressors, indexer, norms, sinks, biases, ids."""

    EXPERTS = "experts"
    DENSE = "dense"
    HEAD = "head"
    KEPT = "kept"


def group_of(name: str) -> Group:
    """Of a tensor by its name in a GGUF file."""
    if _EXPERTS.fullmatch(name):
        return Group.EXPERTS
    if _DENSE.fullmatch(name):
        return Group.DENSE
    return Group.HEAD if name in _HEAD else Group.KEPT


def bits(kind: GGMLType) -> float:
    """A weight's."""
    values, nbytes = block_shape(kind)
    return 8 * nbytes / values


def kind_named(name: str) -> GGMLType:
    """Raises KeyError for a name that ggml has not."""
    return GGMLType({known.name: known.number for known in BLOCK_TYPES.values()}[name])


class ChoiceError(ValueError):
    """A type that cannot be had, or makes no sense; the text is one sentence."""


@dataclass(frozen=True)
class Wishes:
    """experts, dense, head: a name of EXPERT_TYPES, DENSE_TYPES, HEAD_TYPES. tensor_types: (pattern, type of
    TENSOR_TYPES): tensors in whose name the pattern is found; of several that fit the last one counts."""

    experts: str = KEEP
    dense: str = "Q8_0"
    head: str = "BF16"
    tensor_types: tuple[tuple[str, str], ...] = ()


def _named(what: str, name: str, allowed: Sequence[str]) -> str:
    for each in allowed:
        if name.lower() == each.lower():
            return each
    known = name.upper() in {kind.name for kind in BLOCK_TYPES.values()}
    why = "is not written: it is larger or worse than others that are" if known else "is no type"
    raise ChoiceError(f"{what} is {name!r:.40}, which {why}; choose one of {', '.join(allowed)}")


@dataclass
class Chooser:
    """Chooses for one tensor after another; notes() tells afterwards where it is not what was asked for."""

    wishes: Wishes
    _stays: dict[str, list[str]] = field(default_factory=dict)  # why -> tensors
    _matched: dict[str, set[bool]] = field(default_factory=dict)  # pattern -> whether tensors that may change had it

    def __post_init__(self) -> None:
        self._by_group = {
            Group.EXPERTS: _named("experts", self.wishes.experts, EXPERT_TYPES),
            Group.DENSE: _named("dense", self.wishes.dense, DENSE_TYPES),
            Group.HEAD: _named("head", self.wishes.head, HEAD_TYPES),
            Group.KEPT: KEEP,
        }
        self._patterns = []
        for pattern, name in self.wishes.tensor_types:
            try:
                compiled = re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ChoiceError(f"{pattern!r:.80} is no regular expression: {error}") from None
            self._patterns.append((pattern, compiled, _named(f"the type of {pattern!r:.80}", name, TENSOR_TYPES)))

    def _wanted(self, name: str) -> str:
        group = group_of(name)
        wanted = self._by_group[group]
        for pattern, compiled, kind in self._patterns:
            if compiled.search(name):
                self._matched.setdefault(pattern, set()).add(group is not Group.KEPT)
                wanted = kind
        return KEEP if group is Group.KEPT else wanted

    def choose(self, name: str, stored: GGMLType, columns: int) -> GGMLType:
        """stored: the type that the tensor has, or that it gets in a file without loss. ChoiceError where what is asked
        for loses and saves nothing, or would quantise twice."""
        wanted = self._wanted(name)
        if wanted == KEEP or wanted == stored.name:
            return stored
        kind = kind_named(wanted)
        if bits(kind) >= bits(stored):
            return self._no_gain(name, stored, kind)
        if stored.name not in _SOURCES:
            raise ChoiceError(
                f"{name} is {stored.name} already, and quantising it again to {wanted} loses more than quantising the "
                'original: take that, or "keep"'
            )
        if kind is GGMLType.MXFP4:
            raise ChoiceError(f"{name} is {stored.name}: only experts that are FP4 can be MXFP4, others are not made so")
        if columns % block_shape(kind)[0] == 0:
            return kind
        block, fallback = block_shape(kind)[0], GGMLType.Q8_0
        if columns % block_shape(fallback)[0] or bits(fallback) >= bits(stored):
            fallback = stored
        if fallback is not kind:
            why = f"their rows of {columns:,} values are no multiple of {block}, which {wanted} needs"
            self._stay(f"{'stay' if fallback is stored else 'become'} {fallback.name}: {why}", name)
        return fallback

    def _no_gain(self, name: str, stored: GGMLType, kind: GGMLType) -> GGMLType:
        if stored is GGMLType.MXFP4 and group_of(name) is Group.EXPERTS:
            raise ChoiceError(
                f"{name} is MXFP4, {bits(stored):g} bits a weight, which holds the published FP4 exactly: {kind.name} has "
                f'{bits(kind):g} and can only lose; take "keep", or a smaller type: {", ".join(EXPERT_TYPES[6:])}'
            )
        self._stay(f"stay {stored.name}: as {kind.name} they would be no smaller and no better", name)
        return stored

    def _stay(self, why: str, name: str) -> None:
        self._stays.setdefault(why, []).append(name)

    def notes(self) -> list[str]:
        """A line each. ChoiceError for a pattern that no tensor has, or only such as are always kept."""
        for pattern, _, _ in self._patterns:
            found = self._matched.get(pattern)
            if not found:
                raise ChoiceError(f"no tensor's name has {pattern!r:.80} in it")
            if True not in found:
                raise ChoiceError(
                    f"{pattern!r:.80} names only tensors that are always kept: router, mHC, compressors, indexer, norms, "
                    "sinks, biases and ids"
                )
        return [
            f"{len(names):,} tensor{'s' * (len(names) > 1)} ({names[0]}{', ...' * (len(names) > 1)}) {why}"
            for why, names in self._stays.items()
        ]


# llama.cpp's file types (general.file_type) by the type that most weights have; of variants the plainest.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 11,
               "Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25,
               "IQ3_S": 26, "IQ2_S": 28, "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4": 38,
               "NVFP4": 39, "Q1_0": 40, "Q2_0": 41}  # fmt: skip


def file_type(weights: dict[str, int]) -> int:
    """general.file_type of a file with so many weights of each type; ties go to the first name."""
    most = max(sorted(kind for kind in weights if kind in _FILE_TYPES), key=lambda kind: weights[kind], default="F32")
    return _FILE_TYPES[most]
