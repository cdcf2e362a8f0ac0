"""Manifests as people write them: several documents, every kind that holds a pod template, and their mistakes.

What a cluster's webhook sees has been decoded by the API server, which drops nulls; a file is brought there first, and
only then does the webhook's own code look at it. Defaults are not written in (limits copied into absent requests), so a
patch can be applied to the template as it stands in the file; a request counts the same either way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

from tessera.model.errors import TesseraError

LARGEST: Final = 16 * 1024 * 1024
"""Bytes of one file. An object in etcd has at most 1.5 MiB."""
DEEPEST: Final = 100
MOST: Final = 500_000
"""Values of one document, aliases written out."""

Json = Any
"""Plain JSON: what a manifest is made of."""
Steps = tuple[str | int, ...]


class ManifestError(TesseraError):
    """A file is no manifest: the message names the file, the document and the line."""


@dataclass(frozen=True, slots=True)
class Template:
    """One pod template: where in its object it stands, and the pod that a cluster would create from it.

    Attributes:
        path: steps from the object to the template; () where the object is a Pod.
        pod: as admission would see it.
        namespace: of the object, or "".
    """

    path: Steps
    pod: Json
    namespace: str


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: dates are texts, and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise ManifestError(f"line {key.start_mark.line + 1}: key {key.value!r} stands twice")
                seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(data: bytes, *, name: str) -> list[Json]:
    """Read the objects of one file, Lists taken apart.

    Args:
        data: YAML or JSON.
        name: of the file, for messages.

    Raises:
        ManifestError: not UTF-8, not YAML, too large, or a document that is no object.
    """
    if len(data) > LARGEST:
        raise ManifestError(f"{name}: {len(data)} bytes; at most {LARGEST} are read")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{name}: not UTF-8 at byte {error.start}") from error
    objects: list[Json] = []
    for number, document in enumerate(_documents(text, name), 1):
        if document is None:
            continue
        if not isinstance(document, dict):
            raise ManifestError(f"{name}: document {number} is a {type(document).__name__}, not an object with a kind")
        _bound(document, f"{name}: document {number}")
        items = document.get("items")
        if str(document.get("kind", "")).endswith("List") and isinstance(items, list):
            objects += [item for item in items if isinstance(item, dict)]
        else:
            objects.append(document)
    return objects


def _documents(text: str, name: str) -> Iterator[Json]:
    if text.lstrip()[:1] == "{":
        try:
            yield json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            if not isinstance(error, json.JSONDecodeError):
                raise ManifestError(f"{name}: {error}") from error
        else:
            return
    try:
        yield from yaml.load_all(text, Loader=_Loader)
    except ManifestError as error:
        raise ManifestError(f"{name}: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise ManifestError(f"{name}: not YAML: {' '.join(str(error).split())}") from error


def _no_constant(text: str) -> Json:
    message = f"{text} is no JSON"
    raise ValueError(message)


def _bound(document: Json, where: str) -> None:
    """Refuse what would not end: aliases that double, or lead back into themselves; keys that are no texts."""
    todo: list[tuple[Json, int]] = [(document, 0)]
    count = 0
    while todo:
        value, depth = todo.pop()
        count += 1
        if depth > DEEPEST or count > MOST:
            raise ManifestError(f"{where} is nested deeper than {DEEPEST} or holds more than {MOST} values")
        if isinstance(value, dict):
            wrong = next((key for key in value if not isinstance(key, str)), None)
            if wrong is not None:
                raise ManifestError(f"{where}: key {wrong!r} is no text; write it in quotes")
            todo += [(below, depth + 1) for below in value.values()]
        elif isinstance(value, list):
            todo += [(below, depth + 1) for below in value]


def templates(manifest: Json) -> list[Template]:
    """Every pod template of an object, in its order: the pod itself, or whatever holds a ``spec`` with containers."""
    metadata = manifest.get("metadata")
    namespace = metadata.get("namespace") if isinstance(metadata, dict) else None
    found = [
        Template(path, _pod(there, manifest), namespace if isinstance(namespace, str) else "")
        for path, there in _find(manifest, ())
    ]
    if not found and manifest.get("kind") == "Pod":
        found = [Template((), _pod(manifest, manifest), namespace if isinstance(namespace, str) else "")]
    return found


def _find(value: Json, path: Steps) -> Iterator[tuple[Steps, Json]]:
    if isinstance(value, dict):
        spec = value.get("spec")
        containers = spec.get("containers") if isinstance(spec, dict) else None
        if isinstance(containers, list) and all(isinstance(each, dict) for each in containers):
            yield path, value
            return
        for key, below in value.items():
            yield from _find(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _find(below, (*path, index))


def _pod(template: Json, owner: Json) -> Json:
    """The pod that the API server would show to admission."""
    metadata = _without_nulls(template.get("metadata") or {})
    if owner is not template and owner.get("kind") == "DaemonSet" and isinstance(metadata, dict):
        # The controller's mark; the repair of CNI pods goes by it.
        metadata = {**metadata, "ownerReferences": [{"kind": "DaemonSet"}]}
    spec = _without_nulls(template.get("spec") or {})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _without_nulls(value: Json) -> Json:
    """A copy as the API server decodes it: a null field is an absent one."""
    if isinstance(value, dict):
        return {key: _without_nulls(below) for key, below in value.items() if below is not None}
    return [_without_nulls(below) for below in value] if isinstance(value, list) else value


def with_template(manifest: Json, path: Steps, pod: Json) -> Json:
    """A copy of an object with the template at a path replaced by a pod's metadata and spec."""
    if not path:
        metadata = {
            key: value for key, value in pod["metadata"].items() if key != "ownerReferences" or _owned(manifest)
        }
        return {
            **manifest,
            **({"metadata": metadata} if metadata or "metadata" in manifest else {}),
            "spec": pod["spec"],
        }
    step, rest = path[0], path[1:]
    if isinstance(manifest, list) and isinstance(step, int):
        return [with_template(each, rest, pod) if at == step else each for at, each in enumerate(manifest)]
    return {key: with_template(each, rest, pod) if key == step else each for key, each in manifest.items()}


def _owned(template: Json) -> bool:
    return "ownerReferences" in (template.get("metadata") or {})
