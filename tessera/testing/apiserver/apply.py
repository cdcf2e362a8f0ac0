"""Server-side apply, in a simple form: what a manager applied is its own until it applies again without it.

Ownership stands where the real server keeps it, in metadata.managedFields with FieldsV1, but only appliers are tracked:
a field that somebody changed by another verb stays its applier's. So conflicts are found between appliers alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import yaml

from tessera.testing.apiserver import status
from tessera.testing.apiserver.patch import merge_key
from tessera.testing.apiserver.resources import Resource
from tessera.testing.apiserver.tree import Json, Object, copy, decode, dig, encode, own, rows, table, text

APPLY_PATCH: Final = "application/apply-patch+yaml"
_NOT_OWNED: Final = (
    ("apiVersion",),
    ("kind",),
    ("metadata", "name"),
    ("metadata", "namespace"),
    ("metadata", "resourceVersion"),
    ("metadata", "uid"),
    ("metadata", "managedFields"),
    ("metadata", "creationTimestamp"),
)


def read_applied(body: bytes) -> Object:
    """Read an apply body, YAML or JSON.

    Raises:
        StatusError: 400, it is neither.
    """
    try:
        applied = yaml.safe_load(body)
    except yaml.YAMLError as error:
        raise status.bad_request(f"error decoding YAML: {error}") from error
    if not isinstance(applied, dict):
        raise status.bad_request("error decoding YAML: it is no object")
    # Through JSON, so that nothing but JSON's own types is in the tree (YAML knows dates).
    try:
        return copy(applied)
    except TypeError as error:
        raise status.bad_request(f"error decoding YAML: {error}") from error


def apply(resource: Resource, current: Object, applied: Object, *, manager: str, force: bool, now: str) -> Object:
    """Merge what a manager applies into a copy of the object, and take away what it no longer applies.

    Args:
        resource: for the keys of lists.
        current: a copy of the live object, empty where there is none.
        applied: what the manager wants.
        manager: its name.
        force: take over fields that others own.
        now: for the managedFields entry.

    Raises:
        StatusError: 400, no manager; 409, another manager owns a field with another value.
    """
    if not manager:
        raise status.StatusError(
            422,
            "Invalid",
            'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch',
        )
    mine = _fields(resource, applied, ())
    others = {name: fields for name, fields in _managers(current).items() if name != manager}
    if not force:
        _check_conflicts(resource, current, applied, others)
    for path in list(_leaves(_managers(current).get(manager, {}))):
        if not _has(mine, path) and not any(_has(fields, path) for fields in others.values()):
            _take_away(current, path)
    merged = _merge(resource, current, applied)
    entry: Object = {
        "manager": manager,
        "operation": "Apply",
        "apiVersion": resource.api_version,
        "time": now,
        "fieldsType": "FieldsV1",
        "fieldsV1": mine,
    }
    kept: list[Json] = [row for row in rows(current, "metadata", "managedFields") if text(row, "manager") != manager]
    same = [row for row in rows(current, "metadata", "managedFields") if text(row, "manager") == manager]
    if same and same[0].get("fieldsV1") == mine:
        # Applying the same again changes nothing, so not the time either.
        entry["time"] = same[0].get("time")
    own(merged, "metadata")["managedFields"] = [*kept, entry]
    return merged


def _managers(current: Object) -> dict[str, Object]:
    return {text(row, "manager"): table(row, "fieldsV1") for row in rows(current, "metadata", "managedFields")}


def _fields(resource: Resource, tree: Object, path: tuple[str, ...]) -> Object:
    """Write down which fields a tree sets, as FieldsV1 does: ``f:name`` for fields, ``k:{...}`` for items by key."""
    found: Object = {}
    for name, value in tree.items():
        here = (*path, name)
        if here in _NOT_OWNED:
            continue
        key = merge_key(resource, name)
        if isinstance(value, dict) and value:
            below = _fields(resource, value, here)
            if below:
                found[f"f:{name}"] = below
        elif isinstance(value, list) and key and all(isinstance(item, dict) and key in item for item in value):
            items: Object = {}
            for item in value:
                if isinstance(item, dict):
                    label = "k:" + encode({key: item[key]}).decode()
                    items[label] = {".": {}, **_fields(resource, item, (*here, label))}
            found[f"f:{name}"] = items
        else:
            found[f"f:{name}"] = {}
    return found


def _leaves(fields: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, below in fields.items():
        here = (*path, name)
        if isinstance(below, dict) and below:
            yield from _leaves(below, here)
        else:
            yield here


def _has(fields: Object, path: tuple[str, ...]) -> bool:
    return dig(fields, *path) is not None


def _check_conflicts(resource: Resource, current: Object, applied: Object, others: dict[str, Object]) -> None:
    causes: list[Json] = []
    for manager, fields in others.items():
        for path in _leaves(fields):
            wanted = _value(applied, path)
            if wanted is not None and path[-1] != "." and wanted != _value(current, path):
                shown = "".join(f".{part[2:]}" if part.startswith("f:") else f"[{part[2:]}]" for part in path)
                causes.append(
                    {"reason": "FieldManagerConflict", "message": f'conflict with "{manager}"', "field": shown}
                )
    if causes:
        first = causes[0]
        message = (
            f"Apply failed with {len(causes)} conflict{'s' if len(causes) > 1 else ''}: "
            f"{text(first, 'message')}: {text(first, 'field')}"
        )
        raise status.StatusError(409, "Conflict", message, details={"causes": causes, "kind": resource.plural})


def _value(tree: Json, path: tuple[str, ...]) -> Json:
    for part in path:
        if part == ".":
            return tree
        tree = dig(tree, part[2:]) if part.startswith("f:") else _item(tree, part)
    return tree


def _item(items: Json, label: str) -> Json:
    wanted = table(decode(label[2:].encode()))
    if isinstance(items, list):
        for item in items:
            if isinstance(item, dict) and all(item.get(key) == value for key, value in wanted.items()):
                return item
    return None


def _take_away(tree: Object, path: tuple[str, ...]) -> None:
    holder = _value(tree, path[:-1])
    last = path[-1]
    if last == ".":
        items = _value(tree, path[:-2])
        if isinstance(items, list) and holder in items:
            items.remove(holder)
    elif isinstance(holder, dict):
        holder.pop(last[2:], None)


def _merge(resource: Resource, current: Object, applied: Object) -> Object:
    for name, value in applied.items():
        key = merge_key(resource, name)
        below = current.get(name)
        if isinstance(value, dict):
            current[name] = _merge(resource, below if isinstance(below, dict) else {}, value)
        elif isinstance(value, list) and key and isinstance(below, list):
            current[name] = _merge_items(resource, below, value, key)
        elif value is None:
            current.pop(name, None)
        else:
            current[name] = value
    return current


def _merge_items(resource: Resource, current: list[Json], applied: list[Json], key: str) -> list[Json]:
    result = list(current)
    for item in applied:
        if not isinstance(item, dict):
            continue
        place = next(
            (i for i, old in enumerate(result) if isinstance(old, dict) and old.get(key) == item.get(key)), None
        )
        if place is None:
            result.append(item)
        else:
            old = result[place]
            result[place] = _merge(resource, old if isinstance(old, dict) else {}, item)
    return result
