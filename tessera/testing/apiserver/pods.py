"""What is special about Pods (pkg/registry/core/pod/strategy.go) and the in-tree admission that they pass.

Binding and eviction, which change a pod without passing through any of this, are in `binding.py`.
"""

from __future__ import annotations

import random
import string
from typing import Final

from tessera.model.quantity import parse
from tessera.testing.apiserver import status, validation
from tessera.testing.apiserver.resources import Resource
from tessera.testing.apiserver.status import Cause, forbidden_value, invalid_value
from tessera.testing.apiserver.store import Store
from tessera.testing.apiserver.strategy import Strategy, keep
from tessera.testing.apiserver.tree import Json, Object, own, rows, table, text, whole

_TOLERATED: Final = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_SYSTEM_PRIORITIES: Final = {"system-node-critical": 2_000_001_000, "system-cluster-critical": 2_000_000_000}
_VOLUME: Final = "kube-api-access-"
_MOUNTED_AT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


class PodStrategy(Strategy):
    """Writes to ``pods``."""

    returns_deleted = True

    def prepare_create(self, tree: Object) -> None:
        """Start Pending, with the quality of service that the resources say."""
        own(tree, "metadata")["generation"] = 1
        fresh: Object = {"phase": "Pending", "qosClass": _quality(tree)}
        if rows(tree, "spec", "schedulingGates"):
            fresh["conditions"] = [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates",
                }
            ]
        tree["status"] = fresh

    def validate_create(self, tree: Object) -> list[Cause]:
        """Check names, containers and resources."""
        return validation.metadata(tree) + validation.pod(tree)

    def prepare_update(self, new: Object, old: Object) -> None:
        """Status is not changed here."""
        keep(new, old, "status")
        if new.get("spec") != old.get("spec"):
            own(new, "metadata")["generation"] = (whole(old, "metadata", "generation") or 0) + 1

    def validate_update(self, new: Object, old: Object) -> list[Cause]:
        """Check that the spec stays what it is."""
        return validation.object_update(new, old) + validation.pod_update(new, old)

    def grace(self, tree: Object, asked: int | None) -> int | None:
        """Take the asked grace, else the pod's own; a pod that nobody runs goes at once."""
        period = asked if asked is not None else whole(tree, "spec", "terminationGracePeriodSeconds") or 0
        if not text(tree, "spec", "nodeName") or text(tree, "status", "phase") in ("Succeeded", "Failed"):
            period = 0
        return 1 if period < 0 else period


class PodStatusStrategy(Strategy):
    """Writes to ``pods/status``: labels and annotations pass, which is how status writers may forge them."""

    def prepare_update(self, new: Object, old: Object) -> None:
        """Keep the spec and the owners; a status without a quality of service keeps the old one."""
        keep(new, old, "spec")
        keep(own(new, "metadata"), table(old, "metadata"), "ownerReferences")
        if not text(new, "status", "qosClass"):
            own(new, "status")["qosClass"] = text(old, "status", "qosClass")

    def validate_update(self, new: Object, old: Object) -> list[Cause]:
        """The quality of service never changes."""
        causes = validation.object_update(new, old)
        if text(new, "status", "qosClass") != text(old, "status", "qosClass"):
            causes.append(invalid_value("status.qosClass", text(new, "status", "qosClass"), "field is immutable"))
        return causes


class PodPartStrategy(Strategy):
    """Writes to ``pods/resize`` (resources of containers) and ``pods/ephemeralcontainers``."""

    def __init__(self, resource: Resource, part: str) -> None:
        """Be the strategy of that subresource."""
        super().__init__(resource)
        self._part = part

    def prepare_update(self, new: Object, old: Object) -> None:
        """Keep everything but the part."""
        asked = table(new, "spec")
        new["spec"] = {**table(old, "spec")}
        keep(new, old, "status")
        for name in ("labels", "annotations", "finalizers", "ownerReferences"):
            keep(own(new, "metadata"), table(old, "metadata"), name)
        spec = own(new, "spec")
        if self._part == "ephemeralcontainers":
            spec["ephemeralContainers"] = asked.get("ephemeralContainers")
        else:
            for kind in ("containers", "initContainers"):
                if kind in spec:
                    spec[kind] = _resized(rows(spec, kind), rows(asked, kind))

    def validate_update(self, new: Object, old: Object) -> list[Cause]:
        """Only cpu and memory can be resized (ValidatePodResize)."""
        causes = validation.object_update(new, old)
        for kind in ("containers", "initContainers"):
            for index, (after, before) in enumerate(zip(rows(new, "spec", kind), rows(old, "spec", kind), strict=True)):
                at = f"spec.{kind}[{index}].resources"
                causes += validation.resources(at, table(after, "resources"))
                if _fixed(after) != _fixed(before):
                    causes.append(forbidden_value(at, "only cpu and memory resources are mutable"))
        return causes


def admit_pod(tree: Object, store: Store) -> None:
    """Do what the in-tree admission plugins do to a new pod before webhooks see it.

    Raises:
        StatusError: 403, the service account or the priority class isn't there.
    """
    namespace, name = text(tree, "metadata", "namespace"), text(tree, "metadata", "name")
    spec = own(tree, "spec")
    account = text(spec, "serviceAccountName") or "default"
    found = store.get("serviceaccounts", (namespace, account))
    if found is None:
        problem = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
        raise status.forbidden("", "pods", name, problem)
    spec["serviceAccountName"] = spec["serviceAccount"] = account
    if (
        spec.get("automountServiceAccountToken") is not False
        and found.tree.get("automountServiceAccountToken") is not False
    ):
        _mount_token(spec)
    priority_class = text(spec, "priorityClassName")
    spec["priority"], spec["preemptionPolicy"] = _priority(priority_class, name, store)
    tolerations = rows(spec, "tolerations")
    for key in _TOLERATED:
        if not any(text(t, "key") in ("", key) and text(t, "effect") in ("", "NoExecute") for t in tolerations):
            tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
    spec["tolerations"] = list(tolerations)


def check_pod(tree: Object, store: Store) -> None:
    """Do what the in-tree admission plugins check after webhooks have changed a new pod.

    Raises:
        StatusError: 403, the runtime class isn't there.
    """
    runtime = text(tree, "spec", "runtimeClassName")
    if runtime and store.get("runtimeclasses.node.k8s.io", ("", runtime)) is None:
        problem = f'pod rejected: RuntimeClass "{runtime}" not found'
        raise status.forbidden("", "pods", text(tree, "metadata", "name"), problem)


def _priority(name: str, pod: str, store: Store) -> tuple[int, str]:
    if name in _SYSTEM_PRIORITIES:
        return _SYSTEM_PRIORITIES[name], "PreemptLowerPriority"
    if not name:
        return 0, "PreemptLowerPriority"
    found = store.get("priorityclasses.scheduling.k8s.io", ("", name))
    if found is None:
        raise status.forbidden("", "pods", pod, f"no PriorityClass with name {name} was found")
    return whole(found.tree, "value") or 0, text(found.tree, "preemptionPolicy") or "PreemptLowerPriority"


def _mount_token(spec: Object) -> None:
    wanting = [
        container
        for container in rows(spec, "containers") + rows(spec, "initContainers")
        if not any(text(mount, "mountPath") == _MOUNTED_AT for mount in rows(container, "volumeMounts"))
    ]
    if not wanting:
        return
    mounted = [text(volume, "name") for volume in rows(spec, "volumes")]
    # A second pass (reinvocation after a webhook) finds the volume of the first.
    volume = next((name for name in mounted if name.startswith(_VOLUME)), "")
    sources: list[Json] = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {
            "downwardAPI": {
                "items": [
                    {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                ]
            }
        },
    ]
    if not volume:
        volume = _VOLUME + "".join(random.choices(string.ascii_lowercase + string.digits, k=5))
        projected: Object = {"name": volume, "projected": {"sources": sources, "defaultMode": 420}}
        spec["volumes"] = [*rows(spec, "volumes"), projected]
    for container in wanting:
        mounts: list[Json] = [*rows(container, "volumeMounts")]
        container["volumeMounts"] = [*mounts, {"name": volume, "readOnly": True, "mountPath": _MOUNTED_AT}]


def _quality(tree: Object) -> str:
    """Work out the quality of service from cpu and memory (pkg/apis/core/v1/helper/qos)."""
    requests_seen = limits_seen = False
    guaranteed = True
    for container in rows(tree, "spec", "containers") + rows(tree, "spec", "initContainers"):
        limits, requests = table(container, "resources", "limits"), table(container, "resources", "requests")
        for name in ("cpu", "memory"):
            asked, limit = _positive(requests.get(name)), _positive(limits.get(name))
            requests_seen = requests_seen or asked
            limits_seen = limits_seen or limit
            if not limit or requests.get(name, limits.get(name)) != limits.get(name):
                guaranteed = False
    if not requests_seen and not limits_seen:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def _positive(value: Json) -> bool:
    return isinstance(value, str) and parse(value) > 0


def _resized(before: list[Object], asked: list[Object]) -> list[Json]:
    wanted = {text(container, "name"): container for container in asked}
    result: list[Json] = []
    for container in before:
        change = wanted.get(text(container, "name"), container)
        resized: Object = {**container}
        for name in ("resources", "resizePolicy"):
            keep(resized, change, name)
        result.append(resized)
    return result


def _fixed(container: Object) -> list[tuple[str, str, str]]:
    return sorted(
        (kind, name, str(value))
        for kind in ("limits", "requests")
        for name, value in table(container, "resources", kind).items()
        if name not in ("cpu", "memory")
    )
