"""Counts and times of a server, in Prometheus' text format."""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING

from pyflash.machine import hardware

if TYPE_CHECKING:
    from pyflash.serve.job import Job

_FIRST_TOKEN = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_PLAIN = ("prompt_tokens_total", "prompt_tokens_cached_total", "prompt_seconds_total", "generated_tokens_total",
          "generation_seconds_total", "tool_calls_total",
          *(f'cancelled_total{{why="{why}"}}' for why in ("gone", "slow", "stopped", "abandoned", "shutdown")),
          *(f'cache_miss_first_difference_total{{role="{role}"}}' for role in ("system", "user", "assistant"))
          )  # are told before they have counted anything
_MOST_KINDS = 40
_BETWEEN = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


def _kind(problem: str) -> str:
    """A problem of an answer's form without what the model wrote, as a label."""
    bare = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "...", problem)[:80]
    return bare.replace("\\", "").replace('"', "").replace("\n", " ")


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        total, out = 0, [f"# TYPE {name} histogram"]
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            out.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*out, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: defaultdict[str, float] = defaultdict(float, dict.fromkeys(_PLAIN, 0.0))
        self._first, self._between = _Histogram(_FIRST_TOKEN), _Histogram(_BETWEEN)
        self._kinds: set[str] = set()  # of malformed answers; no client can have any number of them told
        self._seconds = 5.0  # a request's, as an average of late

    def add(self, name: str, value: float = 1) -> None:
        """name: with its labels, if any."""
        with self._lock:
            self._counts[name] += value

    def request(self, api: str, status: int) -> None:
        self.add(f'requests_total{{api="{api}",code="{status}"}}')

    def first_token(self, seconds: float) -> None:
        with self._lock:
            self._first.add(seconds)

    def between_tokens(self, seconds: float) -> None:
        with self._lock:
            self._between.add(seconds)

    def read(self, n: int, seconds: float) -> None:
        """A piece of a prompt was evaluated."""
        self.add("prompt_tokens_total", n)
        self.add("prompt_seconds_total", seconds)

    def ended(self, job: Job, how: str) -> None:
        usage = job.usage
        with self._lock:
            self._counts["prompt_tokens_cached_total"] += usage.n_cached
            self._counts["generated_tokens_total"] += usage.n_generated
            self._counts["generation_seconds_total"] += usage.generate_seconds
            self._counts["drafted_tokens_total"] += usage.n_drafted
            self._counts["drafted_tokens_kept_total"] += usage.n_drafts_kept
            self._counts["tool_calls_total"] += len(job.answer.call_ids) if job.answer else 0
            for problem in job.answer.problems if job.answer else ():
                self._kinds.add(kind := _kind(problem))
                kind = kind if len(self._kinds) <= _MOST_KINDS else "other"
                self._counts[f'tool_calls_malformed_total{{kind="{kind}"}}'] += 1
            if how == "cancelled":
                self._counts[f'cancelled_total{{why="{job.why_cancelled}"}}'] += 1
            if job.first_difference is not None:
                self._counts[f'cache_miss_first_difference_total{{role="{job.first_difference}"}}'] += 1
            if job.began:
                how = ("cold" if not usage.n_cached else "disk" if job.is_restored else
                       "turn" if job.prompt.n_replayed else "token")
                self._counts[f'cache_hits_total{{how="{how}"}}'] += 1
            self._seconds += 0.2 * (usage.prompt_seconds + usage.generate_seconds - self._seconds)

    def typical_seconds(self) -> float:
        return self._seconds

    def text(self, **gauges: float) -> str:
        """All of it. gauges: further values of the moment, each name with its labels, if any."""
        process = hardware.process_memory()
        if process is not None:
            gauges["process_resident_bytes"] = process.resident
        with self._lock:
            by_name: dict[str, list[str]] = {}
            for name, value in self._counts.items():
                by_name.setdefault(name.split("{")[0], []).append(f"pyflash_{name} {value:.15g}")
            lines: list[str] = []
            for name in sorted(by_name):
                lines += [f"# TYPE pyflash_{name} counter", *sorted(by_name[name])]
            lines += self._first.lines("pyflash_time_to_first_token_seconds")
            lines += self._between.lines("pyflash_inter_token_seconds")
        for name, value in gauges.items():
            lines += [f"# TYPE pyflash_{name.split('{')[0]} gauge", f"pyflash_{name} {value:.15g}"]
        return "\n".join(lines) + "\n"
