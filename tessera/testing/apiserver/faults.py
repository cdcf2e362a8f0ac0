"""Making the fake misbehave, for tests of what we do then.

A fault is a test of a request and something to do about it: refuse it, delay it, hold it until the test lets go, cut the
connection before it is looked at, or do it and lose the answer (the write that may have happened).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from tessera.testing.apiserver import status
from tessera.testing.apiserver.access import User


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request, as faults and tests see it.

    Attributes:
        verb: get, list, watch, create, update, patch, delete, deletecollection, bind, evict.
        plural: of the resource.
        subresource: "" for the object itself.
        namespace: "" for none.
        name: "" for the collection.
        path: as sent.
        query: as sent.
        user: who.
        body: as sent.
    """

    verb: str
    plural: str
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    query: dict[str, str] = field(default_factory=dict)
    user: User | None = None
    body: bytes = field(default=b"", repr=False)


Match: TypeAlias = Callable[[Seen], bool]


class Cut(Enum):
    """When a connection is cut."""

    BEFORE = "before the request is looked at"
    AFTER = "after it has taken effect, before the answer"


class Hold:
    """Keeps requests waiting until the test lets go."""

    def __init__(self) -> None:
        """Nobody waits."""
        self.arrived = asyncio.Event()
        """Set when the first request waits."""
        self.waiting = 0
        self._free = asyncio.Event()

    def release(self) -> None:
        """Let go, for good."""
        self._free.set()

    async def wait(self) -> None:
        """Wait as a request does."""
        self.waiting += 1
        self.arrived.set()
        await self._free.wait()
        self.waiting -= 1


Action: TypeAlias = "status.StatusError | Cut | Hold | float"
"""What to do: answer with an error, cut the connection, hold, or wait that many seconds."""


@dataclass(slots=True, eq=False)
class Fault:
    """One way to misbehave.

    Attributes:
        match: which requests.
        action: what to do.
        times: how often it is still done, None for always.
        hits: how often it was done.
    """

    match: Match
    action: Action
    times: int | None = 1
    hits: int = 0


class Faults:
    """What the fake does wrong at the moment."""

    def __init__(self) -> None:
        """Do everything right."""
        self._faults: list[Fault] = []
        self.expired_as_status = False
        """Answer a watch from too old a version by HTTP 410; the real server sends an ERROR event after 200."""

    def add(self, match: Match, action: Action, *, times: int | None = 1) -> Fault:
        """Misbehave for the next `times` requests that match."""
        fault = Fault(match, action, times)
        self._faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Behave again."""
        if fault in self._faults:
            self._faults.remove(fault)

    def clear(self) -> None:
        """Behave again in every way; requests that are held go on."""
        for fault in self._faults:
            if isinstance(fault.action, Hold):
                fault.action.release()
        self._faults.clear()

    async def before(self, seen: Seen) -> Cut | None:
        """Do what is due before a request is looked at; return how its connection is to be cut.

        Raises:
            StatusError: it is to be refused.
        """
        cut: Cut | None = None
        for fault in tuple(self._faults):
            if fault.times == 0 or not fault.match(seen):
                continue
            fault.hits += 1
            if fault.times is not None:
                fault.times -= 1
            action = fault.action
            if isinstance(action, status.StatusError):
                raise action
            if isinstance(action, Cut):
                cut = action
            elif isinstance(action, Hold):
                await action.wait()
            else:
                await asyncio.sleep(action)
        return cut


def on(verb: str = "", plural: str = "", *, name: str = "", subresource: str | None = None) -> Match:
    """Match requests by verb, resource, name and subresource; what is left out matches everything."""

    def match(seen: Seen) -> bool:
        return (
            (not verb or seen.verb == verb)
            and (not plural or seen.plural == plural)
            and (not name or seen.name == name)
            and (subresource is None or seen.subresource == subresource)
        )

    return match
