"""Fuzzing of the HTTP parser: bytes and events into one connection, without sockets; cut differently, they mean the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from random import Random

from webhook.admission.connection import Connection, Handler, Limits
from webhook.admission.http1 import Answer

_HEAD = (b"POST /mutate HTTP/1.1", b"Host: h", b"Content-Type: application/json")
PIECES = (
    b"\r\n".join(_HEAD) + b"\r\nContent-Length: 2\r\n\r\n{}",
    b"\r\n".join(_HEAD) + b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"\r\n".join(_HEAD) + b"\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\n{\r\n1\r\n}\r\n0\r\nX: y\r\n\r\n",
    b"\r\n".join(_HEAD) + b"\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nabcde",
    b"\r\n".join(_HEAD) + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    b"\r\n".join(_HEAD) + b"\r\nContent-Length: 70000\r\n\r\n",
    b"POST /mutate HTTP/1.0\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n",
    b"GET /mutate HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST /mutate HTTP/1.1\r\n", b"Host: h\r\n", b"Content-Type: application/json\r\n", b"Content-Length: 3\r\n",
    b"Content-Length: 99999999999\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"\r\n", b"\r",
    b"\n", b"\x00", b"5\r\nhello\r\n", b"0\r\n\r\n", b"FFFFFFFF\r\n", b"a" * 17_000, b": ", b" ", b"\t", b"HTTP/1.1",
    b"Connection: close\r\n", b"Expect: 100-continue\r\n",
)  # fmt: skip


class Loop:
    """Callbacks that run when they are told to; time stands still."""

    def __init__(self) -> None:
        self._soon: list[Callable[[], None]] = []

    def time(self) -> float:
        return 0.0

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def settle(self) -> None:
        while self._soon:
            todo, self._soon = self._soon, []
            for callback in todo:
                callback()


class Transport:
    """What is written, and whether it has ended."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.reading = True
        self.ended = False

    def write(self, data: bytes) -> None:
        if self.ended:
            raise AssertionError("written after the end")
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.ended = True

    abort = close


class Host:
    """A server that notes bodies, and what is reserved."""

    def __init__(self) -> None:
        self.limits = Limits(body=100_000, large_bodies=150_000)
        self.draining = False
        self.date = b"now"
        self.bodies: list[bytes] = []
        self.refusals: list[int] = []
        self.reserved = 0
        self.paths: Mapping[str, Handler] = {"/mutate": self._note}

    def _note(self, body: bytes) -> Answer:
        self.bodies.append(body)
        return Answer(HTTPStatus.OK, b"{}")

    def answer(self, path: str, body: bytes) -> Answer:
        return self.paths[path](body)

    def refused(self, status: HTTPStatus) -> None:
        self.refusals.append(int(status))

    def reserve(self, size: int) -> bool:
        if self.reserved + size > self.limits.large_bodies:
            return False
        self.reserved += size
        return True

    def release(self, size: int) -> None:
        self.reserved -= size

    def opened(self, connection: Connection) -> None:
        """Nothing to note."""

    def closed(self, connection: Connection) -> None:
        """Nothing to note."""


class WireFuzzer:
    """Makes streams of bytes and checks what a connection makes of them."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def input(self) -> bytes:
        """The next stream."""
        random = self._random
        stream = bytearray().join(random.choice(PIECES) for _ in range(random.randrange(1, 8)))
        for _ in range(random.choice((0, 0, 1, 2, 4))):
            at = random.randrange(len(stream) + 1)
            kind = random.randrange(3)
            if kind == 0:
                stream[at:at] = bytes([random.randrange(256)])
            elif kind == 1:
                del stream[at : at + random.randrange(1, 9)]
            elif at < len(stream):
                stream[at] = random.randrange(256)
        return bytes(stream)

    def run(self, stream: bytes) -> None:
        """Take a stream whole, and cut; both have to be answered alike."""
        random = self._random
        cuts = sorted(random.randrange(len(stream) + 1) for _ in range(random.choice((1, 3, 9))))
        whole, pieces = answered(stream, []), answered(stream, cuts)
        if whole != pieces:
            raise AssertionError(f"whole {whole!r}, cut at {cuts} {pieces!r}")


def answered(stream: bytes, cuts: list[int]) -> tuple[list[bytes], list[int]]:
    """The bodies that a handler saw and the refusals, for a stream that comes in these pieces."""
    loop, host, transport = Loop(), Host(), Transport()
    connection = Connection(host, loop)  # type: ignore[arg-type]  # what it needs of a loop
    connection.connection_made(transport)  # type: ignore[arg-type]  # what it needs of a transport
    at = 0
    for cut in (*cuts, len(stream)):
        if transport.ended:
            break
        loop.settle()
        connection.data_received(stream[at:cut])
        at = cut
        if len(connection._buffer) > host.limits.body + 40_000:
            raise AssertionError("too much is kept")
    loop.settle()
    connection.connection_lost(None)
    if host.reserved:
        raise AssertionError("room was not given back")
    return host.bodies, host.refusals
