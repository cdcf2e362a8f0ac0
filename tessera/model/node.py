"""The part of a Node that we read, decoded like pods: raw bytes into a small subset."""

from __future__ import annotations

import msgspec

from tessera.model.pod import ObjectMeta
from tessera.model.quantity import Raw


class _Subset(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    pass


class Taint(_Subset, frozen=True, kw_only=True):
    key: str = ""
    value: str | None = None
    effect: str = ""


class NodeSpec(_Subset, frozen=True, kw_only=True):
    unschedulable: bool | None = None
    taints: tuple[Taint, ...] | None = None
    provider_id: str | None = msgspec.field(name="providerID", default=None)


class NodeCondition(_Subset, frozen=True, kw_only=True):
    type: str = ""
    status: str = ""


class NodeStatus(_Subset, frozen=True, kw_only=True):
    allocatable: dict[str, Raw] | None = None
    capacity: dict[str, Raw] | None = None
    conditions: tuple[NodeCondition, ...] | None = None


class Node(_Subset, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def ready(self) -> bool:
        """The kubelet reports itself Ready; a node that never reported counts as not ready."""
        return any(c.type == "Ready" and c.status == "True" for c in self.status.conditions or ())
