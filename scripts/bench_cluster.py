"""What stages cost: a model in stages on nodes in network namespaces, against one process, and against the plan.

    sudo python scripts/bench_cluster.py model.gguf --stages 2 --rate 1gbit 10gbit --delay 0.1ms 0.5ms 2ms --prompt 512 2048
    sudo python scripts/bench_cluster.py model.gguf --stages 1 2 3 --together 4 --tokens 300

Every stage computes with one thread, and each node is bound to a core, as far as there are cores. For each link and number of
stages it tells the milliseconds of a step of one token, prompts' tokens/s, and beside them what the model of time in
pyflash/cluster/placement.py says: with that link, the default of `pyflash cluster plan` for a call, and the speed of one process:
of steps in the same round, of prompts in pieces as long as those that the stages have, with the first link. Figures are medians
over --rounds, the 99th percentile is of all steps.

--while CMD: each measurement is made while CMD runs, which keeps the machine quiet: it says "ready", and ends with its stdin.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cluster"))

from link_relay import seconds as seconds_of  # noqa: E402
from rig import RayNetwork, missing  # noqa: E402

_CONTEXT = 4096
_CHUNK = 512  # tokens that a session evaluates at once
_BEHIND = 8  # tokens that are evaluated before the steps
_RATES = {"mbit": 1e6 / 8, "gbit": 1e9 / 8}


# -- on the first node: the models, and what they are asked for, a line of JSON each --


class Driver:
    """One process's model and those in stages, all open at once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import numpy as np

        import pyflash
        import pyflash.cluster
        from pyflash.engine.stages import cut

        whole = pyflash.Model.open(arguments.file, "cpu", 1)
        self._models: dict[str, Any] = {"0": whole}
        self.layers: dict[str, list[tuple[int, int]]] = {}
        for n in arguments.stages:
            self.layers[str(n)] = cut(whole.info.n_layer, n)
            self._models[str(n)] = pyflash.cluster.Model.open(arguments.file, self.layers[str(n)], "auto", threads=1)
        self._sessions = {name: [model.session(context=_CONTEXT) for _ in range(max(1, arguments.together))]
                          for name, model in self._models.items()}  # fmt: skip
        n_tokens = max([*arguments.prompt, arguments.tokens + _BEHIND])
        self._tokens = np.random.default_rng(3).integers(0, whole.info.n_vocab, n_tokens).astype(np.int32)

    def serve(self) -> None:
        print(json.dumps(self.layers), flush=True)
        for line in sys.stdin:
            what, *how = json.loads(line)
            print(json.dumps(getattr(self, f"time_{what}")(*how)), flush=True)

    def time_steps(self, name: str, n: int) -> list[float]:
        """Seconds of steps of one token."""
        session = self._sessions[name][0]
        return self._steps([session], n, lambda token: session.eval([token]))

    def time_together(self, name: str, n: int) -> list[float]:
        """Of steps of one token of each session."""
        import pyflash

        sessions = self._sessions[name]
        return self._steps(sessions, n, lambda token: pyflash.eval_many([(session, [token]) for session in sessions]))

    def _steps(self, sessions: Sequence[Any], n: int, step: Any) -> list[float]:
        found = []
        for session in sessions:
            session.rollback(session.position)
            session.eval(self._tokens[:_BEHIND])
        for token in self._tokens[_BEHIND : _BEHIND + n]:
            began = time.perf_counter()
            step(token)
            found.append(time.perf_counter() - began)
        return found

    def time_prompt(self, name: str, n: int, piece: int | None = None) -> list[float]:
        """Of a prompt of n tokens, by itself. piece: tokens that are evaluated at once; None: as usual."""
        session = self._sessions[name][0]
        session.rollback(session.position)
        began = time.perf_counter()
        for at in range(0, n, piece or n):
            session.eval(self._tokens[at : at + (piece or n)][: n - at])
        return [time.perf_counter() - began]


# -- outside --


class Asked:
    """The driver, from outside."""

    def __init__(self, rig: RayNetwork, arguments: argparse.Namespace) -> None:
        given = [arguments.file, "--driver", "--tokens", str(arguments.tokens), "--together", str(arguments.together),
                 "--stages", *map(str, arguments.stages), "--prompt", *map(str, arguments.prompt)]
        self._process = rig.start_python(0, __file__, *given, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.layers: dict[str, list[tuple[int, int]]] = self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the driver has ended: see above")
        return json.loads(line)

    def time(self, what: str, n_stages: int, *how: int) -> list[float]:
        """n_stages: 0 for one process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, str(n_stages), *how]) + "\n")
        self._process.stdin.flush()
        found: list[float] = self._answer()
        return found


@contextlib.contextmanager
def quiet(command: str | None) -> Iterator[None]:
    if command is None:
        yield
        return
    process = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"{command}: did not say ready")
    try:
        yield
    finally:
        process.stdin.close()
        process.wait()


Samples = dict[str, list[list[float]]]  # rounds' seconds, by what they are of


def measure(driver: Asked, arguments: argparse.Namespace, n_stages: int, with_prompts: bool, found: Samples) -> None:
    """A round. with_prompts: also of one process."""

    def note(name: str, seconds: list[float]) -> None:
        found[name].append(seconds)
        if arguments.verbose:
            print(f"{name}: {statistics.median(seconds):.4f} s", file=sys.stderr, flush=True)

    for what in ["steps", *(["together"] if arguments.together else [])]:
        note(f"{what} whole", driver.time(what, 0, arguments.tokens))
        note(what, driver.time(what, n_stages, arguments.tokens))
    for n in arguments.prompt:
        if with_prompts:
            note(f"prompt {n} whole", driver.time("prompt", 0, n))
            if piece_of(n, n_stages) < min(n, _CHUNK):
                note(f"prompt {n} in pieces", driver.time("prompt", 0, n, piece_of(n, n_stages)))
        note(f"prompt {n}", driver.time("prompt", n_stages, n))


def piece_of(n: int, n_stages: int) -> int:
    from pyflash.cluster.chain import piece_length

    return piece_length(n, n_stages, _CHUNK)


def placement(file: str, layers: Sequence[tuple[int, int]], whole: float, link: Any) -> Any:
    """The plan of such stages on nodes that are as quick as this one, where one process takes so many seconds a token."""
    from pyflash.cluster.costs import model_costs
    from pyflash.cluster.placement import Node, Placement, Stage

    costs = model_costs(file, _CONTEXT)
    bandwidth = costs.read_bytes(0, len(costs.layers)) / whole
    stages = tuple(
        Stage(Node(f"{i}", 0, bandwidth), (first, end), 0, read := costs.read_bytes(first, end),
              sum(part.read_bytes for part in costs.layers[first:end]), read / bandwidth)
        for i, (first, end) in enumerate(layers)
    )
    return Placement(stages, link, costs.token_bytes, costs.logits_bytes)


def links(arguments: argparse.Namespace) -> list[tuple[str | None, str | None]]:
    return [(rate, delay) for rate in arguments.rate or [None] for delay in arguments.delay or [None]]


def bench(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each link and number of stages."""
    cores = sorted(os.sched_getaffinity(0))
    rows = []
    with RayNetwork(max(arguments.stages), *links(arguments)[0], cores=cores) as rig:
        driver = Asked(rig, arguments)
        for n_stages in arguments.stages:
            measure(driver, arguments, n_stages, True, defaultdict(list))  # the chosen experts are in memory then
            samples: Samples = defaultdict(list)
            for rate, delay in links(arguments):
                if rate is not None:
                    for node in range(rig.n):
                        rig.slow(node, rate)
                if delay is not None:
                    rig.delay(delay)
                is_first = not samples
                samples = defaultdict(list, {name: each for name, each in samples.items() if name.startswith("prompt")
                                             and name.endswith(("whole", "pieces"))})  # fmt: skip
                for _ in range(arguments.rounds):
                    with quiet(arguments.quiet):
                        measure(driver, arguments, n_stages, is_first, samples)
                rows.append(row(arguments.file, rate, delay, driver.layers[str(n_stages)], samples))
                if arguments.json:
                    print(json.dumps(rows[-1]), flush=True)
    return rows


def row(file: str, rate: str | None, delay: str | None, layers: Sequence[tuple[int, int]], samples: Samples) -> dict[str, Any]:
    """Seconds: medians over the rounds."""
    from pyflash.cluster.placement import Link

    usual = Link()
    link = Link(usual.rate if rate is None else float(rate[:-4]) * _RATES[rate[-4:]],
                0.0 if delay is None else seconds_of(delay), usual.call)
    medians = {name: statistics.median(map(statistics.median, rounds)) for name, rounds in samples.items()}
    plan = placement(file, layers, medians["steps whole"], link)
    out: dict[str, Any] = {"rate": rate, "delay": delay, "stages": len(layers), "rounds": len(samples["steps"])}
    for name in (name for name in samples if not name.endswith(("whole", "pieces"))):
        out[name] = {"median": medians[name], "each": [statistics.median(each) for each in samples[name]],
                     "p99": percentile(samples[name]), "whole": medians[f"{name} whole"]}
        if name == "steps":
            out[name]["predicted"] = plan.token_seconds
        elif name.startswith("prompt"):
            n = int(name.split()[1])
            in_pieces = medians.get(f"{name} in pieces", medians[f"{name} whole"])
            out[name]["predicted"] = in_pieces / plan.prompt_gain(math.ceil(n / piece_of(n, len(layers))))
    return out


def percentile(rounds: Sequence[Sequence[float]]) -> float:
    """The 99th, of all."""
    ordered = sorted(value for each in rounds for value in each)
    return ordered[int(0.99 * (len(ordered) - 1))]


def show(rows: Sequence[dict[str, Any]]) -> None:
    prompts = [name for name in rows[0] if name.startswith("prompt")]
    heads = ["link", "stages", "one process, ms a token", "stages, median", "99 %", "predicted", "ratio"]
    for name in prompts:
        heads += [f"{name}: one process, tokens/s", "stages", "predicted", "ratio"]
    if "together" in rows[0]:
        heads += ["sessions together, ms a step", "99 %", "one process"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for each in rows:
        steps = each["steps"]
        cells = [f"{each['rate'] or 'as it is'}, {each['delay'] or 'no delay'}", str(each["stages"]),
                 f"{1000 * steps['whole']:.2f}", f"{1000 * steps['median']:.2f}", f"{1000 * steps['p99']:.2f}",
                 f"{1000 * steps['predicted']:.2f}", f"{steps['median'] / steps['predicted']:.2f}"]
        for name in prompts:
            n, found = int(name.split()[1]), each[name]
            cells += [f"{n / found['whole']:.1f}", f"{n / found['median']:.1f}", f"{n / found['predicted']:.1f}",
                      f"{found['median'] / found['predicted']:.2f}"]
        if "together" in each:
            found = each["together"]
            cells += [f"{1000 * found[name]:.2f}" for name in ("median", "p99", "whole")]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--stages", type=int, nargs="+", default=[2])
    parser.add_argument("--rate", nargs="+", help="of each node's link: 1gbit 10gbit")
    parser.add_argument("--delay", nargs="+", help="one way: 0.1ms 0.5ms")
    parser.add_argument("--tokens", type=int, default=32, help="steps of a round")
    parser.add_argument("--prompt", type=int, nargs="*", default=[], help="lengths of prompts: 512 2048")
    parser.add_argument("--together", type=int, default=0, metavar="N", help="also steps of so many sessions, by eval_many()")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--while", dest="quiet", metavar="CMD", help="see above")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each row, when it has been measured")
    parser.add_argument("--verbose", action="store_true", help="tell each measurement when it is done")
    parser.add_argument("--driver", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.file = str(Path(arguments.file).resolve())
    if arguments.driver:
        Driver(arguments).serve()
        return
    lacking = missing()
    if lacking is not None:
        sys.exit(lacking)
    rows = bench(arguments)
    if not arguments.json:
        show(rows)


if __name__ == "__main__":
    main()
