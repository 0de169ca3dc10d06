"""Connections that are too many, or whose request does not come: uvicorn's protocol class with limits on both.

The guard sees a request once its head is there. Before that, nothing but a connection's own clock can end it.
"""

from __future__ import annotations

import asyncio
from typing import Any

HEAD_SECONDS = 10.0  # for a request's line and headers, from the first byte or the connection's beginning
MOST_CONNECTIONS = 256

_EMPTY = b"connection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\n" + _EMPTY
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\n" + _EMPTY


def limited_protocol(head_seconds: float = HEAD_SECONDS, most_connections: int = MOST_CONNECTIONS) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn.Config(http=...). ImportError without uvicorn."""
    from h11 import IDLE
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Limited(H11Protocol):
        _awaits_head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most_connections:
                self._end(_TOO_MANY)
            else:
                self._awaits_head = self.loop.call_later(head_seconds, self._end, _TOO_SLOW)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not IDLE:
                self._stop_waiting()
            elif self._awaits_head is None and not self.transport.is_closing():  # the next request's head has begun
                self._awaits_head = self.loop.call_later(head_seconds, self._end, _TOO_SLOW)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _stop_waiting(self) -> None:
            if self._awaits_head is not None:
                self._awaits_head.cancel()
                self._awaits_head = None

        def _end(self, answer: bytes) -> None:
            self._awaits_head = None
            if not self.transport.is_closing():
                self.transport.write(answer)
                self.transport.close()

    return Limited
