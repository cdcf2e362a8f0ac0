"""Which resources we talk about and what their URLs are.

One value per resource, so that group, version, plural and scope are written once. Path parts are quoted and checked
here: a name that came from a pod must not be able to reach another path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource of the API.

    Attributes:
        group: API group, "" for core.
        version: such as ``v1``.
        plural: as it stands in URLs, such as ``pods``.
        kind: as it stands in objects, such as ``Pod``.
        namespaced: whether its objects live in a namespace.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As it stands in objects: ``v1``, ``coordination.k8s.io/v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, *, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Build the URL path of the collection, of one object, or of a part of it.

        Args:
            namespace: "" for cluster-scoped resources, or for a namespaced one in all namespaces.
            name: "" for the collection.
            subresource: such as ``status`` or ``binding``; needs a name.

        Raises:
            ValueError: a part can't stand in a path, a namespace for a cluster-scoped resource, or one object of a
                namespaced resource without its namespace.
        """
        if namespace and not self.namespaced:
            raise ValueError(f"{self.plural} are not namespaced, namespace {namespace!r} given")
        if name and self.namespaced and not namespace:
            raise ValueError(f"{self.plural} {name!r} given without a namespace")
        if subresource and not name:
            raise ValueError(f"subresource {subresource!r} of {self.plural} given without a name")
        parts = ["apis", self.group] if self.group else ["api"]
        parts.append(self.version)
        if namespace:
            parts += ["namespaces", _segment(namespace)]
        parts.append(self.plural)
        if name:
            parts.append(_segment(name))
        if subresource:
            parts.append(_segment(subresource))
        return "/" + "/".join(parts)

    def describe(self, *, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Name the object for people: ``pods/binding team/a``, ``nodes n1``, ``pods``."""
        what = f"{self.plural}/{subresource}" if subresource else self.plural
        where = "/".join(part for part in (namespace, name) if part)
        return f"{what} {where}" if where else what


def _segment(text: str) -> str:
    # The API server's own rule (apimachinery, api/validation/path): no dots alone, no slash, no percent sign.
    if text in (".", "..") or "/" in text or "%" in text or len(text) > 253:
        raise ValueError(f"{text[:80]!r} can't be a part of a URL path: it is a dot, too long, or has a slash or a %")
    return quote(text, safe="")


PODS: Final = Resource("", "v1", "pods", "Pod")
NODES: Final = Resource("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
SECRETS: Final = Resource("", "v1", "secrets", "Secret")
CONFIGMAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
SERVICES: Final = Resource("", "v1", "services", "Service")
SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount")
EVENTS: Final = Resource("", "v1", "events", "Event")
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment")
DAEMONSETS: Final = Resource("apps", "v1", "daemonsets", "DaemonSet")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")
RESOURCE_QUOTAS: Final = Resource("", "v1", "resourcequotas", "ResourceQuota")
RUNTIME_CLASSES: Final = Resource("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", namespaced=False)
ENDPOINT_SLICES: Final = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
DISRUPTION_BUDGETS: Final = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
MUTATING_WEBHOOKS: Final = Resource(
    "admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", False
)
VALIDATING_WEBHOOKS: Final = Resource(
    "admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", False
)
ADMISSION_POLICIES: Final = Resource(
    "admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", False
)
ADMISSION_POLICY_BINDINGS: Final = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "validatingadmissionpolicybindings",
    "ValidatingAdmissionPolicyBinding",
    False,
)
