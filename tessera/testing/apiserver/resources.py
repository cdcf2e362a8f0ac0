"""Which resources the fake serves, and which request a URL is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from tessera.testing.apiserver import status


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource.

    Attributes:
        group: API group, "" for core.
        version: API version.
        plural: as in URLs.
        kind: as in objects.
        namespaced: whether its objects live in a namespace.
        subresources: what can stand behind a name.
        fields: field selectors understood beside metadata.name and metadata.namespace.
        stored_as: the plural of the core resource whose objects these are (Events have two faces).
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    subresources: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    stored_as: str = ""

    @property
    def api_version(self) -> str:
        """As it stands in objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def shelf(self) -> str:
        """Under which name the store keeps the objects."""
        return self.stored_as or (f"{self.plural}.{self.group}" if self.group else self.plural)


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is about.

    Attributes:
        resource: of what kind.
        namespace: "" for cluster-scoped, or all namespaces.
        name: "" for the collection.
        subresource: "" for the object itself.
    """

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""


_EVENT_FIELDS: Final = (
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "reason",
    "type",
    "source",
    "reportingComponent",
)
_POD_FIELDS: Final = (
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
)
_ADMISSION: Final = "admissionregistration.k8s.io"
_RBAC: Final = "rbac.authorization.k8s.io"

RESOURCES: Final = (
    Resource("", "v1", "namespaces", "Namespace", False, ("status",), ("status.phase",)),
    Resource("", "v1", "nodes", "Node", False, ("status",), ("spec.unschedulable",)),
    Resource(
        "", "v1", "pods", "Pod", True, ("status", "binding", "eviction", "resize", "ephemeralcontainers"), _POD_FIELDS
    ),
    Resource("", "v1", "bindings", "Binding"),
    Resource("", "v1", "secrets", "Secret", fields=("type",)),
    Resource("", "v1", "configmaps", "ConfigMap"),
    Resource("", "v1", "services", "Service", True, ("status",), ("spec.clusterIP", "spec.type")),
    Resource("", "v1", "serviceaccounts", "ServiceAccount"),
    Resource("", "v1", "events", "Event", fields=_EVENT_FIELDS),
    Resource("", "v1", "resourcequotas", "ResourceQuota", True, ("status",)),
    Resource("events.k8s.io", "v1", "events", "Event", fields=_EVENT_FIELDS, stored_as="events"),
    Resource("apps", "v1", "deployments", "Deployment", True, ("status",)),
    Resource("apps", "v1", "daemonsets", "DaemonSet", True, ("status",)),
    Resource("apps", "v1", "statefulsets", "StatefulSet", True, ("status",)),
    Resource("apps", "v1", "replicasets", "ReplicaSet", True, ("status",)),
    Resource("batch", "v1", "jobs", "Job", True, ("status",)),
    Resource("coordination.k8s.io", "v1", "leases", "Lease"),
    Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", True, ("status",)),
    Resource("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", False),
    Resource("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", False),
    Resource(_ADMISSION, "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", False),
    Resource(_ADMISSION, "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", False),
    Resource(_ADMISSION, "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", False, ("status",)),
    Resource(_ADMISSION, "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", False),
    Resource(_RBAC, "v1", "roles", "Role"),
    Resource(_RBAC, "v1", "rolebindings", "RoleBinding"),
    Resource(_RBAC, "v1", "clusterroles", "ClusterRole", False),
    Resource(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", False),
)


class Catalog:
    """Finds a resource by its place in a URL, or by its plural."""

    def __init__(self, resources: tuple[Resource, ...] = RESOURCES) -> None:
        """Serve these resources."""
        self.resources = resources
        self._by_place = {(r.group, r.version, r.plural): r for r in resources}
        # The first of that plural: `events` is the core one.
        self._by_plural = {r.plural: r for r in reversed(resources)}

    def named(self, plural: str) -> Resource:
        """Find a resource by its plural alone, for tests.

        Raises:
            KeyError: none is served.
        """
        return self._by_plural[plural]

    def target(self, path: str) -> Target:
        """Read a URL path.

        Raises:
            StatusError: 404, no resource lives there.
        """
        parts = [unquote(part) for part in path.split("/")[1:]]
        if parts[0] == "api":
            group, parts = "", parts[1:]
        elif parts[0] == "apis" and len(parts) > 1:
            group, parts = parts[1], parts[2:]
        else:
            raise status.no_such_path()
        if len(parts) < 2:
            raise status.no_such_path()
        version, parts = parts[0], parts[1:]
        namespace = ""
        if parts[0] == "namespaces" and len(parts) > 2 and (group, version, parts[2]) in self._by_place:
            namespace, parts = parts[1], parts[2:]
        resource = self._by_place.get((group, version, parts[0]))
        if resource is None or len(parts) > 3 or not all(parts):
            raise status.no_such_path()
        name = parts[1] if len(parts) > 1 else ""
        subresource = parts[2] if len(parts) > 2 else ""
        if (subresource and subresource not in resource.subresources) or resource.namespaced < bool(namespace):
            raise status.no_such_path()
        if name and resource.namespaced and not namespace:
            raise status.no_such_path()
        return Target(resource, namespace, name, subresource)
