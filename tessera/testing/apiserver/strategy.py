"""What is special about each resource when its objects are written: the real server's "strategies".

A strategy is asked by `registry.Registry` at the points where the real server asks its own. The generic one does what
most resources do; Pods have theirs in `pods.py`.
"""

from __future__ import annotations

from tessera.testing.apiserver import validation
from tessera.testing.apiserver.resources import Resource
from tessera.testing.apiserver.status import Cause
from tessera.testing.apiserver.tree import Object, own, table, text, whole

# pkg/registry/*/strategy.go of 1.34: AllowUnconditionalUpdate is false, AllowCreateOnUpdate is true.
_CONDITIONAL = (
    "leases",
    "poddisruptionbudgets",
    "runtimeclasses",
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
)
_CREATED_ON_UPDATE = (
    "leases",
    "events",
    "services",
    "runtimeclasses",
    "roles",
    "rolebindings",
    "clusterroles",
    "clusterrolebindings",
)
_COUNTS_GENERATIONS = (
    "deployments",
    "daemonsets",
    "statefulsets",
    "replicasets",
    "poddisruptionbudgets",
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
)
_STATUS_KEPT_ON_CREATE = ("nodes", "namespaces")


class Strategy:
    """Writes to the main resource of most kinds."""

    returns_deleted = False
    """Whether DELETE answers with the object (pods) or with a Status."""

    def __init__(self, resource: Resource) -> None:
        """Be the strategy of `resource`."""
        self.resource = resource
        self.unconditional = resource.plural not in _CONDITIONAL
        self.created_on_update = resource.plural in _CREATED_ON_UPDATE

    def prepare_create(self, tree: Object) -> None:
        """Set what the server sets and drop what a client can't."""
        if "status" in self.resource.subresources and self.resource.plural not in _STATUS_KEPT_ON_CREATE:
            tree["status"] = {}
        if self.resource.plural in _COUNTS_GENERATIONS:
            own(tree, "metadata")["generation"] = 1

    def validate_create(self, tree: Object) -> list[Cause]:
        """Say what is wrong with a new object."""
        causes = validation.metadata(tree)
        if self.resource.plural == "events":
            causes += validation.event(tree)
        if self.resource.plural in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
            causes += validation.webhooks(tree)
        return causes

    def prepare_update(self, new: Object, old: Object) -> None:
        """Undo what this way of writing can't change."""
        if "status" in self.resource.subresources:
            keep(new, old, "status")
        if self.resource.plural in _COUNTS_GENERATIONS:
            watched = ("spec", "webhooks")
            if any(new.get(name) != old.get(name) for name in watched):
                own(new, "metadata")["generation"] = (whole(old, "metadata", "generation") or 0) + 1

    def validate_update(self, new: Object, old: Object) -> list[Cause]:
        """Say what is wrong with a change."""
        causes = validation.object_update(new, old)
        if self.resource.plural in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
            causes += validation.webhooks(new)
        return causes

    def grace(self, tree: Object, asked: int | None) -> int | None:
        """Say how many seconds a deletion waits; None where this kind is deleted at once."""
        del tree, asked
        return None


class StatusStrategy(Strategy):
    """Writes through ``/status``: only status changes, and of metadata what is left to it."""

    def prepare_update(self, new: Object, old: Object) -> None:
        """Keep everything but status; Nodes let metadata through, as kubelets rely on (node/strategy.go)."""
        for name in list(new):
            if name not in ("metadata", "status", "apiVersion", "kind"):
                del new[name]
        for name, value in old.items():
            if name not in ("metadata", "status"):
                new[name] = value
        if self.resource.plural != "nodes":
            for name in ("labels", "annotations", "finalizers", "ownerReferences"):
                keep(own(new, "metadata"), table(old, "metadata"), name)


def is_deleting(tree: Object) -> bool:
    """Tell whether a deletion is under way."""
    return bool(text(tree, "metadata", "deletionTimestamp"))


def keep(new: Object, old: Object, name: str) -> None:
    """Give a field the value it had, or take it away where it had none."""
    if name in old:
        new[name] = old[name]
    else:
        new.pop(name, None)
