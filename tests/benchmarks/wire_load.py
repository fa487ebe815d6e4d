"""Clients that cost little, so that the server is measured: ready-made bytes go out, lengths are looked at."""

from __future__ import annotations

import base64
import itertools
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

_READ_BYTES = 1 << 16
_PATIENCE_S = 30.0
_SHORT_FRAME, _MIDDLE_FRAME = 126, 127


class Framing(Protocol):
    """How a body is put on a connection, and where an answer ends."""

    def open(self, connection: socket.socket) -> None:
        """Do what comes before the first body."""

    def frame(self, body: bytes) -> bytes:
        """Give the bytes that send a body."""

    def end(self, received: bytearray) -> int:
        """Tell where the first answer ends; 0 where it is not there yet."""


class Http:
    """Keep-alive HTTP."""

    def open(self, connection: socket.socket) -> None:
        """Nothing comes before."""

    def frame(self, body: bytes) -> bytes:
        head = (
            f"POST /rpc HTTP/1.1\r\nHost: vmmd\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def end(self, received: bytearray) -> int:
        head = received.find(b"\r\n\r\n")
        if head < 0:
            return 0
        at = received.index(b"Content-Length: ") + 16
        whole = head + 4 + int(received[at : received.index(b"\r", at)])
        return whole if len(received) >= whole else 0


class WebSocket:
    """Text frames, masked with zeroes."""

    def open(self, connection: socket.socket) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        connection.sendall(
            f"GET /ws HTTP/1.1\r\nHost: vmmd\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(_READ_BYTES)
        if b" 101 " not in head:
            raise ConnectionError(f"no WebSocket: {head[:60]!r}")

    def frame(self, body: bytes) -> bytes:
        size = len(body)
        length = bytes([0x80 | size]) if size < _SHORT_FRAME else struct.pack("!BH", 0x80 | _SHORT_FRAME, size)
        return b"\x81" + length + b"\0\0\0\0" + body

    def end(self, received: bytearray) -> int:
        if len(received) < 4:
            return 0
        size = received[1] & 0x7F
        whole = size + 2 if size < _SHORT_FRAME else int.from_bytes(received[2:4], "big") + 4
        return whole if len(received) >= whole else 0


def body(method: str, **params: Any) -> bytes:
    """Give the text of a call."""
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


def connect(path: Path, framing: Framing) -> socket.socket:
    """Connect to a UNIX socket, ready for the first body."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_PATIENCE_S)
    connection.connect(str(path))
    framing.open(connection)
    return connection


class _Caller:
    """A connection that always has one call under way."""

    def __init__(self, connection: socket.socket, framing: Framing, bodies: Sequence[bytes]) -> None:
        self.connection = connection
        self.latencies_s: list[float] = []
        self._end = framing.end
        self._requests: Iterator[bytes] = itertools.cycle([framing.frame(text) for text in bodies])
        self._received = bytearray()
        self._sent_s = 0.0

    def send(self) -> None:
        """Send the next call."""
        self._sent_s = time.perf_counter()
        self.connection.sendall(next(self._requests))

    def receive(self) -> bool:
        """Take what has come; tell whether the answer is whole."""
        more = self.connection.recv(_READ_BYTES)
        if not more:
            raise ConnectionError("the server closed the connection")
        self._received += more
        end = self._end(self._received)
        if end:
            if b'"error"' in self._received:
                raise RuntimeError(bytes(self._received).decode())
            del self._received[:end]
            self.latencies_s.append(time.perf_counter() - self._sent_s)
        return bool(end)


def drive(path: Path, framing: Framing, bodies: Sequence[Sequence[bytes]], seconds: float) -> list[float]:
    """Let a connection a list of bodies call for a while, each its own in turn; give all latencies."""
    callers = [_Caller(connect(path, framing), framing, own) for own in bodies]
    with selectors.DefaultSelector() as selector:
        for caller in callers:
            selector.register(caller.connection, selectors.EVENT_READ, caller)
            caller.send()
        until = time.perf_counter() + seconds
        waiting = len(callers)
        while waiting:
            ready = selector.select(_PATIENCE_S)
            if not ready:
                raise TimeoutError(f"no answer for {_PATIENCE_S:.0f} s")
            for key, _ in ready:
                if not key.data.receive():
                    continue
                # Whoever changes something in turn ends where it began.
                if time.perf_counter() < until or len(key.data.latencies_s) % 2:
                    key.data.send()
                else:
                    waiting -= 1
    for caller in callers:
        caller.connection.close()
    return [latency for caller in callers for latency in caller.latencies_s]
