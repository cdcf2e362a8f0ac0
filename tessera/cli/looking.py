"""Reading a cluster for people: many lists at once, page by page, each read or with the reason why it could not be.

Nothing here changes anything. What may be slow is told while it is under way; how many requests run at once is bounded, so
that a look at a cluster in trouble adds none to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from tessera.doctor.evidence import Look
from tessera.kube.errors import DecodeError, ForbiddenError, GoneError, KubeError, NotFoundError
from tessera.kube.reader import PAGE, Reader
from tessera.kube.resources import Resource
from tessera.report.plaintext import plain

T = TypeVar("T")

AT_ONCE: Final = 4
TIMEOUT: Final = 30.0
"""Seconds for one page, unless the caller says otherwise: an API server in trouble takes long for 500 pods."""
_LONGEST_PROBLEM: Final = 300
_RBAC: Final = " is forbidden: User "
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)


Tell = Callable[[str, int], None]
"""Is told what is being read, and how much of it has come."""


def silent(_what: str, _count: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class _List(Generic[T]):
    """Which list, and what its items are."""

    resource: Resource
    decoder: msgspec.json.Decoder[T]
    what: str
    namespace: str
    labels: str
    fields: str


class Looker:
    """Reads lists and single objects, and remembers what could not be decoded.

    Attributes:
        unreadable: how many objects of a list were not of the form that they should have.
    """

    def __init__(self, reader: Reader, *, tell: Tell = silent, timeout: float = TIMEOUT) -> None:
        """Read by `reader`; `timeout` is for one page, in seconds."""
        self._reader = reader
        self._tell = tell
        self._timeout = timeout
        self._gate = asyncio.Semaphore(AT_ONCE)
        self.unreadable: dict[str, int] = {}

    async def all(
        self, resource: Resource, kind: type[T], *, namespace: str = "", labels: str = "", fields: str = ""
    ) -> Look[tuple[T, ...]]:
        """A whole list; an object that can't be decoded is left out and counted."""
        what = resource.describe(namespace=namespace)
        wanted = _List(resource, msgspec.json.Decoder(kind), what, namespace, labels, fields)
        async with self._gate:
            try:
                try:
                    return Look(await self._pages(wanted, limit=PAGE))
                except GoneError:
                    # The snapshot expired between two pages: once more, in one piece.
                    return Look(await self._pages(wanted, limit=0))
            except (KubeError, ValueError) as error:
                return Look(problem=problem(error, what))

    async def one(self, resource: Resource, kind: type[T], name: str, *, namespace: str = "") -> Look[T]:
        """One object."""
        what = resource.describe(namespace=namespace, name=name)
        async with self._gate:
            self._tell(what, 0)
            try:
                found = await self._reader.get(
                    resource, name, decoder=msgspec.json.Decoder(kind), namespace=namespace, timeout=self._timeout
                )
            except (KubeError, ValueError) as error:
                return Look(problem=problem(error, what))
        return Look(found)

    async def _pages(self, wanted: _List[T], *, limit: int) -> tuple[T, ...]:
        found: list[T] = []
        broken = 0
        rest = ""
        while True:
            self._tell(wanted.what, len(found))
            page = await self._reader.page(
                wanted.resource,
                decoder=_RAW,
                namespace=wanted.namespace,
                labels=wanted.labels,
                fields=wanted.fields,
                limit=limit,
                rest=rest,
                timeout=self._timeout,
            )
            for raw in page.items:
                try:
                    found.append(wanted.decoder.decode(raw))
                except msgspec.MsgspecError:
                    broken += 1
            rest = page.rest
            if not rest:
                break
        if broken:
            self.unreadable[wanted.what] = broken
        return tuple(found)


def problem(error: Exception, what: str) -> str:
    """Why something could not be read, in one line."""
    match error:
        case ForbiddenError():
            # RBAC's own words say once more what was asked; others' (an authorizer's, a webhook's) may say why not.
            words = "" if _RBAC in error.detail else f"; {plain(error.detail, longest=_LONGEST_PROBLEM)}"
            return f"{what}: not permitted (403){words}"
        case NotFoundError():
            return f"{what}: not there (404)"
        case DecodeError():
            return plain(str(error), longest=_LONGEST_PROBLEM)
    return plain(f"{what}: {error}", longest=_LONGEST_PROBLEM)
