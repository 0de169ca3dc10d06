"""What stages cost: a model on one, two and three nodes in network namespaces, against one process, and against the plan.

    sudo python scripts/bench_cluster.py model.gguf --rate 1gbit --delay 0.1ms --tokens 64 --prompt 512 --json

Every stage computes with one thread. Rows are one process without Ray, and 1, 2, 3 stages: the milliseconds of a step of one
token (median and 99th percentile), prompts' tokens/s, and what the model of time in pyflash/cluster/placement.py predicts of
the same: its bandwidth is what the whole model reached in one process here, the link is measured between the nodes, and a call
is half of what one stage took longer than one process.
Two cores or more; with three stages or another load on them only the order of magnitude counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cluster"))

from rig import RayNetwork, missing  # noqa: E402

_PING = 300  # calls that the link is measured by
_BULK = 16 << 20  # bytes
_CONTEXT = 4096


# -- on a node --


def measured(session: Any, n_vocab: int, n_prompt: int, n_tokens: int) -> dict[str, float]:
    """Steps and a prompt of random tokens."""
    import numpy as np

    tokens = np.random.default_rng(3).integers(0, n_vocab, n_prompt + n_tokens + 8).astype(np.int32)
    session.eval(tokens[:8])
    seconds = []
    for token in tokens[8 : 8 + n_tokens]:
        began = time.perf_counter()
        session.eval([token])
        seconds.append(time.perf_counter() - began)
    session.rollback(session.position)
    session.eval(tokens[:n_prompt])  # the chosen experts are in memory then
    session.rollback(session.position)
    began = time.perf_counter()
    session.eval(tokens[:n_prompt])
    prompt = time.perf_counter() - began
    return {"median": statistics.median(seconds), "p99": sorted(seconds)[int(0.99 * (len(seconds) - 1))],
            "prompt_tok_s": n_prompt / prompt}


def run_whole(arguments: argparse.Namespace) -> dict[str, Any]:
    import pyflash

    with pyflash.Model.open(arguments.file, "cpu", 1, pin=True) as model, model.session(context=_CONTEXT) as session:
        return measured(session, model.info.n_vocab, arguments.prompt, arguments.tokens)


def run_stages(arguments: argparse.Namespace, n: int) -> dict[str, Any]:
    import pyflash
    import pyflash.cluster
    from pyflash.engine.stages import cut

    with pyflash.Model.open(arguments.file, "cpu", 1, layers=(0, 1)) as first:
        layers = cut(first.info.n_layer, n)
    with pyflash.cluster.Model.open(arguments.file, layers, "auto", threads=1) as model:
        with model.session(context=_CONTEXT) as session:
            found = measured(session, model.info.n_vocab, arguments.prompt, arguments.tokens)
        return {**found, "layers": layers, "nodes": [stage.place.node for stage in model.pipeline.stages]}


def run_link() -> dict[str, float]:
    """Between this node and the last one: seconds of the network one way, and bytes a second."""
    import numpy as np
    import ray

    ray.init(address="auto", log_to_driver=False)
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0)
    class Echo:
        def take(self, data: Any = None) -> None:
            pass

    own = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["NodeID"] != own]
    times = {}
    for name, node in (("near", own), ("far", (others or [own])[-1])):
        actor = Echo.options(scheduling_strategy=strategy(node, soft=False)).remote()
        ray.get(actor.take.remote())
        seconds = []
        for _ in range(_PING):
            began = time.perf_counter()
            ray.get(actor.take.remote())
            seconds.append(time.perf_counter() - began)
        times[name] = statistics.median(seconds)
        bulk = []
        for _ in range(3):
            began = time.perf_counter()
            ray.get(actor.take.remote(np.random.bytes(_BULK)))
            bulk.append(time.perf_counter() - began)
        times[f"{name}_bulk"] = min(bulk)
    return {"delay": max(0.0, times["far"] - times["near"]) / 2,
            "rate": _BULK / max(1e-9, times["far_bulk"] - times["far"])}


# -- outside --


def predict(file: str, whole: dict[str, float], link: dict[str, float], found: dict[str, Any]) -> float:
    """The plan's seconds of a step for the layers that the stages had."""
    from pyflash.cluster.costs import model_costs
    from pyflash.cluster.placement import Link, Node, Placement, Stage

    costs = model_costs(file, _CONTEXT)
    bandwidth = costs.read_bytes(0, len(costs.layers)) / whole["median"]
    stages = tuple(
        Stage(Node(f"{i}", 0, bandwidth), (first, end), 0, read := costs.read_bytes(first, end), read, read / bandwidth)
        for i, (first, end) in enumerate(found["layers"])
    )
    between = Link(link["rate"], link["delay"], link["call"])
    return Placement(stages, between, costs.token_bytes, costs.logits_bytes).token_seconds


def bench(arguments: argparse.Namespace, n_nodes: int, stages: Sequence[int]) -> dict[str, Any]:
    def ask(rig: RayNetwork, *what: str) -> Any:
        done = rig.python(0, __file__, arguments.file, "--tokens", str(arguments.tokens), "--prompt", str(arguments.prompt),
                          "--part", *what, timeout=900)
        if done.returncode != 0:
            raise SystemExit(f"{what}: {done.stderr.strip()[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    if 1 not in stages:
        raise SystemExit("--stages must name 1 too: a call is measured by it")
    result: dict[str, Any] = {"rate": arguments.rate, "delay": arguments.delay, "load": os.getloadavg()[0]}
    with RayNetwork(n_nodes, arguments.rate, arguments.delay) as rig:
        result["whole"] = ask(rig, "whole")
        result["link"] = ask(rig, "link")
        for n in sorted(stages):
            found = ask(rig, str(n))
            if n == 1:
                result["link"]["call"] = max(0.0, found["median"] - result["whole"]["median"]) / 2
            result[f"{n} stages"] = {**found, "predicted": predict(arguments.file, result["whole"], result["link"], found)}
    return result


def show(result: dict[str, Any]) -> None:
    link = result["link"]
    print(f"links: {result['rate'] or 'as they are'}, delay {result['delay'] or 'none'}; measured "
          f"{8e-9 * link['rate']:.2f} Gbit/s, {1000 * link['delay']:.2f} ms one way, {1000 * link['call']:.2f} ms a call; "
          f"load before: {result['load']:.1f}")
    print("| what | ms a step, median | 99 % | predicted | measured to predicted | prompt, tokens/s |")
    print("|---|---|---|---|---|---|")
    for name, each in result.items():
        if isinstance(each, dict) and "median" in each:
            plan = each.get("predicted")
            told = f"{1000 * plan:.2f} | {each['median'] / plan:.2f}" if plan else " | "
            print(f"| {name} | {1000 * each['median']:.2f} | {1000 * each['p99']:.2f} | {told} | {each['prompt_tok_s']:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--rate", help="of each node's link, as tc has it: 1gbit")
    parser.add_argument("--delay", help="one way: 0.1ms")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.file = str(Path(arguments.file).resolve())
    if arguments.part:
        part = arguments.part
        found = run_whole(arguments) if part == "whole" else run_link() if part == "link" else run_stages(arguments, int(part))
        print(json.dumps(found))
        return
    lacking = missing()
    if lacking is not None:
        sys.exit(lacking)
    result = bench(arguments, max(arguments.stages), arguments.stages)
    print(json.dumps(result)) if arguments.json else show(result)


if __name__ == "__main__":
    main()
