"""How results are written: for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pyflash.engine.model import ModelInfo
from pyflash.engine.options import cache_in_use
from pyflash.eval.statistics import PERCENTILES, Divergence, Estimate, Perplexity, Spread
from pyflash.eval.windows import Windows
from pyflash.machine.units import format_bytes

Fields = dict[str, Any]


def estimate_text(estimate: Estimate, digits: int = 4, unit: str = "") -> str:
    """ "13.5106 ± 0.0731", with as many more digits as a small error needs to be seen."""
    value, error = estimate.value, estimate.error
    if error is None or not math.isfinite(error):
        return f"{_fixed(value, digits)}{unit}"
    if 0 < error < 1:
        digits = max(digits, 2 - math.floor(math.log10(error)) - 1)
    return f"{_fixed(value, digits)} ± {_fixed(error, digits)}{unit}"


def _fixed(value: float, digits: int) -> str:
    if value and abs(value) < 10.0**-digits:
        return f"{value:.3g}"
    return f"{value:.{digits}f}" if abs(value) < 1e9 else f"{value:.6g}"


def describe_model(file: str, info: ModelInfo, cache: str) -> str:
    kept = cache_in_use(info.precision, cache)
    return (f"{file}: {info.profile}, {format_bytes(info.file_bytes)}; {info.precision}, cache {kept}, {info.cpu_isa}, "
            f"{info.n_threads} threads")


def describe_windows(text: str, windows: Windows, scored: int) -> str:
    step = "" if windows.step == windows.n_ctx else f", each {windows.step:,} further"
    return (f"{text}: {len(windows.tokens):,} tokens, {windows.count:,} windows of {windows.n_ctx:,}{step}; "
            f"{scored:,} tokens scored")


def _lines(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def perplexity_text(found: Perplexity) -> str:
    return _lines([("PPL", estimate_text(found.ppl)), ("ln(PPL)", estimate_text(found.nll))])


def _percent(estimate: Estimate) -> Estimate:
    return Estimate(100 * estimate.value, None if estimate.error is None else 100 * estimate.error)


def divergence_text(found: Divergence) -> str:
    rows = [
        ("PPL", estimate_text(found.ppl)),
        ("PPL(base)", estimate_text(found.base_ppl)),
        ("PPL / PPL(base)", estimate_text(found.ratio, 6)),
        ("PPL - PPL(base)", estimate_text(found.difference, 6)),
        ("ln(PPL / PPL(base))", estimate_text(found.log_ratio, 6)),
        ("correlation of ln(PPL)", "-" if found.correlation is None else f"{100 * found.correlation:.2f} %"),
        ("KL divergence", estimate_text(found.kld, 6)),
        ("Δp", estimate_text(_percent(found.p_diff), 3, " %")),
        ("RMS Δp", estimate_text(_percent(found.rms_p_diff), 3, " %")),
        ("same top token", estimate_text(_percent(found.same_top), 2, " %")),
    ]
    spread = [f"{'':10}{'KL divergence':>15}{'Δp':>12}"]
    spread += [f"{name:<10}{_fixed(kld, 6):>15}{_fixed(100 * p_diff, 3):>10} %" for name, kld, p_diff in (
        ("maximum", found.kld_spread.maximum, found.p_diff_spread.maximum),
        *((f"{each:g} %" if each != 50 else "median", found.kld_spread.percentiles[each],
           found.p_diff_spread.percentiles[each]) for each in PERCENTILES),
        ("minimum", found.kld_spread.minimum, found.p_diff_spread.minimum),
    )]  # fmt: skip
    return "\n".join([_lines(rows), "", *spread])


# -- for programs --


def _number(value: float | None) -> float | None:
    """JSON has no infinities."""
    return value if value is not None and math.isfinite(value) else None


def estimate_fields(name: str, estimate: Estimate) -> Fields:
    return {name: _number(estimate.value), f"{name}_error": _number(estimate.error)}


def windows_fields(windows: Windows) -> Fields:
    return {"tokens": len(windows.tokens), "n_ctx": windows.n_ctx, "step": windows.step, "windows": windows.count}


def perplexity_fields(found: Perplexity) -> Fields:
    return {"scored": found.count, **estimate_fields("ppl", found.ppl), **estimate_fields("nll", found.nll)}


def _spread_fields(spread: Spread) -> Fields:
    return {"minimum": spread.minimum, "maximum": spread.maximum,
            "percentiles": {f"{each:g}": value for each, value in spread.percentiles.items()}}


def divergence_fields(found: Divergence) -> Fields:
    """p_diff, rms_p_diff and same_top as fractions of 1."""
    fields: Fields = {"scored": found.count}
    for name in ("ppl", "nll", "base_ppl", "base_nll", "log_ratio", "ratio", "difference", "kld", "p_diff",
                 "rms_p_diff", "same_top"):
        fields |= estimate_fields(name, getattr(found, name))
    return {**fields, "correlation": _number(found.correlation), "kld_spread": _spread_fields(found.kld_spread),
            "p_diff_spread": _spread_fields(found.p_diff_spread)}
