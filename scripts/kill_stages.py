"""Kills stages' processes at random while they generate, and compares every answer with one process's.

    sudo python scripts/kill_stages.py model.gguf --kills 50 --stages 2 --nodes 2

Rounds of five kills in as many network namespaces as there are nodes, each with a Ray node. Prints a line a round, and exits
with 1 at the first answer that differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cluster"))

import cluster_driver  # noqa: E402
from rig import RayNetwork, missing  # noqa: E402

import pyflash  # noqa: E402

_A_ROUND = 5


def undisturbed(file: str, n: int) -> list[int]:
    with pyflash.Model.open(file, "cpu", threads=1) as model, model.session(context=1024) as session:
        prompt = model.tokenizer.encode(cluster_driver.PROMPT)
        return [piece.token for piece in session.generate(prompt, n, draft="off", temperature=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    lacking = missing()
    if lacking is not None:
        sys.exit(lacking)
    file = str(Path(arguments.file).resolve())
    expected = undisturbed(file, arguments.tokens)
    done = 0
    with RayNetwork(arguments.nodes) as net:
        while done < arguments.kills:
            kills = min(_A_ROUND, arguments.kills - done)
            ran = net.python(0, cluster_driver.__file__, file, "--stages", str(arguments.stages), "--tokens",
                             str(arguments.tokens), "--kills", str(kills), "--seed", str(arguments.seed + done), timeout=600)
            found = json.loads(ran.stdout.splitlines()[-1]) if ran.stdout else {"error": ran.stderr[-2000:]}
            if found.get("tokens") != expected:
                sys.exit(f"after {done} kills: {found.get('error', 'other tokens')}")
            done += found["killed"]
            print(f"{done} kills, {len(expected)} tokens as undisturbed, {found['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
