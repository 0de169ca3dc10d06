"""What the command line tells about a memory plan: whether it fits, and the way out."""

from __future__ import annotations

from pyflash.engine.model import Model
from pyflash.engine.session import Session
from pyflash.machine.memory_plan import Plan, check_room
from pyflash.machine.units import format_bytes
from pyflash.native.errors import MemoryLimitError


def warning_of(model: Model, session: Session, budget: int, n_sessions: int = 1) -> str | None:
    """A line to show before a run that does not fit this machine, or None. budget: the model's expert_budget, or 0.
    n_sessions: like this one.
    MemoryLimitError where the context cannot be filled at all."""
    try:
        lacking = check_room(model, session, n_sessions)
    except MemoryLimitError as error:
        other = ", or --cache-type reference" if "reference" in error.way_out else ""
        raise MemoryLimitError(f"{error.what}: take a smaller --ctx{other}") from error
    if lacking is None:
        return None
    needed, usable = map(format_bytes, lacking)
    kept = f", {format_bytes(budget)} of them stay in memory" if budget else ""
    return (f"this takes {needed} of memory, and there are {usable}: experts are read "
            f"from disk again and again, which is slow{kept}; pyflash info tells what fits")


def _experts_from_disk(plan: Plan) -> str:
    line = "experts will be read from disk again and again"
    if not plan.expert_budget:
        return line
    budget = min(plan.expert_budget, plan.expert_bytes)
    missed = plan.read_bytes * (plan.expert_bytes - budget) // max(1, plan.expert_bytes)
    return (f"{line}: {format_bytes(budget)} of {format_bytes(plan.expert_bytes)} stay in memory, and a token reads "
            f"{format_bytes(missed)} if all are chosen alike, {format_bytes(plan.read_bytes)} at most")


def advice(plan: Plan) -> list[str]:
    """Lines on whether it fits, what happens if not, and the way out."""
    usable, needed = plan.memory.usable, plan.cost.needed_bytes
    if usable is None:
        return ["the system does not tell how much memory there is"]
    if plan.fits:
        if plan.fits_now is False:
            assert plan.memory.available is not None
            return [f"fits, but only {format_bytes(plan.memory.available)} are available now: close other programs, or "
                    "weights will be read from disk again and again"]
        return ["fits"]
    if plan.runs:
        lines = [f"does not fit, {format_bytes(needed - usable)} are missing: {_experts_from_disk(plan)}"]
    else:
        lines = [f"cannot run: {format_bytes(needed - plan.weight_bytes)} beside the weights are more than there is"]
    ways = []
    runnable = [cost.n_ctx for cost in plan.contexts if cost.needed_bytes - plan.weight_bytes <= usable]
    if plan.most_tokens:
        ways.append(f"--ctx {plan.most_tokens}")
    elif not plan.runs and runnable:
        ways.append(f"--ctx {max(runnable)}, with experts read from disk again and again,")
    if plan.reference_fits:
        ways.append("--cache-type reference")
    ways.append(f"a machine or limit with {format_bytes(needed)} of memory")
    return [*lines, f"way out: {' or '.join(ways)}"]
