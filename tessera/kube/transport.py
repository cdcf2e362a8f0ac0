"""One HTTP request to the API server: sent once, answered in bytes or by one of our errors.

What this layer knows that a plain HTTP client doesn't:
- whether a write that failed may have happened: from the moment a connection is in hand, we can't tell (`maybe_done`);
- a deadline over everything, including the wait for a free connection;
- reads are tried again, bounded in number and time, with full jitter; writes never are (the caller knows what a second
  one would do), except after 401, which says that the first was not executed;
- nothing from the environment changes where a request goes: no proxies, no .netrc, no redirects with our token.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from random import Random
from types import SimpleNamespace
from typing import Final
from urllib.parse import urlencode

import aiohttp
from aiohttp.abc import AbstractCookieJar
from yarl import URL

from tessera.kube.access import Access, Connection
from tessera.kube.clock import Clock
from tessera.kube.errors import (
    AnswerLostError,
    ApiError,
    ApiTimeoutError,
    DecodeError,
    ServerFaultError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
    error_from_answer,
)

LARGEST_ANSWER: Final = 64 << 20
"""Bytes of one answer. A page of 500 pods has about 5 MB; etcd holds no object above 1.5 MB."""
ATTEMPTS: Final = 4
_CONNECT_TIMEOUT: Final = 5.0
_CONNECTIONS: Final = 256
_LARGE: Final = 512 << 10
_BACKOFF_BASE: Final = 0.1
_BACKOFF_CAP: Final = 3.0
_UNTIMELY: Final = (9, 10)
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED (openssl/x509_vfy.h)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, as a caller means it.

    Attributes:
        what: for messages, such as ``bind pods team/a``.
        method: HTTP method.
        path: already quoted, from the root.
        query: parameters in order.
        body: bytes to send, or None.
        content_type: of the body.
        timeout: seconds for everything, waits between attempts included.
        write: it may change something: not tried again, and its failures may be `maybe_done`.
    """

    what: str
    method: str
    path: str
    query: Mapping[str, str]
    timeout: float
    body: bytes | None = None
    content_type: str = "application/json"
    write: bool = False


class _Progress:
    """Set by aiohttp's tracing as soon as a connection is in hand; from then on bytes may have left."""

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = False


class Stream:
    """The body of a long answer, read chunk by chunk."""

    def __init__(self, response: aiohttp.ClientResponse, *, what: str, idle_timeout: float) -> None:
        """Read from `response`; silence for `idle_timeout` seconds counts as a dead connection."""
        self._content = response.content
        self._what = what
        self._idle_timeout = idle_timeout

    async def read(self) -> bytes:
        """Return what has arrived, or b"" at the end.

        Raises:
            ApiTimeoutError: nothing came for the idle time.
            AnswerLostError: the connection broke.
        """
        try:
            async with asyncio.timeout(self._idle_timeout):
                return await self._content.readany()
        except TimeoutError as error:
            raise ApiTimeoutError(self._what, detail=f"silent for {self._idle_timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise AnswerLostError(self._what, detail=_text(error)) from error


class Transport:
    """A pool of connections to one API server. Make it inside a running event loop; close it with `close`."""

    def __init__(
        self,
        connection: Connection,
        *,
        clock: Clock,
        rng: Random,
        user_agent: str,
        dates: Callable[[str], None] | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            connection: where to, and by which credentials.
            clock: waits between attempts.
            rng: jitter.
            user_agent: what the API server's audit log shows.
            dates: told the Date of each answer as it comes ("" without one), such as `ServerClock.heard`.
        """
        self._connection = connection
        self._clock = clock
        self._rng = rng
        self._dates = dates
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(_mark_sent)
        tracing.on_connection_reuseconn.append(_mark_sent)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS, keepalive_timeout=60, socket_factory=_socket),
            cookie_jar=_no_cookies(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT),
            # Compressed lists cost more time on both sides than the wire saves inside a cluster.
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": user_agent},
            trace_configs=[tracing],
            middlewares=[_once_only],
            trust_env=False,
        )

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        await self._session.close()

    async def send(self, call: Call) -> bytes:
        """Do one request, reads up to `ATTEMPTS` times.

        Raises:
            ApiError: by what went wrong, see `tessera.kube.errors`.
            DecodeError: the answer is larger than `LARGEST_ANSWER`.
            ConnectionConfigError: the credentials can't be read.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + call.timeout
        renewed = False
        attempt = 0
        while True:
            try:
                return await self._once(call, deadline)
            except UnauthorizedError:
                if renewed or not await self._connection.renew():
                    raise
                renewed = True
            except (TooManyRequestsError, ServerFaultError) as error:
                attempt += 1
                wait = self._wait(attempt, error)
                if call.write or attempt >= ATTEMPTS or loop.time() + wait >= deadline:
                    raise
                await self._clock.sleep(wait)

    @asynccontextmanager
    async def stream(self, call: Call, *, idle_timeout: float) -> AsyncIterator[Stream]:
        """Open a long answer; `call.timeout` bounds the time to its headers only.

        Raises:
            ApiError: the server could not be reached or answered no success.
        """
        renewed = False
        while True:
            try:
                response = await self._open(call, asyncio.get_running_loop().time() + call.timeout)
                break
            except UnauthorizedError:
                if renewed or not await self._connection.renew():
                    raise
                renewed = True
        try:
            yield Stream(response, what=call.what, idle_timeout=idle_timeout)
        finally:
            response.close()

    def _wait(self, attempt: int, error: ApiError) -> float:
        wait = self._rng.uniform(0, min(_BACKOFF_CAP, _BACKOFF_BASE * 2**attempt))
        return max(wait, error.retry_after or 0.0)

    async def _open(self, call: Call, deadline: float) -> aiohttp.ClientResponse:
        progress = _Progress()
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._request(call, progress)
                if response.status < 300:
                    return response
                async with response:
                    body = await _body(response, what=call.what)
        except (TimeoutError, aiohttp.ClientError, OSError, _BrokenError) as error:
            raise _failure(call, error, sent=progress.sent) from error
        raise _refused(call, response, body)

    async def _once(self, call: Call, deadline: float) -> bytes:
        progress = _Progress()
        try:
            async with asyncio.timeout_at(deadline):
                async with await self._request(call, progress) as response:
                    body = await _body(response, what=call.what)
        except (TimeoutError, aiohttp.ClientError, OSError, _BrokenError) as error:
            raise _failure(call, error, sent=progress.sent) from error
        if response.status < 300:
            return body
        raise _refused(call, response, body)

    async def _request(self, call: Call, progress: _Progress) -> aiohttp.ClientResponse:
        access = await self._connection.access()
        headers = dict(access.headers)
        if call.body is not None:
            headers["Content-Type"] = call.content_type
        response = await self._session.request(
            call.method,
            _url(access, call),
            data=_payload(call.body),
            headers=headers,
            ssl=True if access.tls is None else access.tls,
            server_hostname=access.server_name,
            proxy=access.proxy,
            allow_redirects=False,
            trace_request_ctx=progress,
        )
        # From 500 on it may be a load balancer that answers, by a clock of its own.
        if self._dates is not None and response.status < 500:
            self._dates(response.headers.get("Date", ""))
        return response


def _url(access: Access, call: Call) -> URL:
    query = f"?{urlencode(call.query)}" if call.query else ""
    return URL(f"{access.url}{call.path}{query}", encoded=True)


def _payload(body: bytes | None) -> bytes | BytesIO | None:
    # aiohttp writes a large body of bytes in one piece, and warns of it; a file it writes in chunks.
    return body if body is None or len(body) < _LARGE else BytesIO(body)


async def _body(response: aiohttp.ClientResponse, *, what: str) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > LARGEST_ANSWER:
            response.close()
            raise DecodeError(f"{what}: the answer has more than {LARGEST_ANSWER} bytes; ask for smaller pages")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _refused(call: Call, response: aiohttp.ClientResponse, body: bytes) -> ApiError:
    return error_from_answer(
        call.what,
        status=response.status,
        body=body,
        retry_after=response.headers.get("Retry-After", ""),
        write=call.write,
    )


def _failure(call: Call, error: Exception, *, sent: bool) -> ApiError:
    doubt = call.write and sent
    if isinstance(error, aiohttp.ConnectionTimeoutError | aiohttp.ClientConnectorError):
        return UnavailableError(call.what, detail=_text(error))
    if isinstance(error, TimeoutError):
        return ApiTimeoutError(call.what, detail=f"no answer within {call.timeout:g} s", maybe_done=doubt)
    kind = AnswerLostError if sent else UnavailableError
    return kind(call.what, detail=_text(error), maybe_done=doubt)


def _text(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return f"{text}; see that this machine's clock is right" if _untimely(error) else text


def _untimely(error: Exception) -> bool:
    """Whether the server's certificate was refused for its dates, which a wrong clock of ours does to every server."""
    if not isinstance(error, aiohttp.ClientConnectorCertificateError):
        return False
    cause = error.certificate_error
    return isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _UNTIMELY


async def _mark_sent(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
    context.trace_request_ctx.sent = True


class _BrokenError(Exception):
    """A connection that broke under a request; none of aiohttp's own classes, see `_once_only`."""


async def _once_only(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    # aiohttp sends PUT and DELETE a second time when a kept-alive connection breaks: a DELETE that was done would come
    # back as "not found". It does so for its own exceptions only.
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _BrokenError(_text(error)) from error


def _no_cookies() -> AbstractCookieJar:
    # A load balancer's affinity cookie would pin us to one API server for good.
    return aiohttp.DummyCookieJar()


def _socket(info: aiohttp.AddrInfoType) -> socket.socket:
    """Make a socket that notices within a minute that the other end is gone without a word."""
    family, kind, protocol, _, _ = info
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return made
