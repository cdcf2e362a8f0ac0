"""A pod template as a cluster's admission would see it, and a patch that holds for both.

Before a webhook is called, the API server has decoded the object (null is absent, or empty where a text or an amount
belongs) and filled in defaults; of these, one matters here: limits are copied into absent requests. A patch that takes
such a copy away can't be applied to the file, where it isn't; `portable` writes it so that it applies to either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import jsonpatch
import msgspec

from tessera.cli.yamlreader import Object
from tessera.model.errors import RequestError
from tessera.model.pod import Manifest, OwnerReference
from webhook.admission.patch import WIRE, Json, Operation, pointer

_TEXTS: Final = frozenset({("metadata", "annotations"), ("metadata", "labels"), ("spec", "nodeSelector")})
_AMOUNTS: Final = frozenset({"limits", "requests"})
_LISTS: Final = ("initContainers", "containers")
_WRONG: Final = re.compile(r"Expected `([^`]*)`, got `([^`]*)`(?: - at `\$([^`]*)`)?")
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_WORDS: Final = {
    "str": "a text", "int": "a number", "float": "a number", "bool": "true or false", "array": "a list",
    "object": "a mapping", "null": "nothing",
}  # fmt: skip


def admitted(pod: Object) -> Object:
    """A copy of a pod as admission sees it."""
    metadata, spec = pod.get("metadata"), pod.get("spec")
    seen: Object = {
        "metadata": {} if metadata is None else _decoded(metadata, ("metadata",)),
        "spec": {} if spec is None else _decoded(spec, ("spec",)),
    }
    for _, container in _containers(seen):
        resources = container.get("resources")
        limits = resources.get("limits") if isinstance(resources, dict) else None
        if isinstance(resources, dict) and isinstance(limits, dict):
            requests = resources.setdefault("requests", {})
            if isinstance(requests, dict):
                for name, amount in limits.items():
                    requests.setdefault(name, amount)
    return seen


def decode(seen: Object, *, owner: str = "") -> Manifest:
    """Read a pod as the webhook does.

    Args:
        seen: as `admitted` returns it.
        owner: kind of the controller that makes it; a DaemonSet's pods are treated differently.

    Raises:
        RequestError: the API server would refuse it before any webhook; the message names the path and what stands there.
    """
    try:
        pod = msgspec.convert(seen, Manifest)
    except msgspec.ValidationError as error:
        raise RequestError(f"the pod can't be read: {_explained(str(error), seen)}") from error
    if owner != "DaemonSet":
        return pod
    metadata = msgspec.structs.replace(pod.metadata, owner_references=(OwnerReference(kind=owner, controller=True),))
    return msgspec.structs.replace(pod, metadata=metadata)


def portable(operations: Sequence[Operation], *, written: Object, seen: Object) -> list[Object]:
    """A patch of a pod as admission sees it, in a form that can be applied to the pod as it is written too.

    Args:
        operations: admission's.
        written: the pod as it stands in the file.
        seen: what `admitted` made of it.
    """
    patch: list[Object] = msgspec.json.decode(WIRE.encode(operations))
    if written.get("metadata") is None and any(str(each["path"]).startswith("/metadata/") for each in patch):
        patch.insert(0, {"op": "add", "path": "/metadata", "value": {}})
    before = dict(_requests(written))
    for at, requests in _requests(seen):
        prefix = pointer(("spec", *at, "resources", "requests"))
        ours = [each for each in patch if _below(str(each["path"]), prefix)]
        if not ours or (before.get(at) or {}).keys() == requests.keys():
            continue
        # The copied requests as a whole: there they replace what is there already, here they are added.
        here = {"r": dict(requests)}
        apply([{**each, "path": "/r" + str(each["path"])[len(prefix) :]} for each in ours], here)
        patch[patch.index(ours[0])] = {"op": "add", "path": prefix, "value": here["r"]}
        patch = [each for each in patch if each not in ours]
    return patch


def apply(patch: list[Object], pod: Object | dict[str, Object]) -> None:
    """Apply a patch in place."""
    jsonpatch.JsonPatch(patch).apply(pod, in_place=True)


def _decoded(value: Json, path: tuple[str, ...]) -> Json:
    if isinstance(value, list):
        return [_decoded(item, (*path, "")) for item in value]
    if not isinstance(value, dict):
        return value
    if path in _TEXTS:
        return {key: "" if below is None else below for key, below in value.items()}
    if path[-1] in _AMOUNTS and path[-2:-1] == ("resources",):
        return {key: "0" if below is None else below for key, below in value.items()}
    return {key: _decoded(below, (*path, key)) for key, below in value.items() if below is not None}


def _containers(pod: Object) -> list[tuple[tuple[str, int], Object]]:
    """The containers of a pod with their place in its spec."""
    spec = pod.get("spec")
    if not isinstance(spec, dict):
        return []
    found = [(name, spec.get(name)) for name in _LISTS]
    return [
        ((name, number), container)
        for name, each in found
        for number, container in enumerate(each if isinstance(each, list) else [])
        if isinstance(container, dict)
    ]


def _requests(pod: Object) -> list[tuple[tuple[str, int], Object]]:
    """The requests of a pod's containers, where there are some."""
    found = []
    for at, container in _containers(pod):
        resources = container.get("resources")
        requests = resources.get("requests") if isinstance(resources, dict) else None
        if isinstance(requests, dict):
            found.append((at, requests))
    return found


def _below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")


def _explained(text: str, seen: Object) -> str:
    """A mistake of type in words: the whole path, what stands there, and what belongs there."""
    match = _WRONG.fullmatch(text)
    if match is None:
        return text
    wanted, got, path = match.groups()
    here: Json = seen
    steps = ""
    for name, index in _STEP.findall(path or ""):
        if isinstance(here, dict):
            key = name or next((key for key, below in here.items() if _kind(below) == got), "")
            here = here.get(key)
            steps += f".{key}" if name else f"[{key}]"
        elif isinstance(here, list) and index.isdigit():
            here = here[int(index)]
            steps += f"[{index}]"
    belongs = " or ".join(
        dict.fromkeys(_WORDS[kind] for kind in wanted.split(" | ") if kind in _WORDS and kind != "null")
    )
    stands = f"{_WORDS.get(got, got)}" + (
        f" ({msgspec.json.encode(here).decode()[:40]})" if _kind(here) in _PLAIN else ""
    )
    hint = "; put it in quotes" if wanted.startswith("str") and got in _PLAIN and "int" not in wanted else ""
    return f"{steps.removeprefix('.') or 'it'} is {stands}, where {belongs} belongs{hint}"


_PLAIN: Final = frozenset({"str", "int", "float", "bool"})


def _kind(value: Json) -> str:
    """A value's type as msgspec calls it."""
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        return "object" if isinstance(value, dict) else "array"
    return type(value).__name__
