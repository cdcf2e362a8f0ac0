"""An HTTP listener with bounds: connections, body sizes, bytes in memory, and time to send a body.

aiohttp's server does the protocol. What it leaves open is closed here: it has no cap on connections (at ours, the newcomer
wins over whoever has been here longest without a request under way), none on what all bodies together hold, and no deadline
for a body that trickles in. A connection that sends nothing, or half a header, ends with the keep-alive time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web

from tessera.daemon.flags import Address
from webhook.extender.errors import NotReadyError
from webhook.extender.wire import LARGEST_BODY, WireError

_log = logging.getLogger(__name__)

Handler = Callable[[bytes, Callable[[], bool]], Awaitable[bytes]]
"""Takes a body and a function that tells whether the client has gone away; returns JSON."""


Reader = Callable[[], Awaitable[bytes]]
"""Returns JSON."""


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
        self._limits = limits or Limits()
        self._refused = refused
        self._bodies = 0
        self._busy: set[asyncio.BaseTransport] = set()
        app = web.Application(client_max_size=self._limits.body)
        for path, handler in (posts or {}).items():
            app.router.add_post(path, self._posting(handler))
        for path, reader in (gets or {}).items():
            app.router.add_get(path, self._getting(reader))
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=self._limits.idle,
            shutdown_timeout=self._limits.grace,
            # A compressed bomb is just a body that is no JSON.
            auto_decompress=False,
        )
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Start to serve.

        Raises:
            OSError: the address is taken or is none of ours.
        """
        await self._runner.setup()
        self._server = await asyncio.get_running_loop().create_server(
            self._accept, self.address.host, self.address.port, backlog=1024
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
        await self._runner.cleanup()

    def _accept(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None:
            raise RuntimeError("the listener accepts before it has been set up")
        connections = server.connections
        if len(connections) >= self._limits.connections:
            idle = next((each for each in connections if each.transport not in self._busy), None)
            if idle is None:
                return _Refusal()
            idle.force_close()
        return server()

    def _getting(self, reader: Reader) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(_: web.Request) -> web.Response:
            return self._answer(await reader())

        return answer

    def _posting(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            transport = request.transport
            if transport is None:
                return self._error(400, "the client has gone away")
            self._busy.add(transport)
            try:
                return await self._post(handler, request)
            finally:
                self._busy.discard(transport)

        return answer

    async def _post(self, handler: Handler, request: web.Request) -> web.Response:
        size = request.content_length
        if size is None:
            return self._error(411, "send a Content-Length")
        if size > self._limits.body:
            return self._error(413, f"a body of {size} bytes; at most {self._limits.body} are taken")
        if self._bodies + size > self._limits.bodies:
            return self._error(503, "too many large bodies at once; try again")
        self._bodies += size
        try:
            async with asyncio.timeout(self._limits.body_time):
                body = await request.read()
        except TimeoutError:
            return self._error(408, f"the body did not come within {self._limits.body_time:g} s")
        except web.RequestPayloadError as error:
            return self._error(400, f"the body broke off: {error}")
        else:
            return await self._handle(handler, body, request)
        finally:
            self._bodies -= size

    async def _handle(self, handler: Handler, body: bytes, request: web.Request) -> web.Response:
        def gone() -> bool:
            transport = request.transport
            return transport is None or transport.is_closing()

        try:
            return self._answer(await handler(body, gone))
        except WireError as error:
            return self._error(400, str(error), close=False)
        except NotReadyError as error:
            return self._error(503, str(error), close=False)
        except Exception:  # noqa: BLE001  a fault of ours is a 500, never the end of the server
            _log.exception("%s failed on a body of %d bytes", request.path, len(body))
            return self._error(500, "the extender failed on this request; its log says why")

    def _answer(self, body: bytes) -> web.Response:
        response = web.Response(body=body, content_type="application/json")
        if self.draining:
            response.force_close()
        return response

    def _error(self, status: int, text: str, *, close: bool = True) -> web.Response:
        if self._refused is not None:
            self._refused(status)
        response = web.Response(status=status, text=f"{text}\n")
        if close or self.draining:
            # What is left of the body is not worth reading.
            response.force_close()
        return response


class _Refusal(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
