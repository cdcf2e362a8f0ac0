"""Which unit of a placement profile a node belongs to, and which profile a pod has.

Admission writes affinity from a profile and the extender labels the bound pod with its unit. Both have to mean the same
nodes by "the IDC", so the rule stands here once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from tessera.model.config import Profile, Unit
from tessera.model.errors import RequestError
from tessera.model.pod import SelectorRequirement

REGION: Final = "topology.kubernetes.io/region"
"""The well-known label by which regions of a cloud (and an IDC, where it is given one) are told apart."""


def unit_of(node_labels: Mapping[str, str] | None, profile: Profile) -> Unit | None:
    """The first unit, in the profile's order, whose labels and regions the node has; None where it is in none."""
    labels = node_labels or {}
    return next((unit for unit in profile.units if _holds(unit, labels)), None)


def choose(
    profiles: Iterable[Profile], *, named: str | None, namespace: str, labels: Mapping[str, str] | None
) -> Profile | None:
    """The profile of a pod: the one it names, else the first that matches its namespace and labels.

    Args:
        profiles: in the config's order, which is their priority.
        named: the pod's ``tessera.dev/placement-profile`` annotation; a name is taken whatever the pod's namespace is.
        namespace: of the pod.
        labels: of the pod.

    Raises:
        RequestError: the pod names a profile that is not there.
    """
    there = tuple(profiles)
    if named:
        found = next((profile for profile in there if profile.name == named), None)
        if found is None:
            known = ", ".join(profile.name for profile in there[:20])
            raise RequestError(
                f'annotation placement-profile names "{named[:64]}", which is not configured',
                fix=f"name one that is ({known}), or remove the annotation"
                if known
                else "remove the annotation: the config has no profiles",
            )
        return found
    carried = labels or {}
    return next((profile for profile in there if _applies(profile, namespace, carried)), None)


def requirements(unit: Unit) -> tuple[SelectorRequirement, ...]:
    """What a node has to match to be in the unit, as the expressions of one node selector term, in a fixed order."""
    found = [
        SelectorRequirement(key=key, operator="In", values=(value,))
        for key, value in sorted(unit.node_selector.items())
    ]
    if unit.regions:
        found.append(SelectorRequirement(key=REGION, operator="In", values=unit.regions))
    return tuple(found)


def _holds(unit: Unit, labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in unit.node_selector.items()) and (
        not unit.regions or labels.get(REGION) in unit.regions
    )


def _applies(profile: Profile, namespace: str, labels: Mapping[str, str]) -> bool:
    return (not profile.namespaces or namespace in profile.namespaces) and all(
        labels.get(key) == value for key, value in profile.selector.items()
    )
