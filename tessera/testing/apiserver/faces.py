"""How a stored object looks from the outside.

Two things only: items of a list carry no kind of their own (the real server leaves it out for built-in types), and
Events are stored once but served in two forms, core/v1 and events.k8s.io/v1 (pkg/apis/events/v1/conversion.go).
"""

from __future__ import annotations

from typing import Final

from tessera.testing.apiserver.resources import Resource
from tessera.testing.apiserver.store import Change, Stored
from tessera.testing.apiserver.tree import Object, encode, put

_EVENT_NAMES: Final = (
    # core/v1, events.k8s.io/v1
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
)


class Face:
    """One resource's way of showing its objects."""

    def __init__(self, resource: Resource) -> None:
        """Show objects as `resource`."""
        self._resource = resource
        self._other = bool(resource.stored_as)
        head = encode({"apiVersion": resource.api_version, "kind": resource.kind})
        self._head = head[:-1] + b","
        self._tag = resource.group if self._other else ""

    def object(self, stored: Stored) -> bytes:
        """Return the whole object as JSON."""
        return encode(self.tree(stored.tree)) if self._other else stored.body

    def item(self, stored: Stored) -> bytes:
        """Return the object as an item of a list."""
        body = self.object(stored)
        return b"{" + body[len(self._head) :] if body.startswith(self._head) else body

    def frame(self, change: Change, kind: str) -> bytes:
        """Return a change as one line of a watch; `kind` is ADDED, MODIFIED or DELETED."""
        name = kind + self._tag
        made = change.frames.get(name)
        if made is None:
            made = change.frames[name] = self._frame(kind, change.new or change.last or change.old)
        return made

    def left(self, change: Change) -> bytes:
        """Return an object that a selector no longer matches: its state before, under the version of now."""
        name = "LEFT" + self._tag
        made = change.frames.get(name)
        if made is None and change.old is not None:
            metadata = change.old.tree["metadata"]
            tree: Object = {**change.old.tree}
            if isinstance(metadata, dict):
                tree["metadata"] = {**metadata, "resourceVersion": str(change.version)}
            made = change.frames[name] = self._frame("DELETED", Stored(tree, change.version, encode(tree)))
        return made or b""

    def initial(self, stored: Stored) -> bytes:
        """Return an object as the first thing that a watch without a version shows."""
        return self._frame("ADDED", stored)

    def bookmark(self, version: int, *, initial: bool = False) -> bytes:
        """Return a bookmark; `initial` marks the end of what was there already."""
        metadata: Object = {"resourceVersion": str(version)}
        if initial:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        tree: Object = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": metadata}
        return encode({"type": "BOOKMARK", "object": tree}) + b"\n"

    def tree(self, stored: Object) -> Object:
        """Turn a stored tree into what this face shows; it shares what is below."""
        if not self._other:
            return stored
        shown: Object = {**stored, "apiVersion": self._resource.api_version}
        for inside, outside in _EVENT_NAMES:
            value = shown.pop(inside, None)
            put(shown, outside, value)
        return shown

    def stored(self, shown: Object) -> Object:
        """Turn what a client sent into what is stored; `shown` may be changed."""
        if not self._other:
            return shown
        for inside, outside in _EVENT_NAMES:
            value = shown.pop(outside, None)
            put(shown, inside, value)
        shown["apiVersion"] = "v1"
        return shown

    def _frame(self, kind: str, stored: Stored | None) -> bytes:
        body = b"null" if stored is None else self.object(stored)
        return b'{"type":"' + kind.encode() + b'","object":' + body + b"}\n"
