"""Requests that nobody would send, by schemathesis and hypothesis, to a server that must answer each or say what is wrong."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from openapi import DOCUMENT
from schemathesis import GenerationMode

_SECONDS = 60.0  # for an answer
_EXAMPLES = 10  # of an operation at a time
_BROKEN = 200  # bodies after each round of all operations
_HEADERS = st.fixed_dictionaries({}, optional={
    "host": st.sampled_from(["localhost", "127.0.0.1", "evil.com", "localhost:1:2", "[::1]", "a b", "\x7f"]),
    "origin": st.sampled_from(["null", "http://evil.com", "http://localhost", "://"]),
    "sec-fetch-site": st.sampled_from(["cross-site", "same-origin", "none", ""]),
    "content-type": st.sampled_from(["text/plain", "application/json; charset=x", "", "multipart/form-data"]),
    "content-encoding": st.sampled_from(["gzip", "br", "identity", ""]),
    "authorization": st.sampled_from(["Bearer", "Bearer x", "Basic eDp5", "\xff"]),
    "anthropic-version": st.sampled_from(["2023-06-01", ""]),
    "x-pyflash-job": st.sampled_from(["x", "0" * 36, "../../etc"]),
    "session-id": st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=600),
})  # fmt: skip


class Found(Exception):
    """An answer that should not be."""


class Fuzz:
    """n: answers by their status."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._session = requests.Session()
        self.n: Counter[int] = Counter()

    def check(self, response: requests.Response, asked: object) -> None:
        status = response.status_code
        self.n[status] += 1
        text = response.text
        if (status >= 500 and status not in (501, 503)) or "nobody foresaw" in text:
            raise Found(f"{status} {text[:300]} for {asked!r:.2000}")
        if status >= 400 and response.request.method != "HEAD" and text != "Invalid HTTP request received.":
            error = json.loads(text)["error"]
            message = error if isinstance(error, str) else error["message"]
            if not message or "\n" in message or len(message) > 600:
                raise Found(f"{status} with the message {message!r:.700} for {asked!r:.1000}")

    def case(self, case: schemathesis.Case) -> None:
        """A request that the document describes, or nearly."""
        if isinstance(case.body, dict) and "max_tokens" not in case.body and case.path.startswith("/v1"):
            case.body = {**case.body, "max_output_tokens" if case.path == "/v1/responses" else "max_tokens": 4}
        try:
            response = case.call(base_url=self._url, session=self._session, timeout=_SECONDS)
        except (ValueError, requests.exceptions.InvalidHeader):
            return  # requests itself does not send it
        self.check(response, case.as_curl_command())

    def raw(self, path: str, data: bytes, headers: dict[str, str]) -> None:
        given = {"content-type": "application/json", **headers}
        try:
            response = self._session.post(f"{self._url}{path}", data, headers={
                key: value.encode("latin-1") for key, value in given.items()}, timeout=_SECONDS)
        except (ValueError, requests.exceptions.InvalidHeader):
            return
        self.check(response, (path, data, headers))


@st.composite
def broken_json(draw: st.DrawFn) -> bytes:
    """Nearly a body."""
    body: Any = {"messages": [{"role": "user", "content": draw(st.text(max_size=20))}], "prompt": "x", "input": "x", "max_tokens": 1,
                 draw(st.text(max_size=5)): draw(st.floats() | st.text(max_size=9) | st.integers())}  # fmt: skip
    data = bytearray(json.dumps(body).encode())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.sampled_from([
            b"", b"\\ud800", b"[" * 300, b"1e999", b"9" * 5000, b"\xff", b"\x00", b"NaN", b",", b"}", b'"', b"\\", b"null"]))
    return bytes(data)


def fuzz(port: int, seconds: float, first_seed: int = 0) -> Counter[int]:
    """Asks the server at a port for so long. Returns how many answers of each status there were; Found for one that is wrong."""
    asking = Fuzz(port)
    document = schemathesis.openapi.from_dict(DOCUMENT)
    operations = [result.ok() for result in document.get_all_operations()]
    paths = [operation.path for operation in operations if operation.method == "post"]
    kept = settings(max_examples=_EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck))  # fmt: skip
    end = time.monotonic() + seconds
    number = first_seed
    while time.monotonic() < end:
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                strategy = operation.as_strategy(generation_mode=mode)
                number += 1
                with contextlib.suppress(Unsatisfiable):  # nothing about it can be wrong
                    seed(number)(kept(given(strategy)(asking.case)))()
                if time.monotonic() > end:
                    return asking.n
        number += 1
        broken = settings(kept, max_examples=_BROKEN)
        seed(number)(broken(given(st.sampled_from(paths), broken_json(), _HEADERS)(asking.raw)))()
    return asking.n
