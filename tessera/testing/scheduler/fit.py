"""The in-tree filters that stand before an extender: labels, taints, and what the node's allocatable still holds.

Semantics of kube-scheduler 1.34's plugins NodeUnschedulable, NodeAffinity, TaintToleration and NodeResourcesFit; a reason
is worded as theirs, because that is what people read in a pod's events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from tessera.model.node import Node, Taint
from tessera.model.pod import Container, Manifest, NodeSelectorTerm, SelectorRequirement, Toleration, role
from tessera.model.quantity import parse
from tessera.model.tickets import containers

Amounts = dict[str, Fraction]
"""Amounts by resource name, in base units (cores, bytes, tickets); ``pods`` counts pods."""


def why_not(pod: Manifest, node: Node, used: Mapping[str, Fraction], *, ignored: frozenset[str]) -> str | None:
    """Why the pod can't go to the node, or None where it can.

    Args:
        pod: unbound.
        node: a candidate.
        used: what the pods on it hold.
        ignored: resources that the extender alone counts (``ignoredByScheduler``).
    """
    if node.spec.unschedulable and not _tolerated(
        Taint(key="node.kubernetes.io/unschedulable", effect="NoSchedule"), pod.spec.tolerations or ()
    ):
        return "node(s) were unschedulable"
    if not _selected(pod, node):
        return "node(s) didn't match Pod's node affinity/selector"
    for taint in node.spec.taints or ():
        if taint.effect in ("NoSchedule", "NoExecute") and not _tolerated(taint, pod.spec.tolerations or ()):
            return f"node(s) had untolerated taint {{{taint.key}: {taint.value or ''}}}"
    allocatable = {name: parse(raw) for name, raw in (node.status.allocatable or {}).items()}
    for name, amount in requests(pod).items():
        if name not in ignored and amount and used.get(name, Fraction(0)) + amount > allocatable.get(name, Fraction(0)):
            return "Too many pods" if name == "pods" else f"Insufficient {name}"
    return None


def requests(pod: Manifest) -> Amounts:
    """What a pod holds of every resource, as Kubernetes counts init containers and sidecars."""
    running: Amounts = {}
    peak: Amounts = {}
    for container, init in containers(pod):
        asked = _asked(container)
        if role(container, init=init) == "init":
            for name, amount in asked.items():
                peak[name] = max(peak.get(name, Fraction(0)), running.get(name, Fraction(0)) + amount)
        else:
            for name, amount in asked.items():
                running[name] = running.get(name, Fraction(0)) + amount
    total = {
        name: max(running.get(name, Fraction(0)), peak.get(name, Fraction(0))) for name in running.keys() | peak.keys()
    }
    total["pods"] = Fraction(1)
    return total


def _asked(container: Container) -> Amounts:
    found = (container.resources.requests or {}) if container.resources else {}
    return {name: parse(raw) for name, raw in found.items()}


def _selected(pod: Manifest, node: Node) -> bool:
    labels = node.metadata.labels or {}
    if any(labels.get(key) != value for key, value in (pod.spec.node_selector or {}).items()):
        return False
    affinity = pod.spec.affinity.node_affinity if pod.spec.affinity else None
    if affinity is None or affinity.required is None:
        return True
    return any(_term(term, node) for term in affinity.required.node_selector_terms or ())


def preference(pod: Manifest, node: Node) -> int:
    """The sum of the weights of the preferred node affinity terms that the node matches."""
    affinity = pod.spec.affinity.node_affinity if pod.spec.affinity else None
    preferred = affinity.preferred if affinity else None
    return sum(term.weight for term in preferred or () if _term(term.preference, node))


def _term(term: NodeSelectorTerm, node: Node) -> bool:
    if not term.match_expressions and not term.match_fields:
        return False
    fields = {"metadata.name": node.metadata.name}
    return _all(term.match_expressions or (), node.metadata.labels or {}) and _all(term.match_fields or (), fields)


def _all(wanted: Iterable[SelectorRequirement], there: Mapping[str, str]) -> bool:
    return all(_holds(requirement, there.get(requirement.key)) for requirement in wanted)


def _holds(requirement: SelectorRequirement, value: str | None) -> bool:
    values = requirement.values or ()
    match requirement.operator:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            if value is None or not value.lstrip("-").isdigit() or len(values) != 1:
                return False
            return int(value) > int(values[0]) if requirement.operator == "Gt" else int(value) < int(values[0])
        case _:
            return False


def _tolerated(taint: Taint, tolerations: Iterable[Toleration]) -> bool:
    return any(
        (not toleration.effect or toleration.effect == taint.effect)
        and (
            ((toleration.operator or "Equal") == "Exists" and toleration.key in ("", taint.key))
            or (
                (toleration.operator or "Equal") == "Equal"
                and toleration.key == taint.key
                and (toleration.value or "") == (taint.value or "")
            )
        )
        for toleration in tolerations
    )
