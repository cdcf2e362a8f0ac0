"""What a scale pod looks like, and which pods need one: pure.

Cluster Autoscaler asks no extender. It simulates kube-scheduler's own filters, sees that a node's tickets would do in sum,
and takes a pod that no single GPU holds for one that will be placed any moment. A scale pod says the same need in its
words: whole GPUs, on none of the nodes there are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from tessera.model.config import Autoscaler
from tessera.model.names import Names
from tessera.model.pod import Affinity, NodeAffinity, NodeSelector, NodeSelectorTerm, SelectorRequirement
from tessera.model.request import ContainerRequest
from tessera.model.tickets import tickets
from tessera.placement.fit import judge
from tessera.placement.gpustate import GpuState
from tessera.placement.holding import free_percent, free_units
from tessera.placement.keeping import Kept
from tessera.placement.mig import free_instances
from tessera.placement.shape import profile_name
from webhook.extender.waiting import Rejected

HOSTNAME: Final = "kubernetes.io/hostname"
PREFIX: Final = "tessera-scale-"


def fragmented(kept: Kept, states: Sequence[GpuState]) -> bool:
    """Whether a node would do by sums, though not by its GPUs; sums are all that an autoscaler knows.

    Args:
        kept: what a pod asks.
        states: the node's GPUs as they are.
    """
    rejection = judge(kept.shape, states)
    if rejection is not None and rejection.reason.never:
        return False
    usable = [state for state in states if state.gpu.health == "ok"]
    sliced = [state for state in usable if not state.gpu.mig]
    units = sum(free_units(state.held, capacity=state.gpu.units) for state in sliced)
    percent = sum(free_percent(state.held, capacity=state.gpu.units) for state in sliced)
    compute = sum(max(0, 100 - state.held.compute) for state in sliced)
    for part in kept.shape.slices:
        request = part.request
        units -= kept.shape.units(part) * request.gpus
        percent -= (100 if request.whole else request.memory_percent or 0) * request.gpus
        compute -= (100 if request.whole else request.compute or 0) * request.gpus
    if min(units, percent, compute) < 0:
        return False
    return all(
        sum(len(free_instances(state, profile)) for state in usable) >= need
        for profile, need in kept.shape.instances.items()
    )


def manifest(pod: Rejected, config: Autoscaler, names: Names, *, scheduler: str, hosts: Collection[str]) -> bytes:
    """The scale pod of a pod that waits.

    Args:
        pod: its cause.
        config: image, namespace and priority class.
        names: of this installation.
        scheduler: whose queue it waits in.
        hosts: host names of the nodes that it must keep off.
    """
    limits = {ticket: str(count) for ticket, count in _whole(pod.kept, names).items()}
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": PREFIX + pod.uid,
            "namespace": config.namespace,
            "labels": {"app.kubernetes.io/managed-by": "tessera-extender", names.scale_for: pod.uid},
            "annotations": {names.scale_for: pod.key},
        },
        "spec": {
            "schedulerName": scheduler,
            "priorityClassName": config.priority_class_name,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "nodeSelector": pod.spec.node_selector or {},
            "tolerations": msgspec.to_builtins(pod.spec.tolerations or ()),
            "affinity": msgspec.to_builtins(_keeping_off(pod.spec.affinity, hosts)),
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "pause",
                    "image": config.image,
                    "resources": {"limits": limits, "requests": limits},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }
    return msgspec.json.encode(body)


def _whole(kept: Kept, names: Names) -> dict[str, int]:
    """Tickets that only a fresh node is sure to have: the GPUs that the pod's largest container needs, whole."""
    counts: dict[str, int] = {}
    most = max((part.request.gpus for part in kept.shape.slices), default=0)
    if most:
        counts |= tickets(ContainerRequest(gpus=most, whole=True), names)
    for profile, need in kept.shape.instances.items():
        counts[names.mig(profile_name(profile))] = need
    return counts


def _keeping_off(affinity: Affinity | None, hosts: Collection[str]) -> Affinity:
    """What the cause requires of a node, and none of these."""
    off = SelectorRequirement(key=HOSTNAME, operator="NotIn", values=tuple(sorted(hosts)))
    required = affinity.node_affinity.required if affinity is not None and affinity.node_affinity is not None else None
    terms: tuple[NodeSelectorTerm, ...] = (NodeSelectorTerm(),)
    if required is not None:
        # A term that names nothing matches no node; with one more requirement it would match nearly all.
        terms = tuple(
            each for each in required.node_selector_terms or () if each.match_expressions or each.match_fields
        )
    kept_off = tuple(
        msgspec.structs.replace(term, match_expressions=(*(term.match_expressions or ()), off)) for term in terms
    )
    return Affinity(node_affinity=NodeAffinity(required=NodeSelector(node_selector_terms=kept_off)))
