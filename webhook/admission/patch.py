"""JSON Patch built by hand: edits by path in, operations out.

Comparing two trees (`jsonpatch.make_patch`) costs 1.2 ms per pod and needs a second, changed copy of it; writing down what
is changed while it is decided costs microseconds. The price is that somebody has to know which parents are there: that
is this module's one job. `Edit` is what pure parts of admission return (the rewriting of requests, placement profiles,
the CNI repair); `operations` turns all edits of one pod into one patch against the object as it came.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Literal, TypeAlias

import msgspec

from tessera.model.pod import Manifest

Steps: TypeAlias = tuple[str | int, ...]
"""A path as the manifest spells it: ``("spec", "initContainers", 0, "resources", "limits", "tessera.dev/gpu")``."""

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


class Operation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One operation of RFC 6902, as it goes onto the wire."""

    op: Literal["add", "remove", "replace"]
    path: str
    value: Json | msgspec.UnsetType = msgspec.UNSET


class Edit(msgspec.Struct, frozen=True):
    """One change, by a path into the pod as it came (no edit sees another's effect on indices).

    Make it with `put`, `remove`, `append` or `prepend`.
    """

    kind: Literal["put", "remove", "append", "prepend"]
    path: Steps
    value: Json = None


def put(path: Steps, value: Json) -> Edit:
    """Set a member of an object; absent or null parents are made. Nothing happens where the value is there already."""
    return Edit("put", path, value)


def remove(path: Steps) -> Edit:
    """Take a member of an object, or an item of a list, away; nothing happens where it is absent."""
    return Edit("remove", path)


def append(path: Steps, value: Json) -> Edit:
    """Add an item at the end of the list at `path`, which is made where it is absent or null."""
    return Edit("append", path, value)


def prepend(path: Steps, value: Json) -> Edit:
    """Add an item at the front of the list at `path`, which is made where it is absent or null."""
    return Edit("prepend", path, value)


def operations(pod: Manifest, edits: Iterable[Edit]) -> tuple[Operation, ...]:
    """Turn edits into one patch.

    Members of objects are changed first, since their paths hold the indices of the object as it came; then items of
    lists are removed from the back, then added at the end, then at the front.

    Args:
        pod: the pod that the edits speak of. Every parent on an edit's path has to be a field that `Manifest` reads,
            or lie in a value that an earlier edit has made.
        edits: in any order; of two that put or remove the same member the later one wins.

    Returns:
        Operations in the order in which they have to be applied.

    Raises:
        LookupError: an edit's path leads through a field that `Manifest` doesn't read, or to an item that isn't there.
    """
    patch = _Patch(pod)
    members: dict[Steps, Edit] = {}
    items: list[tuple[int, Steps]] = []
    ends: list[Edit] = []
    for edit in edits:
        last = edit.path[-1]
        if edit.kind == "remove" and isinstance(last, int):
            items.append((last, edit.path))
        elif edit.kind in ("put", "remove"):
            members[edit.path] = edit
        else:
            ends.append(edit)
    for edit in members.values():
        if edit.kind == "put":
            patch.put(edit.path, edit.value)
        else:
            patch.remove(edit.path)
    for _, path in sorted(set(items), key=lambda item: item[0], reverse=True):
        patch.remove(path)
    for edit in ends:
        if edit.kind == "append":
            patch.extend(edit.path, edit.value, front=False)
    for edit in reversed(ends):
        if edit.kind == "prepend":
            patch.extend(edit.path, edit.value, front=True)
    return tuple(patch.done)


@lru_cache(maxsize=2048)
def pointer(path: Steps) -> str:
    """Write a path as a JSON pointer (RFC 6901): ``~`` and ``/`` inside a step are escaped.

    Remembered, within bounds: nearly every pod is changed at the same paths.
    """
    return "".join([f"/{step}" if isinstance(step, int) else "/" + escape(step) for step in path])


def escape(step: str) -> str:
    """Escape one step of a JSON pointer."""
    return step.replace("~", "~0").replace("/", "~1") if "~" in step or "/" in step else step


class _Patch:
    """The operations so far, and the values they have made (which later edits are written into)."""

    def __init__(self, pod: Manifest) -> None:
        self.done: list[Operation] = []
        self._pod = pod
        self._made: dict[Steps, Json] = {}
        self._there: dict[Steps, object] = {}

    def put(self, path: Steps, value: Json) -> None:
        parent, rest = self._deepest(path[:-1])
        plain = not isinstance(value, dict | list)
        if plain and not rest and type(parent) is not _Made:
            # Nearly every edit: a member of an object that is there.
            there = child(parent, path[-1])
            if there is None or not _same(there, value):
                self.done.append(Operation("add" if there is None else "replace", pointer(path), value))
            return
        member = (*rest, path[-1])
        if isinstance(parent, _Made):
            _into(parent.value, member, value)
            return
        base = path[: len(path) - len(member)]
        there = child(parent, member[0])
        if len(member) == 1 and there is not None and _same(there, value):
            return
        tree = _copy(value)
        for step in reversed(member[1:]):
            tree = {str(step): tree}
        at = (*base, member[0])
        if isinstance(tree, dict | list):
            self._made[at] = tree
            self._there.clear()
        self.done.append(Operation("add" if there is None else "replace", pointer(at), tree))

    def remove(self, path: Steps) -> None:
        parent, rest = self._deepest(path[:-1])
        if isinstance(parent, _Made):
            _out_of(parent.value, (*rest, path[-1]))
        elif not rest and child(parent, path[-1]) is not None:
            self.done.append(Operation("remove", pointer(path)))

    def extend(self, path: Steps, value: Json, *, front: bool) -> None:
        found, rest = self._deepest(path)
        if isinstance(found, _Made):
            _extend(found.value, rest, value, front=front)
        elif rest:
            self.put(path, [value])
        else:
            self.done.append(Operation("add", pointer((*path, 0 if front else "-")), value))

    def _deepest(self, path: Steps) -> tuple[object, Steps]:
        """The last thing on a path that is there (in the pod, or made by this patch), and the steps that are left."""
        known = self._there.get(path)
        if known is not None:
            return known, ()
        if path in self._made:
            return _Made(self._made[path]), ()
        if not path:
            return self._pod, ()
        here, rest = self._deepest(path[:-1])
        if rest or type(here) is _Made:
            return here, (*rest, path[-1])
        below = child(here, path[-1])
        if below is None:
            return here, path[-1:]
        self._there[path] = below
        return below, ()


class _Made:
    """A value that this patch has added: what comes below it is written into it, not beside it."""

    __slots__ = ("value",)

    def __init__(self, value: Json) -> None:
        self.value = value


_NO_METADATA: Final = Manifest().metadata
"""What stands for metadata where a manifest has none; an API server always writes some, people don't."""


@lru_cache(maxsize=64)
def _fields(kind: type[msgspec.Struct]) -> dict[str | int, str]:
    return {field.encode_name: field.name for field in msgspec.structs.fields(kind)}


def child(here: object, step: str | int) -> object:
    """What stands at a step below a value of the pod; None where it is absent or null.

    Raises:
        LookupError: the value is none that has members, or is of a kind that knows no such member.
    """
    kind = type(here)
    if kind is dict:
        return here.get(step)  # type: ignore[attr-defined]  # a plain dict, as decoded
    if kind is tuple:
        return here[step]  # type: ignore[index]  # a step into a list is an index
    name = _fields(type(here)).get(step) if isinstance(here, msgspec.Struct) else None
    if name is None:
        raise LookupError(f"{kind.__name__} has no field {step!r} that an edit could lead through")
    found: object = getattr(here, name)
    return None if found == "" or found is _NO_METADATA else found


def _copy(value: Json) -> Json:
    """Our own copy: later edits write into what a patch has made, and the caller may have passed a constant."""
    if isinstance(value, dict):
        return {name: _copy(below) for name, below in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _same(there: object, value: Json) -> bool:
    return type(there) is type(value) and there == value


def _into(tree: Json, path: Steps, value: Json) -> None:
    _below(tree, path[:-1])[str(path[-1])] = _copy(value)


def _out_of(tree: Json, path: Steps) -> None:
    for step in path[:-1]:
        # Nothing is made on the way: what is absent need not be taken away.
        tree = tree.get(str(step)) if isinstance(tree, dict) else None
    if isinstance(tree, dict):
        tree.pop(str(path[-1]), None)


def _extend(tree: Json, path: Steps, value: Json, *, front: bool) -> None:
    items = _below(tree, path[:-1]).setdefault(str(path[-1]), []) if path else tree
    if isinstance(items, list):
        items.insert(0 if front else len(items), _copy(value))


def _below(tree: Json, path: Steps) -> dict[str, Json]:
    """The object at a path inside a value that this patch has made; absent ones on the way are made."""
    for step in path:
        if isinstance(tree, dict):
            tree = tree.setdefault(str(step), {})
        elif isinstance(tree, list) and isinstance(step, int):
            tree = tree[step]
    if isinstance(tree, dict):
        return tree
    raise LookupError(f"{pointer(path)} leads into a value that is no object")


WIRE: Final = msgspec.json.Encoder()
"""Writes a patch: ``WIRE.encode(operations(…))``."""
