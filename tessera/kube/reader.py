"""Reading: single objects, lists page by page, watches.

Apart from the writing verbs because most of what we do only reads: a `WatchCache` or a command for people takes a
`Reader`, and its type says that it can change nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

import msgspec

from tessera.kube.access import Connection
from tessera.kube.clock import Clock
from tessera.kube.errors import DecodeError, GoneError
from tessera.kube.resources import Resource
from tessera.kube.transport import Call, Stream, Transport

T = TypeVar("T")

TIMEOUT: Final = 10.0
"""Seconds for one call, unless the caller knows better. The server itself gives up after 34."""
PAGE: Final = 500
_WHOLE_LIST_TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list.

    Attributes:
        items: as decoded.
        resource_version: of the snapshot, the same on every page.
        rest: token of the next page, "" on the last.
    """

    items: list[T]
    resource_version: str
    rest: str


class _ListMeta(msgspec.Struct):
    resourceVersion: str = ""  # noqa: N815  the field's own name
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)
    items: list[msgspec.Raw] | None = None


_LIST: Final = msgspec.json.Decoder(_List)


class Reader:
    """Reads from one API server. Make it inside a running event loop and use it as an async context manager."""

    def __init__(
        self,
        connection: Connection,
        *,
        clock: Clock,
        rng: Random,
        user_agent: str = "tessera",
        dates: Callable[[str], None] | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            connection: where to, and by which credentials (`tessera.kube.config.connect`).
            clock: waits between attempts of reads.
            rng: their jitter.
            user_agent: what the API server's audit log shows.
            dates: told the Date of each answer as it comes, such as `ServerClock.heard`.
        """
        self._transport = Transport(connection, clock=clock, rng=rng, user_agent=user_agent, dates=dates)

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close every connection."""
        await self.close()

    async def close(self) -> None:
        """Close every connection; calls under way fail."""
        await self._transport.close()

    async def get(
        self,
        resource: Resource,
        name: str,
        *,
        decoder: msgspec.json.Decoder[T],
        namespace: str = "",
        timeout: float = TIMEOUT,  # noqa: ASYNC109  the deadline covers retries too
    ) -> T:
        """Read one object.

        Raises:
            ApiError: `NotFoundError` where there is none.
            DecodeError: the answer doesn't fit the decoder's type.
        """
        what = f"get {resource.describe(namespace=namespace, name=name)}"
        path = resource.path(namespace=namespace, name=name)
        body = await self._transport.send(Call(what=what, method="GET", path=path, query={}, timeout=timeout))
        return _decode(decoder, body, what=what)

    async def read(self, path: str, *, timeout: float = TIMEOUT) -> bytes:  # noqa: ASYNC109
        """Read any other path, such as ``/version``."""
        return await self._transport.send(Call(what=f"get {path}", method="GET", path=path, query={}, timeout=timeout))

    async def page(
        self,
        resource: Resource,
        *,
        decoder: msgspec.json.Decoder[T],
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        limit: int = PAGE,
        rest: str = "",
        timeout: float = TIMEOUT,  # noqa: ASYNC109
    ) -> Page[T]:
        """Read one page of a list, consistent as of now (no resourceVersion is sent, so it never goes back in time).

        Args:
            resource: what to list.
            decoder: of one item.
            namespace: "" for all namespaces.
            labels: label selector, such as ``tessera.dev/sharing=true``.
            fields: field selector, such as ``spec.nodeName=n1``.
            limit: items of a page; 0 for all at once.
            rest: `Page.rest` of the page before.
            timeout: seconds.

        Raises:
            ApiError: `GoneError` where the snapshot behind `rest` is no more.
            DecodeError: an item doesn't fit the decoder's type.
        """
        query: dict[str, str] = _selectors(labels, fields)
        if limit:
            query["limit"] = str(limit)
        if rest:
            query["continue"] = rest
        what = f"list {resource.describe(namespace=namespace)}"
        path = resource.path(namespace=namespace)
        body = await self._transport.send(Call(what=what, method="GET", path=path, query=query, timeout=timeout))
        answer = _decode(_LIST, body, what=what)
        items = [_decode(decoder, item, what=what) for item in answer.items or ()]
        return Page(items, answer.metadata.resourceVersion, answer.metadata.continue_)

    async def pages(
        self,
        resource: Resource,
        *,
        decoder: msgspec.json.Decoder[T],
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        limit: int = PAGE,
    ) -> AsyncIterator[Page[T]]:
        """Read a list page by page; see `page`. `GoneError` in the middle means: start again."""
        rest = ""
        while True:
            found = await self.page(
                resource, decoder=decoder, namespace=namespace, labels=labels, fields=fields, limit=limit, rest=rest
            )
            yield found
            rest = found.rest
            if not rest:
                return

    async def list(
        self,
        resource: Resource,
        *,
        decoder: msgspec.json.Decoder[T],
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        limit: int = PAGE,
    ) -> Page[T]:
        """Read a whole list; a snapshot that expires between two pages is read anew in one piece."""
        items: list[T] = []
        version = ""
        try:
            async for found in self.pages(
                resource, decoder=decoder, namespace=namespace, labels=labels, fields=fields, limit=limit
            ):
                items += found.items
                version = found.resource_version
        except GoneError:
            return await self.page(
                resource,
                decoder=decoder,
                namespace=namespace,
                labels=labels,
                fields=fields,
                limit=0,
                timeout=_WHOLE_LIST_TIMEOUT,
            )
        return Page(items, version, "")

    def watch(
        self,
        resource: Resource,
        *,
        resource_version: str,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        lasts: int,
        idle_timeout: float,
    ) -> AbstractAsyncContextManager[Stream]:
        """Open a watch; `WatchCache` is what most callers want.

        Args:
            resource: what to watch.
            resource_version: where to begin; what came after it is sent.
            namespace: "" for all namespaces.
            labels: label selector.
            fields: field selector.
            lasts: seconds after which the server ends the stream.
            idle_timeout: seconds of silence that count as a broken connection.
        """
        query = _selectors(labels, fields) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(lasts),
        }
        what = f"watch {resource.describe(namespace=namespace)}{f' ({fields or labels})' if fields or labels else ''}"
        call = Call(what=what, method="GET", path=resource.path(namespace=namespace), query=query, timeout=TIMEOUT)
        return self._transport.stream(call, idle_timeout=idle_timeout)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw, *, what: str) -> T:
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise DecodeError(f"{what}: the answer is not what it should be: {error}") from error


def _selectors(labels: str, fields: str) -> dict[str, str]:
    query: dict[str, str] = {}
    if labels:
        query["labelSelector"] = labels
    if fields:
        query["fieldSelector"] = fields
    return query
