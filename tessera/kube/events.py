"""Kubernetes Events: what happened to an object, where people look for it (`kubectl describe`).

core/v1 rather than events.k8s.io/v1: both are stored as the same object, but only the core form carries a count with a
first and a last time that every tool since 1.0 shows ("x12 over 3m"), which is what coalescing needs; the newer form
asks for an action and a series in its place and is shown less well.

An Event is never worth waiting for and never worth the API server's health: `emit` puts it down and returns, equal ones
are counted together, the pace is bounded for each (object, reason) and over all, and what doesn't fit is dropped and
counted.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple, NoReturn

import msgspec

from tessera.kube.client import ApiClient, Patch
from tessera.kube.clock import Clock, rfc3339
from tessera.kube.errors import (
    AlreadyExistsError,
    ApiError,
    KubeError,
    NotFoundError,
    ServerFaultError,
    TooManyRequestsError,
)
from tessera.kube.outage import Outage
from tessera.kube.resources import EVENTS

_log = logging.getLogger(__name__)

_LONGEST_MESSAGE: Final = 1024
"""Characters; the limit of events.k8s.io/v1, so that an Event can be read in either form."""
_LONGEST_NAME: Final = 230
_REMEMBERED: Final = 2000
_FORGET_AFTER: Final = 3000.0
"""Seconds; the API server drops Events an hour after their last change (kube-apiserver --event-ttl)."""
_POLL: Final = 1.0
_ENCODER: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Regarding:
    """The object that an Event is about; a Node has no namespace, its Events stand in ``default``."""

    kind: str
    name: str
    namespace: str = ""
    uid: str = ""
    api_version: str = "v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPace:
    """How much is written at most.

    Attributes:
        interval: seconds between two writes about one (object, reason).
        rate: writes a second over all, in the long run.
        burst: writes at once, after a quiet time.
        backlog: different (object, reason) that wait at most.
    """

    interval: float = 10.0
    rate: float = 5.0
    burst: int = 25
    backlog: int = 1000


@dataclass(slots=True)
class EventStats:
    """Counters for metrics; they only grow."""

    emitted: int = 0
    written: int = 0
    dropped: int = 0
    failed: int = 0


class _Key(NamedTuple):
    regarding: Regarding
    reason: str
    warning: bool


@dataclass(slots=True)
class _Pending:
    message: str
    count: int
    first: float
    last: float


@dataclass(slots=True)
class _Written:
    name: str
    count: int
    first: float
    at: float


class EventRecorder:
    """Writes Events about objects, in the background."""

    def __init__(
        self,
        client: ApiClient,
        *,
        component: str,
        instance: str,
        clock: Clock,
        rng: Random,
        pace: EventPace | None = None,
    ) -> None:
        """Write nothing until `run` runs.

        Args:
            client: the API server's door.
            component: who speaks, such as ``tessera-extender``.
            instance: which one of them: the node's or pod's name.
            clock: stamps and paces.
            rng: makes names.
            pace: how much is written at most.
        """
        self._client = client
        self._component = component
        self._instance = instance
        self._clock = clock
        self._rng = rng
        self._pace = pace or EventPace()
        self._pending: dict[_Key, _Pending] = {}
        self._written: dict[_Key, _Written] = {}
        self._tokens = float(self._pace.burst)
        self._filled_at = clock.monotonic()
        self._outage = Outage("writing of Events", clock)
        self._wake = asyncio.Event()
        self.stats = EventStats()

    def emit(self, regarding: Regarding, *, reason: str, message: str, warning: bool = False) -> None:
        """Put down one Event; never waits and never fails.

        Args:
            regarding: what it is about.
            reason: one CamelCase word, such as ``SliceAllocated``; equal ones about one object are counted together.
            message: a sentence for people; cut at 1,024 characters. Of several waiting the last one stands.
            warning: type Warning instead of Normal.
        """
        self.stats.emitted += 1
        key = _Key(regarding, reason, warning)
        now = self._clock.wall()
        text = message if len(message) <= _LONGEST_MESSAGE else message[: _LONGEST_MESSAGE - 1] + "…"
        waiting = self._pending.get(key)
        if waiting is not None:
            waiting.message, waiting.last = text, now
            waiting.count += 1
        elif len(self._pending) >= self._pace.backlog:
            self.stats.dropped += 1
        else:
            self._pending[key] = _Pending(text, 1, now, now)
        self._wake.set()

    async def run(self) -> NoReturn:
        """Write what waits, until cancelled."""
        while True:
            while not self._pending:
                self._wake.clear()
                await self._wake.wait()
            await self._step()

    async def drain(self) -> None:
        """Write what waits without regard to pace, before the program ends; give up at the first failure."""
        for key in list(self._pending):
            if not await self._write(key):
                return

    async def _step(self) -> None:
        key = self._due()
        wait = _POLL if key is None else self._take_token()
        if key is None or wait > 0:
            await self._clock.sleep(wait)
        elif not await self._write(key):
            await self._clock.sleep(self._rng.uniform(_POLL, 5 * _POLL))

    def _due(self) -> _Key | None:
        now = self._clock.monotonic()
        for key in self._pending:
            written = self._written.get(key)
            if written is None or now - written.at >= self._pace.interval:
                return key
        return None

    def _take_token(self) -> float:
        """Take the right to one write; else return the seconds until there is one."""
        now = self._clock.monotonic()
        self._tokens = min(self._pace.burst, self._tokens + (now - self._filled_at) * self._pace.rate)
        self._filled_at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._pace.rate
        self._tokens -= 1
        return 0.0

    async def _write(self, key: _Key) -> bool:
        """Write what waits under `key`; False where it has to be tried again later."""
        waiting = self._pending.pop(key)
        try:
            await self._send(key, waiting)
        except (ServerFaultError, TooManyRequestsError) as error:
            self._outage.failed(error)
            self._put_back(key, waiting)
            return False
        except KubeError as error:
            # Refused for good: no right, a namespace that is being deleted, an object that can't be named.
            self.stats.failed += 1
            self._outage.failed(error)
            return True
        self._outage.recovered()
        self.stats.written += 1
        return True

    def _put_back(self, key: _Key, waiting: _Pending) -> None:
        newer = self._pending.get(key)
        if newer is not None:
            newer.count += waiting.count
            newer.first = waiting.first
        elif len(self._pending) < self._pace.backlog:
            self._pending[key] = waiting
        else:
            self.stats.dropped += 1

    async def _send(self, key: _Key, waiting: _Pending) -> None:
        now = self._clock.monotonic()
        written = self._written.pop(key, None)
        if written is not None and now - written.at < _FORGET_AFTER:
            count = written.count + waiting.count
            try:
                await self._client.patch(
                    EVENTS,
                    written.name,
                    _ENCODER.encode(
                        {"count": count, "lastTimestamp": rfc3339(waiting.last), "message": waiting.message}
                    ),
                    kind=Patch.MERGE,
                    namespace=_namespace(key),
                )
            except NotFoundError:
                # Someone cleaned up; begin a new one.
                written = None
            except ApiError:
                self._written[key] = written
                raise
            else:
                self._remember(key, _Written(written.name, count, written.first, now))
                return
        name = f"{key.regarding.name[:_LONGEST_NAME].rstrip('-.')}.{self._rng.getrandbits(64):016x}"
        try:
            await self._client.create(EVENTS, self._body(key, waiting, name), namespace=_namespace(key))
        except AlreadyExistsError:
            _log.debug("event %s/%s is there already", _namespace(key), name)
        self._remember(key, _Written(name, waiting.count, waiting.first, now))

    def _remember(self, key: _Key, written: _Written) -> None:
        self._written[key] = written
        while len(self._written) > _REMEMBERED:
            del self._written[next(iter(self._written))]

    def _body(self, key: _Key, waiting: _Pending, name: str) -> bytes:
        regarding = key.regarding
        return _ENCODER.encode(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": _namespace(key)},
                "involvedObject": {
                    "apiVersion": regarding.api_version,
                    "kind": regarding.kind,
                    "name": regarding.name,
                    "namespace": regarding.namespace,
                    "uid": regarding.uid,
                },
                "reason": key.reason,
                "message": waiting.message,
                "type": "Warning" if key.warning else "Normal",
                "count": waiting.count,
                "firstTimestamp": rfc3339(waiting.first),
                "lastTimestamp": rfc3339(waiting.last),
                "source": {"component": self._component, "host": self._instance},
                "reportingComponent": self._component,
                "reportingInstance": self._instance,
            }
        )


def _namespace(key: _Key) -> str:
    return key.regarding.namespace or "default"
