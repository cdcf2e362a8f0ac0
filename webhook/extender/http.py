"""An HTTP listener with bounds: connections, body sizes, bytes in memory, and time to send a body.

It speaks as much HTTP/1.1 as kube-scheduler, curl and a browser need, and nothing else: aiohttp's server takes 0.2 ms more
for a list of 5,000 node names, which it copies three times on its way, and leaves the bounds open that stand here. At the cap
on connections the newcomer wins over whoever has been here longest without a request under way. A connection that sends
nothing, or half a head, ends with the time for idle ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from tessera.daemon.flags import Address
from webhook.extender.errors import NotReadyError
from webhook.extender.heads import LONGEST_HEAD, Head, HeadError, answer_head, read_head
from webhook.extender.wire import LARGEST_BODY, WireError

_log = logging.getLogger(__name__)

Handler = Callable[[bytes, Callable[[], bool]], Awaitable[bytes]]
"""Takes a body and a function that tells whether the client has gone away; returns JSON."""

Reader = Callable[[], Awaitable[bytes]]
"""Returns JSON."""

_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"
_END: Final = b"\r\n\r\n"
_LINGER: Final = 2.0
"""Seconds in which what a refused client still sends is thrown away: closed at once, it might never read why."""
_SMALL: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one listener takes. Seconds and bytes.

    Attributes:
        body: longest body.
        bodies: bytes of all bodies that are being read or worked on.
        connections: open at one time. kube-scheduler opens nearly one per pod.
        body_time: for a body to come in.
        idle: for a connection without a request; above the 90 s after which Go's client closes one by itself.
        grace: for requests under way when the listener stops.
    """

    body: int = LARGEST_BODY
    bodies: int = 128 << 20
    connections: int = 1024
    body_time: float = 10.0
    idle: float = 100.0
    grace: float = 5.0


class Listener:
    """Serves handlers by path; an async context manager.

    Attributes:
        address: where it listens; holds the port the kernel chose.
        draining: answers end their connections.
        limits: what is taken.
        bodies: bytes of all bodies that are being read or worked on.
    """

    def __init__(
        self,
        listen: Address,
        *,
        posts: Mapping[str, Handler] | None = None,
        gets: Mapping[str, Reader] | None = None,
        refused: Callable[[int], None] | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Say where to listen and what to answer.

        Args:
            listen: host and port.
            posts: handlers of POST by path.
            gets: read-only JSON by path.
            refused: called with the HTTP status of every answer that is an error.
            limits: what is taken.
        """
        self.address = listen
        self.draining = False
        self.limits = limits or Limits()
        self.bodies = 0
        self._posts = dict(posts or {})
        self._gets = dict(gets or {})
        self._refused = refused
        self._connections: dict[_Connection, None] = {}
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Start to serve.

        Raises:
            OSError: the address is taken or is none of ours.
        """
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), self.address.host, self.address.port, backlog=1024
        )
        self.address = Address(self.address.host, self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop: take no more, let requests under way end."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        tasks = [each.task for each in self._connections if each.task is not None]
        for each in list(self._connections):
            if each.task is None:
                each.drop()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self.limits.grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        while self._connections:
            for each in list(self._connections):
                each.drop()
            await asyncio.sleep(0)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    # What a connection asks.

    def opened(self, connection: _Connection) -> bool:
        """Take a connection in; False where there are too many, all of which are busy."""
        if len(self._connections) >= self.limits.connections:
            idle = next((each for each in self._connections if not each.busy), None)
            if idle is None:
                return False
            self.closed(idle)
            idle.drop()
        self._connections[connection] = None
        return True

    def closed(self, connection: _Connection) -> None:
        """A connection has ended."""
        self._connections.pop(connection, None)

    def admit(self, head: Head) -> Handler:
        """Who answers a request.

        Raises:
            HeadError: nobody, or not with such a body.
        """
        size = head.length
        if head.path in self._gets and head.method in ("GET", "HEAD"):
            if size:
                raise HeadError(400, f"{head.method} takes no body")
            reader = self._gets[head.path]
            return lambda _body, _gone: reader()
        handler = self._posts.get(head.path)
        if handler is None:
            known = head.path in self._gets
            raise HeadError(405, "only GET is served here") if known else HeadError(404, "nothing is served here")
        if head.method != "POST":
            raise HeadError(405, "only POST is served here")
        if size is None:
            raise HeadError(411, "send a Content-Length")
        if size > self.limits.body:
            raise HeadError(413, f"a body of {size} bytes; at most {self.limits.body} are taken")
        if self.bodies + size > self.limits.bodies:
            raise HeadError(503, "too many large bodies at once; try again")
        return handler

    def refused(self, status: int) -> None:
        """An answer is an error."""
        if self._refused is not None:
            self._refused(status)


class _Connection(asyncio.Protocol):
    """One client: requests one after the other.

    Attributes:
        busy: a request is under way, its body being read or its answer made.
        task: makes an answer.
    """

    def __init__(self, listener: Listener) -> None:
        """Belong to this listener."""
        self.busy = False
        self.task: asyncio.Task[None] | None = None
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._came = b""
        self._parts: list[bytes] = []
        self._missing = 0
        self._size = 0
        self._head: Head | None = None
        self._handler: Handler | None = None
        self._since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._ending = self._stuck = self._paused = False

    # What the loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client is here."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(transport)
        self._transport = transport
        if not self._listener.opened(self):
            self._ending = True
            transport.abort()
            return
        self._timer = self._loop.call_later(self._listener.limits.idle, self._look_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client is gone; an answer that is being made is made to its end."""
        self._ending = True
        self._listener.closed(self)
        for timer in (self._timer, self._deadline):
            if timer is not None:
                timer.cancel()
        if self.task is None:
            self._free()

    def data_received(self, data: bytes) -> None:
        """Some bytes came."""
        if self._ending:
            return
        if self._missing > 0:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing <= 0:
                self._whole()
            return
        self._came = self._came + data if self._came else data
        if not self.busy:
            self._next()
        elif len(self._came) > LONGEST_HEAD and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """The client does not read."""
        self._stuck = True

    def resume_writing(self) -> None:
        """It does again."""
        self._stuck = False
        if not self.busy:
            self._next()

    # A request.

    def _next(self) -> None:
        """Begin with the next request if its head is there."""
        if self._ending or self._stuck or not self._came:
            return
        at = self._came.find(_END, 0, LONGEST_HEAD + len(_END))
        if at < 0:
            if len(self._came) > LONGEST_HEAD:
                self._refuse(HeadError(431, f"a head of more than {LONGEST_HEAD} bytes"))
            return
        try:
            head = read_head(self._came[:at])
            self._handler = self._listener.admit(head)
        except HeadError as error:
            self._refuse(error)
            return
        self._head = head
        self.busy = True
        self._size = head.length or 0
        self._listener.bodies += self._size
        rest = self._came[at + len(_END) :]
        self._came = b""
        self._parts = [rest]
        self._missing = self._size - len(rest)
        if self._missing <= 0:
            self._whole()
            return
        self._deadline = self._loop.call_later(self._listener.limits.body_time, self._too_late)
        if head.waits and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _whole(self) -> None:
        """The body is there."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        body = b"".join(self._parts) if len(self._parts) > 1 else self._parts[0]
        self._parts = []
        if self._missing < 0:
            body, self._came = body[: self._size], body[self._size :]
            self._missing = 0
        if self._head is not None and self._handler is not None:
            self.task = self._loop.create_task(self._answer(self._head, self._handler, body))

    async def _answer(self, head: Head, handler: Handler, body: bytes) -> None:
        status, last = 200, head.last
        try:
            content = await handler(body, self._gone)
        except WireError as error:
            status, content = 400, f"{error}\n".encode()
        except NotReadyError as error:
            status, content = 503, f"{error}\n".encode()
        except Exception:  # noqa: BLE001  a fault of ours is a 500, never the end of the server
            _log.exception("%s failed on a body of %d bytes", head.path, len(body))
            status, content, last = 500, b"the extender failed on this request; its log says why\n", True
        except asyncio.CancelledError:
            # A client that waits on would wait for ever.
            self.drop()
            raise
        finally:
            self.task = None
            self._free()
        self._send(status, content, last=last, bare=head.method == "HEAD")

    def _send(self, status: int, content: bytes, *, last: bool, bare: bool) -> None:
        if status != 200:
            self._listener.refused(status)
        if self._transport is None or self._transport.is_closing():
            return
        last = last or self._listener.draining
        text = answer_head(status, len(content), kind=_JSON if status == 200 else _TEXT, last=last)
        if bare:
            content = b""
        if len(content) < _SMALL:
            self._transport.write(text + content)
        else:
            self._transport.write(text)
            self._transport.write(content)
        if last:
            self._transport.close()
            return
        self._since = self._loop.time()
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._came:
            self._loop.call_soon(self._next_if_idle)

    def _next_if_idle(self) -> None:
        if not self.busy:
            self._next()

    def _gone(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _free(self) -> None:
        """No request is under way any more."""
        self.busy = False
        self._listener.bodies -= self._size
        self._size = self._missing = 0
        self._parts = []

    # Ends.

    def _refuse(self, error: HeadError) -> None:
        """Say why, and read no further."""
        self._listener.refused(error.status)
        self._free()
        self._ending, self._came = True, b""
        if self._transport is None or self._transport.is_closing():
            return
        content = f"{error}\n".encode()
        self._transport.write(answer_head(error.status, len(content), kind=_TEXT, last=True) + content)
        self._transport.write_eof()
        self._deadline = self._loop.call_later(_LINGER, self.drop)

    def _too_late(self) -> None:
        self._refuse(HeadError(408, f"the body did not come within {self._listener.limits.body_time:g} s"))

    def _look_if_idle(self) -> None:
        idle = self._listener.limits.idle
        left = idle if self.busy else self._since + idle - self._loop.time()
        if left <= 0:
            self.drop()
        else:
            self._timer = self._loop.call_later(left, self._look_if_idle)

    def drop(self) -> None:
        """End at once."""
        self._ending = True
        if self._transport is not None:
            self._transport.abort()
