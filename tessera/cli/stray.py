"""Names under our domain that mean nothing: a slip of the pen that the API server takes, and that waits for ever.

Admission leaves such a pod alone (another system may own what we don't know), so only whoever looks at the manifest
beforehand can tell its author.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tessera.cli.yamlreader import Object
from tessera.model.names import Names
from tessera.model.strict import nearest
from tessera.report.plaintext import short

MOST: Final = 10
"""Warnings of one template; whoever has made more mistakes has made the same one again."""
_LONGEST: Final = 100


def stray(pod: Object, names: Names) -> tuple[str, ...]:
    """What of a pod is under our domain and no name of ours, each with the nearest that is.

    Args:
        pod: a pod or pod template, as plain data.
        names: of the installation.
    """
    resources = (*names.asks, *names.tickets)
    annotations = _annotations(names)
    found = [
        _said(f'container "{short(container, _LONGEST)}": ', name, "resource", names.domain, resources)
        for container, name in dict.fromkeys(resources_of(pod))
        if name.startswith(f"{names.domain}/") and name not in names.asks and not names.is_ticket(name)
    ]
    found += [
        _said("", name, "annotation", names.domain, annotations)
        for name in _mapping(_mapping(pod.get("metadata")).get("annotations"))
        if name.startswith(f"{names.domain}/") and name not in annotations
    ]
    return tuple(found[:MOST])


def _annotations(names: Names) -> tuple[str, ...]:
    """Every name but those of resources, nodes and labels: one that is added later is known by itself."""
    others = (*names.tickets, names.unit, names.region, names.inventory, names.drift, names.wake, names.scale_for)
    fields = (field for field in Names.__dataclass_fields__ if not field.startswith(("node_", "mig_")))
    found = (str(getattr(names, field)) for field in fields)
    return tuple(name for name in found if name.startswith(f"{names.domain}/") and name not in others)


def _said(where: str, name: str, what: str, domain: str, valid: tuple[str, ...]) -> str:
    meant = nearest(name.removeprefix(f"{domain}/"), (each.removeprefix(f"{domain}/") for each in valid))
    return f"{where}{short(name, _LONGEST)} is no {what} of Tessera's{meant}"


def resources_of(pod: Object) -> Iterator[tuple[str, str]]:
    """(container, resource) of every limit and request."""
    spec = _mapping(pod.get("spec"))
    for field in ("initContainers", "containers"):
        containers = spec.get(field)
        for container in containers if isinstance(containers, list) else ():
            resources = _mapping(_mapping(container).get("resources"))
            for kind in ("limits", "requests"):
                yield from ((str(_mapping(container).get("name")), name) for name in _mapping(resources.get(kind)))


def _mapping(value: object) -> Object:
    return value if isinstance(value, dict) else {}
