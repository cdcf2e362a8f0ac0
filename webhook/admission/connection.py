"""One TLS connection: requests in, answers out, and at every moment a deadline and a bound.

Requests are answered in the callback that completes them: a review needs no coroutine, and without tasks a flood of
requests can't queue up work. Pipelined requests are taken one per turn of the loop, with reading paused meanwhile, so that
one client can neither starve the others nor fill the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal, Protocol, cast

from webhook.admission.chunks import Chunks
from webhook.admission.http1 import (
    CONTINUE,
    END_OF_HEAD,
    LONGEST_HEAD,
    Answer,
    Head,
    HttpError,
    read_head,
    refusal,
    write_head,
)

Handler = Callable[[bytes], Answer]
"""Answers a body; called inside the event loop, so it computes and never waits."""

SMALL_BODY: Final = 64 * 1024
"""Bodies up to here are always taken; larger ones share `Limits.large_bodies`. Pods have 3 to 20 KB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server takes. Seconds and bytes.

    Attributes:
        body: longest body; the API server itself takes no more than 3 MiB from users.
        large_bodies: bytes of bodies above `SMALL_BODY` that all connections together may be sending.
        connections: open at one time, TLS handshakes included. Three API servers with their default of 200 mutating
            requests in flight, each on a connection of its own (HTTP/1.1), make 600.
        handshake: for the TLS handshake.
        head: from a request's first byte to the end of its headers.
        body_time: from there to the end of the body.
        write: for the client to take an answer.
        idle: between requests; above the 90 s after which Go's client closes by itself, so that we don't close a
            connection that it is about to use.
        linger: to read and drop what a client still sends after an error, so that it sees our answer and no reset.
        sweep: between looks at the deadlines.
    """

    body: int = 8 * 1024 * 1024
    large_bodies: int = 64 * 1024 * 1024
    connections: int = 1024
    handshake: float = 5.0
    head: float = 10.0
    body_time: float = 10.0
    write: float = 10.0
    idle: float = 150.0
    linger: float = 2.0
    sweep: float = 1.0


class Host(Protocol):
    """What a connection needs of its server."""

    limits: Limits
    draining: bool
    date: bytes

    @property
    def paths(self) -> Mapping[str, Handler]:
        """The handlers by path."""
        ...

    def answer(self, path: str, body: bytes) -> Answer:
        """Answer a complete request."""
        ...

    def refused(self, status: HTTPStatus) -> None:
        """Count a request that was refused before its body was read."""
        ...

    def reserve(self, size: int) -> bool:
        """Ask for room for a large body; False where the others have taken it all."""
        ...

    def release(self, size: int) -> None:
        """Give that room back."""
        ...

    def opened(self, connection: Connection) -> None:
        """Know a new connection, after its handshake."""
        ...

    def closed(self, connection: Connection) -> None:
        """Forget it."""
        ...


State = Literal["idle", "head", "body", "stuck", "refusing", "leaving"]
"""``stuck``: the client doesn't take our answers. ``refusing``: we have said our last word and read on for a moment.
``leaving``: closing."""


class Connection(asyncio.Protocol):
    """The protocol object of one connection; `server.AdmissionServer` makes them.

    Attributes:
        served: answers given.
        deadline: loop time by which the present state has to be over.
        state: what is waited for.
    """

    __slots__ = (
        "_blank",
        "_buffer",
        "_chunks",
        "_head",
        "_host",
        "_loop",
        "_reserved",
        "_scanned",
        "_transport",
        "deadline",
        "served",
        "state",
    )

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to a server."""
        self._host = host
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._scanned = 0
        self._blank = False
        self._head: Head | None = None
        self._chunks: Chunks | None = None
        self._reserved = 0
        self.served = 0
        self.state: State = "idle"
        # A new connection is there to send a request: it has the head's time, not the idle time.
        self.deadline = loop.time() + host.limits.head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to listen to the client."""
        self._transport = cast("asyncio.Transport", transport)
        self._host.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        del exc
        self._transport = None
        self._buffer.clear()
        self._chunks = None
        self._release()
        self._host.closed(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self.over:
            return
        self._buffer += data
        if self.state != "stuck":
            self._advance()

    def pause_writing(self) -> None:
        """The client reads slower than we answer: take no more requests from it."""
        if self._transport is not None and not self.over:
            self._transport.pause_reading()
            self._enter("stuck", self._host.limits.write)

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._transport is not None and self.state == "stuck":
            if self._head is None:
                self._enter("idle", self._host.limits.idle)
            else:
                self._enter("body", self._host.limits.body_time)
            self._transport.resume_reading()
            self._advance()

    @property
    def over(self) -> bool:
        """Nothing more will be answered here."""
        return self.state in ("refusing", "leaving")

    def expire(self) -> None:
        """The deadline has passed."""
        if self.state in ("idle", "refusing"):
            self.leave()
        elif self.state in ("head", "body"):
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request's {self.state} took too long")
        else:
            self.abort()

    def leave(self) -> None:
        """Close after what has been written; what the client still sends is not answered."""
        if self._transport is not None:
            self._enter("leaving", self._host.limits.linger)
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._enter("leaving", self._host.limits.linger)
            self._transport.abort()

    def _enter(self, state: State, seconds: float) -> None:
        self.state = state
        self.deadline = self._loop.time() + seconds

    def _advance(self) -> None:
        """Answer at most one request, and see to it that the next one gets its turn."""
        try:
            head = self._head or self._take_head()
            body = None if head is None else self._take_body(head)
        except HttpError as error:
            self._refuse(error.status, str(error))
            return
        if head is None or body is None:
            return
        self._head = self._chunks = None
        self._release()
        answer = self._host.answer(head.path, body)
        self.served += 1
        self._enter("idle", self._host.limits.idle)
        self._write(answer, close=self._host.draining or not head.keep_alive)
        if self.state == "idle" and self._buffer and self._transport is not None:
            self._transport.pause_reading()
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        if self.state == "idle" and self._transport is not None:
            self._transport.resume_reading()
            self._advance()

    def _take_head(self) -> Head | None:
        """Cut the next head off the buffer, once it is complete, and check what can be told from it alone.

        Raises:
            HttpError: the request is refused.
        """
        buffer = self._buffer
        if not self._blank and buffer.startswith(b"\r\n"):
            del buffer[:2]  # RFC 9112, 2.2: an empty line before a request is ignored
            self._blank = True
        if not buffer:
            return None
        if self.state == "idle":
            self._enter("head", self._host.limits.head)
        if buffer == b"\r":
            return None
        # Only what is new is searched, so that a client that sends byte by byte costs no more than another.
        end = buffer.find(END_OF_HEAD, max(0, self._scanned - len(END_OF_HEAD)), LONGEST_HEAD)
        if end < 0:
            self._scanned = len(buffer)
            if len(buffer) >= LONGEST_HEAD:
                raise HttpError(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"headers of more than {LONGEST_HEAD} bytes"
                )
            return None
        self._scanned = 0
        self._blank = False
        head = read_head(bytes(buffer[:end]))
        del buffer[: end + len(END_OF_HEAD)]
        self._check(head)
        self._head = head
        self._chunks = Chunks(self._host.limits.body) if head.chunked else None
        self._enter("body", self._host.limits.body_time)
        if head.waits and (not buffer if head.chunked else len(buffer) < head.length) and self._transport is not None:
            self._transport.write(CONTINUE)
        return head

    def _take_body(self, head: Head) -> bytes | None:
        """Cut the body off the buffer, once it is complete.

        Raises:
            HttpError: its chunks are none, or too large.
        """
        if self._chunks is None:
            if len(self._buffer) < head.length:
                return None
            body = bytes(memoryview(self._buffer)[: head.length])
            del self._buffer[: head.length]
            return body
        complete = self._chunks.take(self._buffer)
        self._reserve(len(self._chunks.body))
        return bytes(self._chunks.body) if complete else None

    def _reserve(self, size: int) -> None:
        """See to it that there is room for a body of this size, or one that has grown to it."""
        if size > SMALL_BODY and size > self._reserved:
            if not self._host.reserve(size - self._reserved):
                raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "too many large bodies at one time; try again")
            self._reserved = size

    def _check(self, head: Head) -> None:
        host = self._host
        if head.path not in host.paths:
            raise HttpError(HTTPStatus.NOT_FOUND, f"nothing is served here but {', '.join(sorted(host.paths))}")
        if head.method != "POST":
            raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "send a review by POST")
        if head.length > host.limits.body:
            raise HttpError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"body of {head.length} bytes; at most {host.limits.body} are taken",
            )
        self._reserve(head.length)

    def _release(self) -> None:
        if self._reserved:
            self._host.release(self._reserved)
            self._reserved = 0

    def _refuse(self, status: HTTPStatus, problem: str) -> None:
        """Answer with an error and end the connection, but go on reading for a moment.

        Closing a socket with unread bytes in it resets the connection, and the client may never see the answer.
        """
        self._host.refused(status)
        self._head = self._chunks = None
        self._buffer.clear()
        self._release()
        self._enter("refusing", self._host.limits.linger)
        if self._transport is not None:
            answer = refusal(status, problem)
            self._transport.write(write_head(answer, date=self._host.date, close=True) + answer.body)

    def _write(self, answer: Answer, *, close: bool) -> None:
        if self._transport is None:
            return
        self._transport.write(write_head(answer, date=self._host.date, close=close) + answer.body)
        if close:
            self.leave()
