"""Watches: what one client still has to be told, filtered by its selectors.

A watcher is fed synchronously by the store and drained by its HTTP request. One that doesn't drain is ended, as the
real server ends slow watchers: memory must not depend on a client's goodwill.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from tessera.testing.apiserver import status
from tessera.testing.apiserver.faces import Face
from tessera.testing.apiserver.selectors import Selector
from tessera.testing.apiserver.store import Change, Shelf, Store
from tessera.testing.apiserver.tree import Object, encode, text

_LARGEST_BACKLOG: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchQuery:
    """What a client wants to hear of.

    Attributes:
        shelf: of which resource.
        face: in which form.
        namespace: "" for all.
        selector: None for all.
        bookmarks: whether it understands them.
    """

    shelf: str
    face: Face
    namespace: str = ""
    selector: Selector | None = None
    bookmarks: bool = False


class Watcher:
    """One open watch."""

    def __init__(self, store: Store, query: WatchQuery) -> None:
        """Listen to nothing yet."""
        self.query = query
        self._store = store
        self._shelf: Shelf = store.shelf(query.shelf)
        self._waiting: list[bytes] = []
        self._size = 0
        self._wake = asyncio.Event()
        self.ended = False
        """No more will come: the stream is to be closed in order."""
        self.dropped = False
        """The connection is to be broken off in the middle."""
        self.frozen = False
        """Nothing is sent for now, as behind a connection that has died without a word."""

    def start(self, version: str, *, send_initial: bool | None) -> None:
        """Queue what is there already and listen.

        Args:
            version: where to begin; "" and "0" begin with everything that is there.
            send_initial: the ``sendInitialEvents`` parameter, None where it was not given.

        Raises:
            StatusError: 500, the version is no number; 410, it is too old.
        """
        if version and not (version.isascii() and version.isdecimal()):
            # A watch hands the parser's error on as it is, where a list makes it 400.
            raise status.StatusError(500, "", status.no_version(version))
        since = int(version or 0)
        if send_initial or (send_initial is None and since == 0):
            for _, stored in sorted(self._shelf.objects.items()):
                if self._wants(stored.tree):
                    self._queue(self.query.face.initial(stored))
            if send_initial and self.query.bookmarks:
                self._queue(self.query.face.bookmark(self._store.version, initial=True))
        elif since and since < self._shelf.oldest:
            raise status.expired(f"too old resource version: {since} ({self._shelf.oldest})")
        elif since:
            for change in self._shelf.since(since):
                self.offer(change)
        self._shelf.listeners.append(self.offer)

    def offer(self, change: Change) -> None:
        """Take a change in, if the client wants it."""
        before = change.old is not None and self._wants(change.old.tree)
        after = change.new is not None and self._wants(change.new.tree)
        face = self.query.face
        if after:
            self._queue(face.frame(change, "MODIFIED" if before else "ADDED"))
        elif before:
            self._queue(face.frame(change, "DELETED") if change.new is None else face.left(change))

    def bookmark(self) -> None:
        """Queue a bookmark, if the client understands them."""
        if self.query.bookmarks:
            self._queue(self.query.face.bookmark(self._store.version))

    def fail(self, error: status.StatusError) -> None:
        """Tell of an error inside the stream, then end."""
        self._queue(encode({"type": "ERROR", "object": error.body()}) + b"\n")
        self.end()

    def end(self) -> None:
        """Close in order, after what waits has been sent."""
        self.ended = True
        self._wake.set()

    def drop(self) -> None:
        """Break the connection off."""
        self.dropped = True
        self._wake.set()

    def freeze(self, frozen: bool) -> None:
        """Stop sending, or go on."""
        self.frozen = frozen
        self._wake.set()

    def stop(self) -> None:
        """Stop listening."""
        if self.offer in self._shelf.listeners:
            self._shelf.listeners.remove(self.offer)

    async def next(self) -> bytes:
        """Wait for something to send and return it; b"" where there is nothing more to come."""
        while not self.dropped:
            if self._waiting and not self.frozen:
                chunk = b"".join(self._waiting)
                self._waiting.clear()
                self._size = 0
                return chunk
            if self.ended and not self.frozen:
                return b""
            self._wake.clear()
            await self._wake.wait()
        return b""

    def _wants(self, tree: Object) -> bool:
        query = self.query
        if query.namespace and text(tree, "metadata", "namespace") != query.namespace:
            return False
        return query.selector is None or query.selector(tree)

    def _queue(self, frame: bytes) -> None:
        self._waiting.append(frame)
        self._size += len(frame)
        if self._size > _LARGEST_BACKLOG:
            self.drop()
        self._wake.set()
