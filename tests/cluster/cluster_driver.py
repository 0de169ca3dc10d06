"""A driver on a node of a rig: generates over stages, and tells every token as it comes. Run by its path, as a program.

    python cluster_driver.py FILE --stages 2 --tokens 40 [--kills 5 --seed 1] [--timeout 10]

Prints "token N" lines, "told ..." for what waiting users are told, and last a line of JSON. --kills: so many times, after a
random number of tokens, the process of a random stage is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter

import pyflash
import pyflash.cluster

PROMPT = "The cat sat on the mat. The cat sat on"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=30.0)
    arguments = parser.parse_args()
    chosen = random.Random(arguments.seed)
    kills = Counter(chosen.randrange(1, arguments.tokens - 1) for _ in range(arguments.kills))

    def tell(line: str) -> None:
        print(f"told {line}", flush=True)

    began, n_killed = time.monotonic(), 0
    tokens, places = [], []
    try:
        with pyflash.cluster.Model.open(arguments.file, arguments.stages, "auto", stage_timeout=arguments.timeout, tell=tell,
                                        threads=1) as model:
            places = [[stage.facts.host, stage.place.node, *stage.place.layers] for stage in model.pipeline.stages]
            with model.session(context=1024) as session:
                for piece in session.generate(model.tokenizer.encode(PROMPT), arguments.tokens, draft="off", temperature=0):
                    tokens.append(piece.token)
                    print("token", piece.token, flush=True)
                    for _ in range(kills.pop(len(tokens), 0)):
                        os.kill(chosen.choice(model.pipeline.stages).facts.process, signal.SIGKILL)
                        n_killed += 1
    except pyflash.Error as error:
        print(json.dumps({"error": str(error), "tokens": tokens, "seconds": time.monotonic() - began}), flush=True)
        sys.exit(1)
    print(json.dumps({"tokens": tokens, "killed": n_killed, "places": places, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main()
