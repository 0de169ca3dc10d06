"""Steps of several sessions over the same stages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyflash.cluster.chain import RemoteChain, Sent
from pyflash.cluster.messages import Share, Step
from pyflash.cluster.pipeline import MOST_TRIES, Mail, StageLost
from pyflash.engine.stage_chain import Check, Ids
from pyflash.native.errors import CancelledError, DeviceError, Error
from pyflash.native.values import FloatArray

Found = FloatArray | Exception


def step_together(chains: Sequence[RemoteChain], ids: Sequence[Ids], checks: Sequence[Check]) -> list[Found]:
    """What RemoteChain.step() gives of each, or its error: all of them in one message a stage."""
    found: dict[int, Found] = {}
    mail = Mail()
    own = [chain.mail for chain in chains]
    for chain in chains:
        chain.mail = mail
    try:
        for _ in range(MOST_TRIES):
            left = [i for i in range(len(chains)) if i not in found]
            if not left:
                break
            try:
                _attempt(chains, ids, checks, found, left)
            except StageLost as lost:
                chains[0].pipeline.begin_anew(lost)
    finally:
        for chain, each in zip(chains, own, strict=True):
            chain.mail = each
    lost_often = DeviceError(f"a stage was lost {MOST_TRIES} times while this was evaluated{chains[0].pipeline.short}",
                             "see whether its machine has memory for it")
    return [found.get(i, lost_often) for i in range(len(chains))]


def _attempt(chains: Sequence[RemoteChain], ids: Sequence[Ids], checks: Sequence[Check], found: dict[int, Found],
             left: Sequence[int]) -> None:
    """One step of those that are left. StageLost."""
    live = []
    for i in left:
        try:
            checks[i]()
            chains[i].be_there(checks[i])
            live.append(i)
        except Error as error:
            found[i] = error
    if not live:
        return
    pipeline, epoch = chains[live[0]].pipeline, chains[live[0]].epoch
    if any(chains[i].epoch != epoch for i in live):
        raise StageLost(epoch, "the stages have begun anew")
    shares, sent = [], {}
    for i in live:
        tokens, tickets = ids[i].tolist(), chains[i].tickets(chains[i].all_stages)
        shares.append(Share(chains[i].number, np.asarray(tokens, dtype=np.int32), chains[i].position, tuple(tickets)))
        sent[i] = Sent(tokens, None, [ticket.number for ticket in tickets])
    key = pipeline.new_key()
    result = pipeline.stages[-1].actor.result.remote(epoch, key)
    pipeline.stages[0].actor.step.remote(Step(epoch, key, tuple(shares), "all"))
    cancelled: dict[int, CancelledError] = {}

    def asked() -> None:
        for i in live:
            try:
                checks[i]()
            except CancelledError as error:
                cancelled[i] = error
                chains[i].cancel([sent[i]])

    try:
        (results,) = pipeline.wait([result], epoch, chains[live[0]].mail, asked)
    except (KeyboardInterrupt, SystemExit):
        for i in live:
            chains[i].cancel([sent[i]])
            chains[i].order("drop")
        raise
    if results is None:
        raise StageLost(epoch, "the stages have begun anew")
    for i, each in zip(live, results, strict=True):
        failed = cancelled.get(i) or (each if isinstance(each, Exception) else None)
        if failed is not None:
            chains[i].order("drop")
        found[i] = failed or np.array(each)
    pipeline.note_done()
