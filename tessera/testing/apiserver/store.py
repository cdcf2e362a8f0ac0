"""Where objects live: one version counter over everything, and for each resource its objects and recent changes.

Everything here is synchronous, so that a check and the write that relies on it can't be separated by another request.
Objects are immutable once stored: lists, watches and snapshots share them, and their JSON is made once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from tessera.testing.apiserver.tree import Object, encode, own, text

HISTORY: Final = 20_000
"""Changes of one resource that a watch can go back; a real watch cache keeps about as many under load."""

Key: TypeAlias = tuple[str, str]
"""Namespace ("" for cluster-scoped objects) and name."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One state of an object.

    Attributes:
        tree: never changed in place.
        version: its resourceVersion.
        body: the tree as JSON.
    """

    tree: Object
    version: int
    body: bytes

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return text(self.tree, "metadata", "namespace"), text(self.tree, "metadata", "name")

    @property
    def uid(self) -> str:
        """The UID."""
        return text(self.tree, "metadata", "uid")


@dataclass(frozen=True, slots=True)
class Change:
    """One write.

    Attributes:
        version: the resourceVersion that it made.
        old: the state before, None for a new object.
        new: the state after, None for a deleted one.
        last: of a deleted object its last state under the deletion's version, as watches show it.
        frames: watch events made of it, by kind and face, so that many watchers share them.
    """

    version: int
    old: Stored | None
    new: Stored | None
    last: Stored | None = None
    frames: dict[str, bytes] = field(default_factory=dict, compare=False)


Listener: TypeAlias = Callable[[Change], None]


class Shelf:
    """The objects of one resource."""

    def __init__(self, oldest: int, history: int) -> None:
        """Begin empty; a watch can begin at `oldest` or later."""
        self.objects: dict[Key, Stored] = {}
        self.oldest = oldest
        self.changes: deque[Change] = deque()
        self.listeners: list[Listener] = []
        self._history = history

    def record(self, change: Change) -> None:
        """Remember a change and tell who listens."""
        self.changes.append(change)
        if len(self.changes) > self._history:
            self.oldest = self.changes.popleft().version
        for listener in tuple(self.listeners):
            listener(change)

    def since(self, version: int) -> Iterator[Change]:
        """Go through the changes after a version, which must not be older than `oldest`."""
        return (change for change in self.changes if change.version > version)

    def forget(self, version: int) -> None:
        """Drop the history: a watch from before `version` gets 410."""
        self.changes.clear()
        self.oldest = version


class Store:
    """All objects of the fake."""

    def __init__(self, *, history: int = HISTORY) -> None:
        """Begin empty.

        Args:
            history: changes of one resource that a watch can go back.
        """
        self.version = 1
        self._history = history
        self._shelves: dict[str, Shelf] = {}

    def shelf(self, name: str) -> Shelf:
        """Return the objects of one resource, by `Resource.shelf`."""
        found = self._shelves.get(name)
        if found is None:
            found = self._shelves[name] = Shelf(self.version, self._history)
        return found

    def get(self, shelf: str, key: Key) -> Stored | None:
        """Return an object, None where there is none."""
        return self.shelf(shelf).objects.get(key)

    def write(self, shelf: str, tree: Object) -> Stored:
        """Create or replace an object under a new version; `tree` is the store's from now on."""
        self.version += 1
        own(tree, "metadata")["resourceVersion"] = str(self.version)
        new = Stored(tree, self.version, encode(tree))
        where = self.shelf(shelf)
        old = where.objects.get(new.key)
        where.objects[new.key] = new
        where.record(Change(self.version, old, new))
        return new

    def remove(self, shelf: str, key: Key) -> Stored:
        """Delete an object and return its last state under the deletion's version.

        Raises:
            KeyError: there is none.
        """
        where = self.shelf(shelf)
        old = where.objects.pop(key)
        self.version += 1
        tree: Object = {**old.tree}
        metadata = old.tree["metadata"]
        tree["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "resourceVersion": str(self.version)}
        last = Stored(tree, self.version, encode(tree))
        where.record(Change(self.version, old, None, last))
        return last

    def compact(self) -> None:
        """Forget all history, as etcd's compaction does."""
        for shelf in self._shelves.values():
            shelf.forget(self.version)
