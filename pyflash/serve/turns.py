"""The turns that were sampled here, so that a client who sends one back gets the very tokens, and not what its text is
rendered as.

A turn is found by what the client was given with it (the ids of its calls, its signature), else by the conversation up to
it. It is used only where the client's message says the same, so an edit always wins, and forged ids do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

_MOST_TURNS = 100_000
_MOST_BYTES = 64 << 20
_TURN_BYTES = 900  # that a turn takes beside its tokens and texts: Python's objects, names and their tables
_ID_BYTES, _PROOF_BYTES, _VERSION = 16, 16, b"\x01"


@dataclass(frozen=True)
class Turn:
    """A turn as sampled. reasoning_tokens, content_tokens: without the tokens that open, part and end it; the calls are
    among the second. calls: (name, arguments as JSON)."""

    reasoning: str
    content: str
    calls: tuple[tuple[str, str], ...]
    reasoning_tokens: Sequence[int]
    content_tokens: Sequence[int]

    def says(self, message: Mapping[str, Any]) -> bool:
        """Whether a client's message is this turn: equal but for white space at the ends, how JSON is written, and
        reasoning that the client dropped."""
        given = (message.get("reasoning_content") or "").strip()
        if given and given != self.reasoning.strip():
            return False
        return visible(message) == _visible(self.content, self.calls)

    @property
    def n_bytes(self) -> int:
        texts = (self.reasoning, self.content, *(text for call in self.calls for text in call))
        return 4 * (len(self.reasoning_tokens) + len(self.content_tokens)) + sum(map(len, texts)) + _TURN_BYTES

    def packed(self) -> Turn:
        """The same, with its tokens in four bytes each."""
        return replace(self, reasoning_tokens=array("i", self.reasoning_tokens), content_tokens=array("i", self.content_tokens))


def visible(message: Mapping[str, Any]) -> str:
    """What an assistant's message shows, in one form for all ways of writing it."""
    calls = message.get("tool_calls") or ()
    return _visible(message.get("content") or "",
                    [(call["function"]["name"], call["function"]["arguments"]) for call in calls])


def _visible(content: str, calls: Iterable[tuple[str, Any]]) -> str:
    return json.dumps([content.strip(), [[name, _canonical(arguments)] for name, arguments in calls]])


def _canonical(arguments: Any) -> Any:
    """A call's arguments as a value that is equal where JSON's are: 1.0 is 1, true is neither; the order of keys is none."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return ["text", arguments]
    return _value(arguments)


def _value(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {"object": sorted([str(key), _value(each)] for key, each in value.items())}
    if isinstance(value, (list, tuple)):
        return [_value(each) for each in value]
    return value


def chains(salt: bytes, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """A digest of the conversation before each message and after all of them, [len(messages) + 1]: of what it says, not of
    how a client writes it."""
    digest = hashlib.blake2b(salt, digest_size=20)
    digest.update(json.dumps(tools, sort_keys=True).encode("utf-8", "replace"))
    out = [digest.digest()]
    for message in messages:
        shown = visible(message) if message["role"] == "assistant" else json.dumps(message.get("content"))
        digest.update(f"\0{message['role']}\0{shown}".encode("utf-8", "replace"))
        out.append(digest.digest())
    return out


class TurnStore:
    """A bounded store; what was used longest ago goes first. For any thread."""

    def __init__(self, key: bytes, most_turns: int = _MOST_TURNS, most_bytes: int = _MOST_BYTES) -> None:
        """key: what signatures are made with; the same key reads them again."""
        self._key = key
        self._most_turns, self._most_bytes = most_turns, most_bytes
        self._lock = threading.Lock()
        self._turns: OrderedDict[bytes, tuple[Turn, tuple[bytes, ...]]] = OrderedDict()  # with the names it is found by
        self._names: dict[bytes, bytes] = {}
        self._n_bytes = 0

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def n_bytes(self) -> int:
        """Of memory, about."""
        return self._n_bytes

    def new_id(self) -> bytes:
        return secrets.token_bytes(_ID_BYTES)

    def signature(self, salt: bytes, turn_id: bytes) -> str:
        """The opaque text that stands for a turn; nobody without the key can make another one that is read."""
        return base64.urlsafe_b64encode(_VERSION + turn_id + self._proof(salt, turn_id)).decode("ascii")

    def _proof(self, salt: bytes, turn_id: bytes) -> bytes:
        return hmac.new(self._key, _VERSION + turn_id + salt, "sha256").digest()[:_PROOF_BYTES]

    def _read_signature(self, salt: bytes, text: str) -> bytes | None:
        if len(text) > 200:
            return None
        try:
            data = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
        except (ValueError, UnicodeEncodeError):
            return None
        turn_id, proof = data[1 : 1 + _ID_BYTES], data[1 + _ID_BYTES :]
        known = data[:1] == _VERSION and hmac.compare_digest(proof, self._proof(salt, turn_id))
        return turn_id if known else None

    def add(self, salt: bytes, turn_id: bytes, turn: Turn, call_ids: Iterable[str], chain: bytes) -> None:
        """Keeps a turn. chain: of the conversation that it answers, the last of chains()."""
        names = (*(_call_name(salt, each) for each in call_ids), _chain_name(chain, _visible(turn.content, turn.calls)))
        self._keep(turn_id, turn, names)

    def _keep(self, turn_id: bytes, turn: Turn, names: tuple[bytes, ...]) -> None:
        with self._lock:
            if turn_id in self._turns:
                return
            self._turns[turn_id] = (turn.packed(), names)
            self._names.update(dict.fromkeys(names, turn_id))
            self._n_bytes += turn.n_bytes
            while len(self._turns) > self._most_turns or self._n_bytes > self._most_bytes:
                gone_id, (gone, gone_names) = self._turns.popitem(last=False)
                self._n_bytes -= gone.n_bytes
                for name in gone_names:
                    if self._names.get(name) == gone_id:
                        del self._names[name]

    def dump(self) -> bytes:
        """All turns, for restore() of another store with the same key."""
        with self._lock:
            rows = [[turn_id.hex(), turn.reasoning, turn.content, turn.calls, list(turn.reasoning_tokens),
                     list(turn.content_tokens), [name.hex() for name in names]]
                    for turn_id, (turn, names) in self._turns.items()]
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)

    def restore(self, data: bytes, n_vocab: int) -> None:
        """Adds turns that dump() gave. n_vocab: what tokens are below. Lines that are none are passed over."""
        for line in data.splitlines():
            try:
                turn_id, reasoning, content, calls, *tokens, names = json.loads(line)
                both = [tuple(int(token) for token in each) for each in tokens]
                if any(not 0 <= token < n_vocab for each in both for token in each):
                    continue
                turn = Turn(str(reasoning), str(content), tuple((str(name), str(given)) for name, given in calls), *both)
                self._keep(bytes.fromhex(turn_id), turn, tuple(map(bytes.fromhex, names)))
            except (ValueError, TypeError, RecursionError):
                continue

    def find(self, salt: bytes, message: Mapping[str, Any], chain: bytes) -> Turn | None:
        """The turn that an assistant's message is, None where it is none of them or says something else. chain: of the
        conversation before it."""
        with self._lock:
            for turn_id in self._candidates(salt, message, chain):
                found = self._turns.get(turn_id)
                if found is not None and found[0].says(message):
                    self._turns.move_to_end(turn_id)
                    return found[0]
        return None

    def _candidates(self, salt: bytes, message: Mapping[str, Any], chain: bytes) -> Iterable[bytes]:
        for text in message.get("opaque") or ():
            turn_id = self._read_signature(salt, text)
            if turn_id is not None:
                yield turn_id
        names = [_call_name(salt, call["id"]) for call in message.get("tool_calls") or () if call.get("id")]
        for name in (*names, _chain_name(chain, visible(message))):
            if name in self._names:
                yield self._names[name]


def _call_name(salt: bytes, call_id: str) -> bytes:
    return hashlib.blake2b(b"call\0" + call_id.encode("utf-8", "replace"), key=salt[:64], digest_size=20).digest()


def _chain_name(chain: bytes, shown: str) -> bytes:
    return hashlib.blake2b(b"chain\0" + chain + shown.encode("utf-8", "replace"), digest_size=20).digest()
