"""A stand-in for Hugging Face's hub on 127.0.0.1: its answers about a repository, and files by way of another host."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from dataclasses import dataclass, field
from typing import Any

COMMIT = "5e" * 20


@dataclass
class Hub:
    """files: by path, of the one repository. What happens: ranges asked for; authorization headers by host.

    cut: bytes after which a connection breaks, while there are any in the list. damage: the bytes that are sent are
    others. ignore_ranges: every answer begins at the beginning. status: for all questions. wait: is set where sending
    should stop, until it is cleared.
    """

    repository: str = "org/Flash-GGUF"
    files: dict[str, bytes] = field(default_factory=dict)
    architecture: str | None = "deepseek4"
    in_git: frozenset[str] = frozenset()
    cut: list[int] = field(default_factory=list)
    damage: bool = False
    ignore_ranges: bool = False
    status: int = 200
    error_code: str = ""
    stall_at: int | None = None
    stalled: threading.Event = field(default_factory=threading.Event)
    ranges: list[tuple[str, int]] = field(default_factory=list)
    authorizations: list[tuple[str, str | None]] = field(default_factory=list)
    n_requests: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def key(self, path: str) -> str:
        data = self.files[path]
        if path in self.in_git:
            return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return hashlib.sha256(data).hexdigest()

    def about(self) -> dict[str, Any]:
        siblings = []
        for path, data in self.files.items():
            sibling: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": "ab" * 20}
            if path in self.in_git:
                sibling["blobId"] = self.key(path)
            else:
                sibling["lfs"] = {"sha256": self.key(path), "size": len(data), "pointerSize": 135}
            siblings.append(sibling)
        about: dict[str, Any] = {"id": self.repository, "modelId": self.repository, "sha": COMMIT, "siblings": siblings}
        if self.architecture:
            about["gguf"] = {"total": 1, "architecture": self.architecture}
        return about


def serve(hub: Hub) -> http.server.ThreadingHTTPServer:
    """The running server, in threads of its own; shut it down."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.n_requests += 1
            hub.authorizations.append((self.headers["Host"].split(":")[0], self.headers["Authorization"]))
            path = self.path.partition("?")[0]
            if hub.status != 200 and not path.startswith("/cdn/"):
                self.answer(hub.status, b"no", X_Error_Code=hub.error_code)
            elif path.lower() == f"/api/models/{hub.repository}".lower():
                self.answer(200, json.dumps(hub.about()).encode(), Content_Type="application/json")
            elif path.startswith(start := f"/{hub.repository}/resolve/{COMMIT}/") and path[len(start):] in hub.files:
                self.resolve(path[len(start):])
            elif path.startswith("/cdn/"):
                self.send(path[len("/cdn/"):])
            else:
                self.answer(404, X_Error_Code="RepoNotFound" if path.startswith("/api/") else "EntryNotFound")

        def resolve(self, path: str) -> None:
            key = f'"{hub.key(path)}"'
            if path in hub.in_git:
                self.answer(200, hub.files[path], X_Repo_Commit=COMMIT, ETag=key)
            else:
                self.answer(302, X_Repo_Commit=COMMIT, X_Linked_Etag=key, X_Linked_Size=str(len(hub.files[path])),
                            Location=f"http://localhost:{hub.port}/cdn/{path}")

        def send(self, path: str) -> None:
            data = bytes(len(hub.files[path])) if hub.damage else hub.files[path]
            wanted = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
            first, last = (int(part or -1) for part in wanted.split("-"))
            hub.ranges.append((path, first))
            self.send_response(200 if hub.ignore_ranges else 206)
            if hub.ignore_ranges:
                first, last = 0, -1
            last = last if last >= 0 else len(data) - 1
            if not hub.ignore_ranges:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            if hub.cut and first + hub.cut[0] <= last:
                self.wfile.write(data[first : first + hub.cut.pop(0)])
                self.close_connection = True
            elif hub.stall_at is not None:
                self.wfile.write(data[first : hub.stall_at])
                self.wfile.flush()
                hub.stalled.set()
                self.rfile.read(1)  # until the other side leaves
                self.close_connection = True
            else:
                self.wfile.write(data[first : last + 1])

    return Handler
