"""The little of the Kubernetes HTTP API that a kubelet needs: get, list, create, merge-patch, delete, watch.

Its own, not `tessera.kube`: a fake must not be wrong in the same way as what is tested on it.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Final, Self

import aiohttp

from tessera.testing.kubelet.errors import KubeletError

MERGE_PATCH: Final = "application/merge-patch+json"
LONGEST_EVENT: Final = 16 * 1024 * 1024
"""An object in etcd has at most 1.5 MiB; a watch event above this is no event."""
_SECONDS: Final = 30.0

Object = dict[str, object]


class ApiError(KubeletError):
    """The API server answered with an error, or can't be reached.

    Attributes:
        status: the HTTP status, 0 where there was no answer.
    """

    def __init__(self, status: int, message: str) -> None:
        """Keep the status beside the text."""
        self.status = status
        super().__init__(message)


class ApiClient:
    """A connection to one API server; use it as an async context manager."""

    def __init__(self, server: str, *, token: str | None = None, ca_file: str | None = None) -> None:
        """Connect to nothing yet.

        Args:
            server: base URL, such as ``https://127.0.0.1:6443``.
            token: bearer token.
            ca_file: PEM file with the server's CA; None takes the system's.
        """
        self._server = server.rstrip("/")
        self._headers = {"Accept": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._ca_file = ca_file
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        tls = ssl.create_default_context(cafile=self._ca_file) if self._server.startswith("https:") else None
        connector = aiohttp.TCPConnector(ssl=tls) if tls is not None else aiohttp.TCPConnector()
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection pool."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        """Get one object, or a list.

        Raises:
            ApiError: see there; as for every method.
        """
        return await self._request("GET", path, query=query)

    async def create(self, path: str, body: Mapping[str, object]) -> Object:
        """Post an object to its collection."""
        return await self._request("POST", path, body=body)

    async def merge_patch(self, path: str, body: Mapping[str, object]) -> Object:
        """Patch an object by RFC 7386: maps are merged, lists replaced, null removes."""
        return await self._request("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def delete(self, path: str, body: Mapping[str, object]) -> Object:
        """Delete an object with DeleteOptions."""
        return await self._request("DELETE", path, body=body)

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[Object]:
        """Follow a collection; ends when the server ends the stream.

        Raises:
            ApiError: with status 410 where the resourceVersion is too old, also in the middle of the stream.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SECONDS)
        try:
            async with self._open().get(
                self._server + path, params={**query, "watch": "true"}, timeout=timeout
            ) as response:
                await _check(response)
                async for line in _lines(response.content):
                    event = _object(line)
                    if event.get("type") == "ERROR":
                        raise _failure(0, event.get("object"))
                    yield event
        except (aiohttp.ClientError, OSError) as error:
            raise ApiError(0, f"watching {path}: {str(error) or type(error).__name__}") from error

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        data = None if body is None else json.dumps(body).encode()
        try:
            async with self._open().request(
                method,
                self._server + path,
                params=query,
                data=data,
                headers={"Content-Type": content_type} if data is not None else None,
                timeout=aiohttp.ClientTimeout(total=_SECONDS),
            ) as response:
                await _check(response)
                return _object(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ApiError(0, f"{method} {path}: {str(error) or type(error).__name__}") from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise ApiError(0, "the API client is closed")
        return self._session


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    body = await response.read()
    try:
        status: object = json.loads(body)
    except ValueError:
        status = body.decode(errors="replace")[:500]
    raise _failure(response.status, status)


def _failure(status: int, body: object) -> ApiError:
    """Make an error of a Status object, which stands in error answers and in watch events of type ERROR."""
    if isinstance(body, dict):
        code = body.get("code")
        return ApiError(code if isinstance(code, int) else status, str(body.get("message", body)))
    return ApiError(status, str(body))


def _object(raw: bytes) -> Object:
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise ApiError(0, f"the API server answered with something that is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ApiError(0, "the API server answered with something that is not a JSON object")
    return found


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    buffer = bytearray()
    async for chunk in content.iter_any():
        buffer += chunk
        *whole, rest = buffer.split(b"\n")
        for line in whole:
            if line.strip():
                yield bytes(line)
        buffer = bytearray(rest)
        if len(buffer) > LONGEST_EVENT:
            raise ApiError(0, f"a watch event is longer than {LONGEST_EVENT} bytes")
