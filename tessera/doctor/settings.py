"""Config and what runs by it: the ConfigMap reads, and every node counts memory in its unit."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

from tessera.doctor.check import Seen
from tessera.doctor.evidence import Evidence, Settings
from tessera.doctor.finding import Finding, Severity, counted, several
from tessera.doctor.objects import ConfigMap, LookedNode
from tessera.model import inventory as inventories
from tessera.model.config import DialectOptions, parse
from tessera.model.errors import AnnotationError, ConfigError, QuantityError
from tessera.model.names import Names
from tessera.model.quantity import binary, whole

KEYS: Final = ("config.yaml", "config.yml", "tessera.yaml")
"""Under which of a ConfigMap's keys the config file is looked for."""


DEFAULTS: Final = "defaults"
"""The source of a config that was found nowhere."""


def settings(
    config_maps: tuple[ConfigMap, ...], namespace: str, *, dialects: Mapping[str, type[DialectOptions]]
) -> Settings:
    """The config that an installation runs by: its ConfigMap's, else the defaults."""
    for found in config_maps:
        if found.metadata.namespace != namespace:
            continue
        for key in KEYS:
            text = (found.data or {}).get(key)
            if text is None or "KubeSchedulerConfiguration" in text:
                continue
            source = f"configmap/{namespace}/{found.metadata.name} ({key})"
            try:
                return Settings(parse(text, dialects=dialects), source)
            except ConfigError as error:
                return Settings(parse("", dialects=dialects), source, str(error))
    return Settings(parse("", dialects=dialects), DEFAULTS)


def well_formed(evidence: Evidence) -> Seen:
    """Every object that was listed could be decoded."""
    findings = [
        Finding(
            severity=Severity.WARNING,
            object=what,
            seen=f"{counted(count, 'object')} could not be decoded and {'is' if count == 1 else 'are'} left out here",
            why="What is said of the others holds; of these nothing is known.",
            mend="Use a doctor of the cluster's age; look at who serves that API.",
        )
        for what, count in sorted(evidence.unreadable.items())
    ]
    return Seen(findings, "every list")


def readable(evidence: Evidence) -> Seen:
    """The config is read without a mistake."""
    found = evidence.settings
    notes = []
    if found.source == DEFAULTS:
        evidence.config_maps.need()
        notes.append(f"no ConfigMap in {evidence.namespace} holds one, so the defaults are taken to be in force")
    if not found.problem:
        return Seen((), found.source, notes)
    finding = Finding(
        severity=Severity.ERROR,
        object=found.source,
        seen=found.problem,
        why="What runs keeps the last good config, what is started anew does not start.",
        mend="Correct it; docs/reference.md has every key.",
    )
    return Seen([finding], found.source, notes)


def units(evidence: Evidence) -> Seen:
    """One memory unit everywhere: in the config, in every node's inventory and in the tickets that kubelets advertise."""
    names, findings = evidence.names, []
    nodes = evidence.nodes.need()
    by_unit: dict[int, list[str]] = {}
    for node in nodes:
        for unit in _units(node, names):
            by_unit.setdefault(unit, []).append(node.metadata.name)
    for unit, where in sorted(by_unit.items()):
        if unit != names.memory_unit:
            findings.append(
                Finding(
                    severity=Severity.ERROR,
                    object=f"node/{where[0]}",
                    seen=f"memory is counted in {binary(unit)} on {several(where)}, the config says "
                    f"{binary(names.memory_unit)} ({evidence.settings.source})",
                    why="Pods ask in tickets that these nodes don't have, and nothing is placed there.",
                    mend="Give every part the same config and restart the node agents; memoryUnit is read at start only.",
                )
            )
    elsewhere = [node.metadata.name for node in nodes if _other_domain(node, names)]
    if elsewhere:
        findings.append(
            Finding(
                severity=Severity.ERROR,
                object=f"node/{elsewhere[0]}",
                seen=f"inventories of another domain than {names.domain} ({evidence.settings.source}) on {several(elsewhere)}",
                why="Pods ask for names that these nodes don't have, and nothing is placed there.",
                mend="Give every part the same config and restart the node agents; domain is read at start only.",
            )
        )
    return Seen(findings, counted(sum(map(len, by_unit.values())), "node"))


def _other_domain(node: LookedNode, names: Names) -> bool:
    """Whether a node has no inventory under our domain and one under another."""
    notes = node.metadata.annotations or {}
    if names.inventory in notes:
        return False
    for name, text in notes.items():
        with contextlib.suppress(AnnotationError):
            if name.endswith("/inventory") and inventories.decode(text).gpus:
                return True
    return False


def tickets_elsewhere(evidence: Evidence) -> Seen:
    """No pod waits for tickets of another unit."""
    names = evidence.names
    prefix = f"{names.domain}/gpu-memory."
    by_name: dict[str, list[str]] = {}
    pods = evidence.pods.need()
    for pod in pods:
        if pod.spec.node_name or pod.ended:
            continue
        for container in (*(pod.spec.init_containers or ()), *(pod.spec.containers or ())):
            for name in (container.resources.limits if container.resources else None) or {}:
                if name.startswith(prefix) and not names.is_ticket(name):
                    by_name.setdefault(name, []).append(pod.key)
    findings = [
        Finding(
            severity=Severity.ERROR,
            object=f"pod/{where[0]}",
            seen=f"{several(dict.fromkeys(where))} asks for {name}, this installation has {names.memory_units}",
            why="No node advertises that ticket, so the pod waits for ever.",
            mend="Delete the pod, so that its owner makes it anew; write amounts, not tickets, into manifests.",
        )
        for name, where in sorted(by_name.items())
    ]
    return Seen(findings, counted(len(pods), "pod"))


def _units(node: LookedNode, names: Names) -> set[int]:
    """The units that a node speaks of: its agent's inventory, and tickets that its kubelet has any of."""
    found = set()
    text = node.metadata.annotation(names.inventory)
    with contextlib.suppress(AnnotationError):
        if text is not None:
            found.add(inventories.decode(text).unit)
    prefix = f"{names.domain}/gpu-memory."
    for name, raw in (node.status.allocatable or {}).items():
        suffix = name.removeprefix(prefix)
        if name in (suffix, names.memory_percent):
            continue
        with contextlib.suppress(QuantityError):
            if whole(raw) > 0 and (unit := whole(suffix)) > 0:
                found.add(unit)
    return found
