"""A copy of one kind of object, kept current by list and watch.

The rules are client-go's reflector: list, then watch from the list's resourceVersion; go on from the last version seen
when a stream ends; list again when the server no longer remembers that version (410). What is ours:
- only what the caller's decoder keeps is kept, and nothing else of an object;
- a stream that is silent for longer than bookmarks come (one a minute) is taken for dead and replaced;
- an object that vanished while we were not looking is reported as `Deleted` with ``seen_final=False``: whoever frees
  something on deletion must know that it never saw the end;
- subscribers are called synchronously in the cache's own task, so a later change can't overtake an earlier one. An
  exception of theirs ends `run`: a ledger that missed a change must be rebuilt, not used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, Generic, NoReturn

import msgspec

from tessera.kube.changes import Added, Change, Deleted, Modified, T, key_of
from tessera.kube.clock import Clock
from tessera.kube.errors import ApiError, DecodeError, GoneError, KubeError, error_from_answer
from tessera.kube.outage import Outage
from tessera.kube.reader import PAGE, Reader
from tessera.kube.resources import Resource
from tessera.kube.stream import Event, Lines, parse_event, parse_versioned

_log = logging.getLogger(__name__)

_LONGEST_RETRY_AFTER: Final = 60.0
TOGETHER: Final = 100
"""Objects of a list that are reported before others get the loop: 5 ms of an extender's ledger."""
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchTiming:
    """How a cache paces itself.

    Attributes:
        lasts: seconds of one stream; the server ends it after one to two times this.
        idle: seconds of silence after which a stream is dead. API servers send a bookmark about once a minute.
        backoff: bound of the first wait after a failure, in seconds; it doubles each time.
        backoff_cap: bound of every wait.
    """

    lasts: int = 300
    idle: float = 150.0
    backoff: float = 0.2
    backoff_cap: float = 10.0


@dataclass(slots=True)
class WatchStats:
    """Counters for metrics; they only grow."""

    events: int = 0
    bookmarks: int = 0
    lists: int = 0
    streams: int = 0
    expirations: int = 0
    failures: int = 0
    undecodable: int = 0


class WatchCache(Generic[T]):
    """The objects of one resource, by namespace and name and by UID."""

    def __init__(
        self,
        reader: Reader,
        resource: Resource,
        decoder: msgspec.json.Decoder[T],
        *,
        clock: Clock,
        rng: Random,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        timing: WatchTiming | None = None,
    ) -> None:
        """Hold nothing until `run` runs.

        Args:
            reader: the API server's door.
            resource: what to keep.
            decoder: of one object, into what is worth keeping.
            clock: measures staleness and waits between attempts.
            rng: jitter.
            namespace: "" for all.
            labels: label selector.
            fields: field selector.
            timing: how to pace.
        """
        self._reader = reader
        self._resource = resource
        self._decoder = decoder
        self._clock = clock
        self._rng = rng
        self._namespace = namespace
        self._labels = labels
        self._fields = fields
        self._timing = timing or WatchTiming()
        self._objects: dict[tuple[str, str], T] = {}
        self._keys_by_uid: dict[str, tuple[str, str]] = {}
        self._undecodable: set[tuple[str, str]] = set()
        self._subscribers: list[Callable[[Change[T]], None]] = []
        self._outage = Outage(
            f"watch of {resource.plural}{f' ({fields or labels})' if fields or labels else ''}", clock
        )
        self._version = ""
        self._contact: float | None = None
        self.synced = asyncio.Event()
        """Set when the first list is in."""
        self.stats = WatchStats()

    # Looking things up.

    def get(self, name: str, namespace: str = "") -> T | None:
        """Return the object of that name, or None."""
        return self._objects.get((namespace, name))

    def by_uid(self, uid: str) -> T | None:
        """Return the object of that UID, or None."""
        key = self._keys_by_uid.get(uid)
        return None if key is None else self._objects[key]

    def __iter__(self) -> Iterator[T]:
        """Go through a snapshot of all objects; changes meanwhile don't disturb it."""
        return iter(list(self._objects.values()))

    def __len__(self) -> int:
        """Count the objects."""
        return len(self._objects)

    # How current it is.

    @property
    def staleness(self) -> float:
        """Seconds since the API server last proved that nothing was missed; infinite before the first list."""
        return float("inf") if self._contact is None else self._clock.monotonic() - self._contact

    @property
    def last_error(self) -> KubeError | None:
        """Why the cache can't follow right now, or None where it can."""
        return self._outage.error

    @property
    def undecodable(self) -> frozenset[tuple[str, str]]:
        """Namespace and name of objects that don't fit the decoder's type; the cache has an older state, or none."""
        return frozenset(self._undecodable)

    # Hearing of changes.

    def subscribe(self, callback: Callable[[Change[T]], None], *, replay: bool = False) -> Callable[[], None]:
        """Call `callback` for every change from now on, in order.

        Args:
            callback: must be quick and must not raise: an exception ends `run`.
            replay: call it first with `Added` for every object that is there already.

        Returns:
            A function that ends the subscription.
        """
        if replay:
            for item in self:
                callback(Added(item))
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    # Keeping current.

    async def run(self) -> NoReturn:
        """Keep current until cancelled.

        Raises:
            Exception: whatever a subscriber raised.
        """
        attempt = 0
        while True:
            received = self.stats.events + self.stats.bookmarks
            began = self._clock.monotonic()
            failure: KubeError | None = None
            try:
                if not self._version:
                    await self._list()
                await self._follow()
            except GoneError:
                self.stats.expirations += 1
                self._version = ""
            except DecodeError as error:
                # Going on from the same version would meet the same bytes again.
                self._version = ""
                failure = error
            except KubeError as error:
                failure = error
            progress = self.stats.events + self.stats.bookmarks > received
            if progress or (failure is None and self._clock.monotonic() - began > 1.0):
                attempt = 0
            else:
                attempt += 1
            if failure is not None:
                self.stats.failures += 1
                if attempt:
                    # A stream that broke after it had served is replaced without a word.
                    self._outage.failed(failure)
            await self._clock.sleep(self._wait(attempt, failure))

    def _wait(self, attempt: int, failure: KubeError | None) -> float:
        bound = min(self._timing.backoff_cap, self._timing.backoff * 2.0 ** min(attempt, 30))
        asked = failure.retry_after if isinstance(failure, ApiError) else None
        return max(self._rng.uniform(0, bound), min(asked or 0.0, _LONGEST_RETRY_AFTER))

    async def _list(self) -> None:
        """Read everything and report what is other than it was."""
        found: dict[tuple[str, str], T] = {}
        broken: set[tuple[str, str]] = set()
        self.stats.lists += 1
        for limit in (PAGE, 0):
            found.clear()
            broken.clear()
            version = ""
            try:
                async for page in self._reader.pages(
                    self._resource,
                    decoder=_RAW,
                    namespace=self._namespace,
                    labels=self._labels,
                    fields=self._fields,
                    limit=limit,
                ):
                    version = page.resource_version
                    for raw in page.items:
                        self._decode_into(found, broken, raw)
                break
            except GoneError:
                # The snapshot expired between two pages; once more, in one piece.
                if limit == 0:
                    raise
        if not version:
            raise DecodeError(
                f"list {self._resource.plural}: the answer has no resourceVersion, so it can't be watched"
            )
        self._undecodable = broken
        await self._replace(found)
        self._version = version
        self._contact = self._clock.monotonic()
        self.synced.set()

    def _decode_into(self, found: dict[tuple[str, str], T], broken: set[tuple[str, str]], raw: msgspec.Raw) -> None:
        try:
            item = self._decoder.decode(raw)
        except msgspec.MsgspecError as error:
            key = parse_versioned(raw).key
            self._report_undecodable(key, error)
            broken.add(key)
        else:
            found[key_of(item)] = item

    async def _replace(self, found: dict[tuple[str, str], T]) -> None:
        """Report what is other than it was, some at a time: what subscribers make of 40,000 pods takes seconds."""
        for key, old in list(self._objects.items()):
            new = found.get(key)
            if new is None and key in self._undecodable:
                continue
            if new is None or new.metadata.uid != old.metadata.uid:
                self._remove(key, old, old, seen_final=False)
        for count, item in enumerate(found.values(), 1):
            self._set(item)
            if count % TOGETHER == 0:
                await asyncio.sleep(0)

    async def _follow(self) -> None:
        """Follow one stream to its end."""
        self.stats.streams += 1
        lines = Lines()
        async with self._reader.watch(
            self._resource,
            resource_version=self._version,
            namespace=self._namespace,
            labels=self._labels,
            fields=self._fields,
            # Spread, so that the watches of a thousand nodes don't all end together.
            lasts=self._timing.lasts + self._rng.randrange(self._timing.lasts + 1),
            idle_timeout=self._timing.idle,
        ) as stream:
            self._outage.recovered()
            while chunk := await stream.read():
                self._contact = self._clock.monotonic()
                for line in lines.feed(chunk):
                    self._take(parse_event(line))

    def _take(self, event: Event) -> None:
        if event.type == "ERROR":
            what = f"watch {self._resource.plural}"
            raise error_from_answer(what, status=0, body=bytes(event.object))
        if event.type == "BOOKMARK":
            self._version = parse_versioned(event.object).version
            self.stats.bookmarks += 1
            return
        if event.type not in ("ADDED", "MODIFIED", "DELETED"):
            raise DecodeError(f"watch {self._resource.plural}: unknown kind of event {event.type[:40]!r}")
        try:
            item = self._decoder.decode(event.object)
        except msgspec.MsgspecError as error:
            self._take_undecodable(event, error)
        else:
            self._undecodable.discard(key_of(item))
            if event.type == "DELETED":
                self._end(item)
            else:
                self._set(item)
            self._version = item.metadata.resource_version
        self.stats.events += 1

    def _take_undecodable(self, event: Event, error: msgspec.MsgspecError) -> None:
        found = parse_versioned(event.object)
        self._report_undecodable(found.key, error)
        old = self._objects.get(found.key)
        if event.type == "DELETED":
            self._undecodable.discard(found.key)
            if old is not None:
                self._remove(found.key, old, old, seen_final=False)
        else:
            self._undecodable.add(found.key)
        self._version = found.version

    def _set(self, new: T) -> None:
        key = key_of(new)
        old = self._objects.get(key)
        if old is not None and old.metadata.uid != new.metadata.uid:
            self._remove(key, old, old, seen_final=False)
            old = None
        if old is not None and old.metadata.resource_version == new.metadata.resource_version:
            return
        self._objects[key] = new
        self._keys_by_uid[new.metadata.uid] = key
        self._tell(Added(new) if old is None else Modified(old, new))

    def _end(self, final: T) -> None:
        key = key_of(final)
        old = self._objects.get(key)
        if old is not None and old.metadata.uid == final.metadata.uid:
            self._remove(key, old, final, seen_final=True)

    def _remove(self, key: tuple[str, str], old: T, final: T, *, seen_final: bool) -> None:
        del self._objects[key]
        self._keys_by_uid.pop(old.metadata.uid, None)
        self._tell(Deleted(old, final, seen_final))

    def _tell(self, change: Change[T]) -> None:
        for callback in tuple(self._subscribers):
            try:
                callback(change)
            except KubeError as error:
                # Must not pass for a failure of the watch.
                raise RuntimeError(f"a subscriber of {self._resource.plural} failed: {error}") from error

    def _report_undecodable(self, key: tuple[str, str], error: msgspec.MsgspecError) -> None:
        self.stats.undecodable += 1
        if key not in self._undecodable:
            _log.error(
                "%s %s: can't be decoded, its change is not taken in: %s",
                self._resource.kind,
                "/".join(filter(None, key)),
                error,
            )
