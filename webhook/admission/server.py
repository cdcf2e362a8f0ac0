"""The HTTPS server of the webhook: who may connect, for how long, and how it ends without losing a review.

Connections are accepted by hand because the cap has to count before the TLS handshake, which costs more than anything
else a stranger can ask of us. At the cap the newcomer wins over whoever has been here longest without ever completing a
request; the API server's connections have.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self

from tessera.daemon.flags import Address
from tessera.kube.clock import Clock
from webhook.admission.connection import Connection, Handler, Limits
from webhook.admission.http1 import Answer, refusal
from webhook.admission.metrics import Metrics

BACKLOG: Final = 512
STOP_GRACE: Final = 5.0
"""Seconds for requests under way when the server stops."""
_RETRY_ACCEPT: Final = 0.1
"""Seconds to wait where accept fails, as it does without free file descriptors."""
_ACCEPTED_AT_ONCE: Final = 64
"""Connections taken in one turn of the loop, so that a flood leaves time for requests."""

_log = logging.getLogger(__name__)


class AdmissionServer:
    """Serves reviews over TLS; an async context manager.

    Attributes:
        address: where it listens; holds the port the kernel chose.
        draining: answers carry ``Connection: close``.
    """

    def __init__(
        self,
        listen: Address,
        *,
        context: ssl.SSLContext,
        handlers: Mapping[str, Handler],
        metrics: Metrics,
        clock: Clock,
        limits: Limits | None = None,
    ) -> None:
        """Say where to listen and what to answer.

        Args:
            listen: host and port.
            context: certificate and key; reloading them in place takes effect with the next handshake.
            handlers: by path; each takes a body and gives an answer without waiting.
            metrics: of this process.
            clock: for the Date header.
            limits: what one server takes.
        """
        self.address = listen
        self.limits = limits or Limits()
        self.draining = False
        self.date = b""
        self._context = context
        self._paths = dict(handlers)
        self._metrics = metrics
        self._clock = clock
        self._seconds = {path: metrics.seconds.labels(path) for path in handlers}
        self._listener: socket.socket | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        self._connections: dict[Connection, None] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._large = 0

    async def __aenter__(self) -> Self:
        """Start to serve.

        Raises:
            OSError: the address is taken or is none of ours.
        """
        family = socket.AF_INET6 if ":" in self.address.host else socket.AF_INET
        # "[::]" means every address of both families, as it does for Go's servers beside us.
        both = self.address.host == "::" and socket.has_dualstack_ipv6()
        self._listener = listener = socket.create_server(
            tuple(self.address), family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
        listener.setblocking(False)
        self.address = Address(self.address.host, listener.getsockname()[1])
        self._tick()
        self._listen(listener)
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop at once where `stop` has not been called."""
        await self.stop(grace=0.0)

    def drain(self) -> None:
        """Serve on, and end each connection with its next answer: the API server then opens new ones elsewhere."""
        self.draining = True

    async def stop(self, *, grace: float = STOP_GRACE) -> None:
        """Take no more connections, let requests under way end, close everything.

        Args:
            grace: seconds for what is under way.
        """
        self.drain()
        self._stop_listening()
        for connection in list(self._connections):
            if connection.state == "idle" and connection.served:
                connection.leave()
        handshakes = list(self._handshakes)
        if grace and (handshakes or self._connections):
            try:
                async with asyncio.timeout(grace):
                    await asyncio.gather(*handshakes, return_exceptions=True)
                    await self._empty.wait()
            except TimeoutError:
                _log.warning("%d connections had to be cut off", len(self._connections))
        for task in handshakes:
            task.cancel()
        await asyncio.gather(*handshakes, return_exceptions=True)
        for connection in list(self._connections):
            connection.abort()
        await self._empty.wait()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)

    @property
    def paths(self) -> Mapping[str, Handler]:
        """The handlers by path."""
        return self._paths

    def answer(self, path: str, body: bytes) -> Answer:
        """Answer a complete request; a fault of ours is a 500, never the end of the server."""
        start = time.perf_counter()
        try:
            return self._paths[path](body)
        except Exception:  # noqa: BLE001  whatever a hostile pod has hit, the next review must be served
            _log.exception("%s failed on a body of %d bytes", path, len(body))
            return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the webhook failed on this review; its log says why")
        finally:
            self._seconds[path].observe(time.perf_counter() - start)

    def refused(self, status: HTTPStatus) -> None:
        """Count a request that was refused before its body was read."""
        self._metrics.refused.labels(str(status.value)).inc()

    def reserve(self, size: int) -> bool:
        """Ask for room for a large body; False where the others have taken it all."""
        if self._large + size > self.limits.large_bodies:
            return False
        self._large += size
        return True

    def release(self, size: int) -> None:
        """Give that room back."""
        self._large -= size

    def opened(self, connection: Connection) -> None:
        """Know a new connection, after its handshake."""
        self._connections[connection] = None
        self._empty.clear()

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._empty.set()

    def _listen(self, listener: socket.socket) -> None:
        # Not by `loop.sock_accept`: cancelled at the wrong moment, it loses a connection that the client believes to have.
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        # Whoever waits in the queue has connected already; closing the listener under them would reset them.
        self._accept(listener, most=BACKLOG)
        loop.remove_reader(listener)
        if self._retry is not None:
            self._retry.cancel()
        listener.close()

    def _accept(self, listener: socket.socket, most: int = _ACCEPTED_AT_ONCE) -> None:
        """Take what waits in the listener's queue."""
        loop = asyncio.get_running_loop()
        for _ in range(most):
            try:
                accepted, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.warning("no connection can be accepted: %s", error)
                loop.remove_reader(listener)
                self._retry = loop.call_later(_RETRY_ACCEPT, self._listen, listener)
                return
            accepted.setblocking(False)
            if len(self._connections) + len(self._handshakes) >= self.limits.connections and not self._make_room():
                accepted.close()
                self._metrics.dropped.labels("full").inc()
                continue
            task = loop.create_task(self._welcome(accepted))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _welcome(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: Connection(self, loop),
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=self.limits.handshake,
                ssl_shutdown_timeout=self.limits.linger,
            )
        except (OSError, TimeoutError):
            # Scanners, plain HTTP, clients that don't trust our CA: their affair, ours only as a number.
            self._metrics.dropped.labels("handshake").inc()

    def _make_room(self) -> bool:
        """End the connection that is missed least; False where all of them are at work."""
        victim = next((each for each in self._connections if not each.served and each.state != "leaving"), None)
        if victim is None:
            idle = [each for each in self._connections if each.state == "idle"]
            victim = min(idle, key=lambda each: each.deadline, default=None)
        if victim is None:
            return False
        self._metrics.dropped.labels("evicted").inc()
        victim.abort()
        return True

    async def _sweep(self) -> None:
        """Enforce the deadlines by one look at all connections now and then: a timer per request would cost more."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.limits.sweep)
            self._tick()
            now = loop.time()
            for connection in [each for each in self._connections if each.deadline < now]:
                if not connection.over:
                    self._metrics.dropped.labels("deadline").inc()
                connection.expire()

    def _tick(self) -> None:
        self.date = formatdate(self._clock.wall(), usegmt=True).encode()
        self._metrics.connections.set(len(self._connections) + len(self._handshakes))
