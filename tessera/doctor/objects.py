"""The parts of API objects that are looked at beside what placement reads of pods and nodes.

Subsets again: unknown fields are skipped. Of a Secret only the public halves have a field, so a key is never kept.
"""

from __future__ import annotations

import msgspec

from tessera.model.node import Node, NodeStatus
from tessera.model.pod import Manifest, ManifestContainer, ManifestSpec, ObjectMeta, PodStatus
from tessera.model.quantity import Raw


class _Subset(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    pass


class Port(_Subset, frozen=True, kw_only=True):
    name: str = ""
    container_port: int = 0


class LookedContainer(ManifestContainer, frozen=True, kw_only=True):
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    ports: tuple[Port, ...] | None = None
    env_from: tuple[dict[str, object], ...] | None = None


class LookedSpec(ManifestSpec, frozen=True, kw_only=True):
    containers: tuple[LookedContainer, ...] | None = None
    init_containers: tuple[LookedContainer, ...] | None = None


class PodCondition(_Subset, frozen=True, kw_only=True):
    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class LookedStatus(PodStatus, frozen=True, kw_only=True):
    conditions: tuple[PodCondition, ...] | None = None
    message: str = ""


class LookedPod(Manifest, frozen=True, kw_only=True):
    """A pod with what doctor and explain look at: images, environment, what the scheduler said."""

    spec: LookedSpec = LookedSpec()
    status: LookedStatus = LookedStatus()

    def condition(self, kind: str) -> PodCondition | None:
        """One of its conditions."""
        return next((each for each in self.status.conditions or () if each.type == kind), None)


class NodeInfo(_Subset, frozen=True, kw_only=True):
    container_runtime_version: str = ""
    kubelet_version: str = ""


class LookedNodeStatus(NodeStatus, frozen=True, kw_only=True):
    node_info: NodeInfo = NodeInfo()


class LookedNode(Node, frozen=True, kw_only=True):
    """A node with what it says of its runtime."""

    status: LookedNodeStatus = LookedNodeStatus()


class Version(_Subset, frozen=True, kw_only=True):
    """The API server's ``/version``."""

    major: str = ""
    minor: str = ""
    git_version: str = ""


class Requirement(_Subset, frozen=True, kw_only=True):
    key: str = ""
    operator: str = ""
    values: tuple[str, ...] | None = None


class Selector(_Subset, frozen=True, kw_only=True):
    """A label selector; an empty one selects everything."""

    match_labels: dict[str, str] | None = None
    match_expressions: tuple[Requirement, ...] | None = None

    def matches(self, labels: dict[str, str]) -> bool:
        """Whether labels are selected (apimachinery, LabelSelectorAsSelector); an unknown operator selects nothing."""
        return all(labels.get(key) == value for key, value in (self.match_labels or {}).items()) and all(
            _holds(each, labels) for each in self.match_expressions or ()
        )


def _holds(each: Requirement, labels: dict[str, str]) -> bool:
    there, values = each.key in labels, each.values or ()
    match each.operator:
        case "In":
            return there and labels[each.key] in values
        case "NotIn":
            return not there or labels[each.key] not in values
        case "Exists":
            return there
        case "DoesNotExist":
            return not there
        case _:
            return False


class Expression(_Subset, frozen=True, kw_only=True):
    name: str = ""
    expression: str = ""


class ServiceReference(_Subset, frozen=True, kw_only=True):
    namespace: str = ""
    name: str = ""
    path: str | None = None


class ClientConfig(_Subset, frozen=True, kw_only=True):
    url: str | None = None
    service: ServiceReference | None = None
    ca_bundle: str | None = None

    @property
    def path(self) -> str:
        """The path that is called."""
        if self.service is not None:
            return self.service.path or ""
        rest = (self.url or "").partition("://")[2]
        return "/" + rest.partition("/")[2]


class Webhook(_Subset, frozen=True, kw_only=True):
    name: str = ""
    client_config: ClientConfig = ClientConfig()
    failure_policy: str = "Fail"
    side_effects: str = ""
    timeout_seconds: int = 10
    match_conditions: tuple[Expression, ...] | None = None
    namespace_selector: Selector | None = None


class WebhookConfiguration(_Subset, frozen=True, kw_only=True):
    """A MutatingWebhookConfiguration or a ValidatingWebhookConfiguration."""

    metadata: ObjectMeta = ObjectMeta()
    webhooks: tuple[Webhook, ...] | None = None


class ExpressionWarning(_Subset, frozen=True, kw_only=True):
    field_ref: str = ""
    warning: str = ""


class TypeChecking(_Subset, frozen=True, kw_only=True):
    expression_warnings: tuple[ExpressionWarning, ...] | None = None


class PolicyStatus(_Subset, frozen=True, kw_only=True):
    type_checking: TypeChecking | None = None


class Policy(_Subset, frozen=True, kw_only=True):
    """A ValidatingAdmissionPolicy or its binding; the spec stays as it is, to be compared."""

    metadata: ObjectMeta = ObjectMeta()
    spec: dict[str, object] = {}
    status: PolicyStatus = PolicyStatus()


class ConfigMap(_Subset, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    data: dict[str, str] | None = None


class PublicHalf(msgspec.Struct, frozen=True, kw_only=True):
    """What of a TLS Secret is no secret, in base64."""

    certificate: str = msgspec.field(name="tls.crt", default="")


class Secret(_Subset, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    data: PublicHalf = PublicHalf()


class EndpointConditions(_Subset, frozen=True, kw_only=True):
    ready: bool | None = None


class Endpoint(_Subset, frozen=True, kw_only=True):
    conditions: EndpointConditions = EndpointConditions()


class EndpointSlice(_Subset, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    endpoints: tuple[Endpoint, ...] | None = None


class Namespace(_Subset, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()


class RuntimeClass(_Subset, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    handler: str = ""


class QuotaSpec(_Subset, frozen=True, kw_only=True):
    hard: dict[str, Raw] | None = None


class ResourceQuota(_Subset, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: QuotaSpec = QuotaSpec()


class InvolvedObject(_Subset, frozen=True, kw_only=True):
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class Event(_Subset, frozen=True, kw_only=True):
    """A core/v1 Event."""

    metadata: ObjectMeta = ObjectMeta()
    involved_object: InvolvedObject = InvolvedObject()
    reason: str = ""
    message: str = ""
    type: str = ""
    count: int | None = None
    first_timestamp: str | None = None
    last_timestamp: str | None = None
    event_time: str | None = None
