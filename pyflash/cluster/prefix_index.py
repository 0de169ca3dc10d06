"""Which replica has the beginning of a conversation: what each says that it holds, and what was sent to it since."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

MOST_SENT = 100_000  # keys that are remembered until replicas tell of them


class Held:
    """The keys of what a replica was asked, the last `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: OrderedDict[str, None] = OrderedDict()

    def add(self, keys: Sequence[str]) -> None:
        """keys: a request's, the longest first. A conversation is held by its end; its earlier turns were held before."""
        for key in keys[:1]:
            self._keys.pop(key, None)
            self._keys[key] = None
        while len(self._keys) > self._most:
            self._keys.popitem(last=False)

    def keys(self) -> list[str]:
        return list(self._keys)


class PrefixIndex:
    """Where keys are. Replicas are named by texts.

    What was sent counts for `memory` seconds; by then the replica has told of it, or holds it no more.
    """

    def __init__(self, memory: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._memory, self._clock = memory, clock
        self._sent: OrderedDict[str, dict[str, float]] = OrderedDict()  # key: when it was sent, by replica
        self._held: dict[str, frozenset[str]] = {}  # by replica

    def tell(self, held: Mapping[str, Iterable[str]]) -> None:
        """What each of the replicas that there are says that it holds."""
        self._held = {replica: frozenset(keys) for replica, keys in held.items()}

    def sent(self, replica: str, keys: Sequence[str]) -> None:
        """A request with these keys, the longest first, goes to a replica."""
        for key in keys[:1]:
            self._sent.setdefault(key, {})[replica] = self._clock()
            self._sent.move_to_end(key)
        while len(self._sent) > MOST_SENT:
            self._sent.popitem(last=False)

    def n_held(self, replica: str) -> int:
        """How many conversations a replica has, as far as is known."""
        return len(self._held.get(replica, ())) + sum(replica in places for places in self._fresh().values())

    def holders(self, keys: Sequence[str], replicas: Collection[str]) -> set[str]:
        """Those of the replicas that hold the longest beginning. keys: the longest first."""
        fresh = self._fresh()
        for key in keys:
            found = {replica for replica in replicas
                     if replica in fresh.get(key, ()) or key in self._held.get(replica, ())}
            if found:
                return found
        return set()

    def _fresh(self) -> Mapping[str, Mapping[str, float]]:
        begin = self._clock() - self._memory
        while self._sent:
            key, places = next(iter(self._sent.items()))
            if max(places.values()) >= begin:
                break
            del self._sent[key]
        return self._sent


class Loads:
    """Requests under way from here, by replica. A request counts from its choice on, so that of many at the same moment not
    all choose the same one; a choice that leads to nothing counts for `patience` seconds."""

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._chosen: dict[str, tuple[str, float]] = {}  # request: replica, when
        self._sent: dict[str, set[str]] = {}  # replica: requests

    def chosen(self, request: str, replica: str) -> None:
        self._chosen[request] = replica, self._clock()

    def sent(self, request: str, replica: str) -> None:
        self._chosen.pop(request, None)
        self._sent.setdefault(replica, set()).add(request)

    def ended(self, request: str, replica: str) -> None:
        self._sent.get(replica, set()).discard(request)

    def of(self, replica: str) -> int:
        begin = self._clock() - self._patience
        for request in [each for each, (_, when) in self._chosen.items() if when < begin]:
            del self._chosen[request]
        return len(self._sent.get(replica, ())) + sum(chosen == replica for chosen, _ in self._chosen.values())


def ranked(holders: Collection[str], loads: Mapping[str, int], n_places: int,
           n_held: Callable[[str], int]) -> list[list[str]]:
    """The replicas in the order in which a request should try them, those that are as good in one list.

    holders: that have its beginning. loads: requests under way, of every replica. n_places: requests that one answers at
    once. One that has the beginning is the best, unless the request would wait there and another
    has a place: reading a prompt again costs less than the wait for a whole answer. New conversations go to the least
    loaded, and of those to one that has the fewest.
    """
    others = sorted((each for each in loads if each not in holders), key=lambda each: (loads[each], n_held(each)))
    ranks = [[replica] for replica in others]
    if not holders:
        return ranks
    owning = sorted(holders, key=lambda each: loads[each])
    would_wait = loads[owning[0]] >= n_places
    has_place = bool(others) and loads[others[0]] < n_places
    return [*ranks, owning] if would_wait and has_place else [owning, *ranks]
