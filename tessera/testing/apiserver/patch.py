"""The three kinds of patch that change an object by a difference: JSON patch, merge patch, strategic merge patch.

Strategic merge needs to know which lists are merged by which key. The real server reads it from struct tags; here it is
one table by field name (k8s.io/api 0.34, every patchMergeKey of the served resources). A list that is not in the table
is atomic, tolerations, taints, command, args, containerStatuses and rules among them: the patch's list replaces it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tessera.testing.apiserver import status
from tessera.testing.apiserver.resources import Resource
from tessera.testing.apiserver.tree import Json, Object, decode

JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_PATCH: Final = "application/strategic-merge-patch+json"
_MOST_OPERATIONS: Final = 10_000

MERGE_KEYS: Final = {
    "addresses": "type",
    "allocatedResourcesStatus": "name",
    "conditions": "type",
    "containers": "name",
    "env": "name",
    "ephemeralContainers": "name",
    "hostAliases": "ip",
    "hostIPs": "ip",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "matchConditions": "name",
    "ownerReferences": "uid",
    "podIPs": "ip",
    "ports": "containerPort",
    "resourceClaimStatuses": "name",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "secrets": "name",
    "topologySpreadConstraints": "topologyKey",
    "variables": "name",
    "volumeDevices": "devicePath",
    "volumeMounts": "mountPath",
    "volumes": "name",
    "webhooks": "name",
}
_MERGED_TEXTS: Final = ("finalizers", "podCIDRs")
_DELETE_TEXTS: Final = "$deleteFromPrimitiveList/"
_ORDER: Final = "$setElementOrder/"
_RETAIN: Final = "$retainKeys"


def merge_key(resource: Resource, name: str) -> str:
    """Name the key by which a list is merged, "" for an atomic one."""
    if name == "ports" and resource.plural == "services":
        return "port"
    return MERGE_KEYS.get(name, "")


def apply_patch(resource: Resource, kind: str, current: Object, body: bytes) -> Object:
    """Apply a patch to a copy that may be changed.

    Args:
        resource: of the object, for the merge keys.
        kind: the media type, one of the three.
        current: a copy of the object.
        body: the patch.

    Raises:
        StatusError: 400, it can't be read; 422, it can't be applied.
    """
    try:
        patch = decode(body)
    except msgspec.DecodeError as error:
        raise status.bad_request(f"error decoding patch: {error}") from error
    if kind == JSON_PATCH:
        return json_patch(current, patch)
    if not isinstance(patch, dict):
        raise status.bad_request("error decoding patch: it is no object")
    if kind == MERGE_PATCH:
        return _merged(current, patch)
    return _strategic(resource, current, patch)


def json_patch(current: Object, patch: Json) -> Object:
    """Apply a JSON patch (RFC 6902).

    Raises:
        StatusError: 400, it is no patch; 413, it has too many operations; 422, an operation can't be applied.
    """
    import jsonpatch  # noqa: PLC0415  only tests and the demo have it
    from jsonpointer import JsonPointerException  # noqa: PLC0415

    if not isinstance(patch, list):
        raise status.bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    if len(patch) > _MOST_OPERATIONS:
        message = f"The allowed maximum operations in a JSON patch is {_MOST_OPERATIONS}, got {len(patch)}"
        raise status.StatusError(413, "RequestEntityTooLarge", f"Request entity too large: {message}")
    operations = [operation for operation in patch if isinstance(operation, dict)]
    if len(operations) != len(patch):
        raise status.bad_request("json: an operation of the patch is no object")
    try:
        changed = jsonpatch.apply_patch(current, operations, in_place=True)
    except (jsonpatch.JsonPatchException, JsonPointerException, TypeError, KeyError, ValueError) as error:
        raise status.unprocessable(str(error)) from error
    if not isinstance(changed, dict):
        raise status.unprocessable("the patch leaves no object")
    return changed


def _merged(current: Object, patch: Object) -> Object:
    """Apply a merge patch (RFC 7386): null takes away, lists are replaced."""
    for key, value in patch.items():
        if value is None:
            current.pop(key, None)
        elif isinstance(value, dict):
            below = current.get(key)
            current[key] = _merged(below if isinstance(below, dict) else {}, value)
        else:
            current[key] = value
    return current


def _strategic(resource: Resource, current: Object, patch: Object) -> Object:
    directive = patch.pop("$patch", None)
    if directive == "replace":
        return patch
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise status.bad_request(f"Unknown patch type found: {directive}")
    retained = patch.pop(_RETAIN, None)
    if isinstance(retained, list):
        for key in [key for key in current if key not in retained]:
            del current[key]
    orders = {key.removeprefix(_ORDER): patch.pop(key) for key in [key for key in patch if key.startswith(_ORDER)]}
    for key, value in patch.items():
        if key.startswith(_DELETE_TEXTS):
            _delete_texts(current, key.removeprefix(_DELETE_TEXTS), value)
        elif value is None:
            current.pop(key, None)
        elif isinstance(value, dict):
            below = current.get(key)
            current[key] = _strategic(resource, below if isinstance(below, dict) else {}, value)
        elif isinstance(value, list):
            below = current.get(key)
            current[key] = _strategic_list(resource, key, below if isinstance(below, list) else [], value)
        else:
            current[key] = value
    for key, order in orders.items():
        _reorder(current, key, order, merge_key(resource, key))
    return current


def _strategic_list(resource: Resource, name: str, current: list[Json], patch: list[Json]) -> list[Json]:
    key = merge_key(resource, name)
    if not key:
        if name in _MERGED_TEXTS:
            return current + [item for item in patch if item not in current]
        return patch
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if not (isinstance(item, dict) and "$patch" in item)]
    result = list(current)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise status.bad_request(f"map: {item!r:.100} does not contain declared merge key: {key}")
        place = next((i for i, old in enumerate(result) if isinstance(old, dict) and old.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            result = [old for old in result if not (isinstance(old, dict) and old.get(key) == item[key])]
        elif place is None:
            result.append(_strategic(resource, {}, item))
        else:
            old = result[place]
            result[place] = _strategic(resource, old if isinstance(old, dict) else {}, item)
    return result


def _delete_texts(current: Object, key: str, gone: Json) -> None:
    below = current.get(key)
    if isinstance(below, list) and isinstance(gone, list):
        current[key] = [item for item in below if item not in gone]


def _reorder(current: Object, name: str, order: Json, key: str) -> None:
    """Put the items that the order names in that order; those it doesn't name keep their places behind the rest."""
    below = current.get(name)
    if not isinstance(below, list) or not isinstance(order, list):
        return
    wanted = [item.get(key) if isinstance(item, dict) else item for item in order]

    def place(item: Json) -> int:
        value = item.get(key) if isinstance(item, dict) else item
        return wanted.index(value) if value in wanted else len(wanted)

    current[name] = sorted(below, key=place)
