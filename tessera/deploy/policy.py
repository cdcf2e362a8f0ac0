"""What all our policies have in common: their shape as Kubernetes objects, and which containers of a pod they look at.

A pod's containers can't change after its creation, but for ephemeral ones, which come by the subresource
pods/ephemeralcontainers. So at creation all containers are looked at, and at an update those that are new: a pod that was
there before a policy was can still be labelled, finalised and deleted by its controllers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from tessera.deploy.cel import text
from tessera.deploy.conditions import MIRROR
from tessera.model.pod import Manifest, ManifestContainer

Object = dict[str, object]

_API: Final = "admissionregistration.k8s.io/v1"
_PODS: Final = ("pods", "pods/ephemeralcontainers")
_EPHEMERAL: Final = "object.spec.ephemeralContainers"

FRESH: Final = (
    "fresh",
    (
        "(request.operation == 'CREATE' ? dyn(object.spec.containers)"
        " + dyn(has(object.spec.initContainers) ? object.spec.initContainers : []) : dyn([]))"
        f" + dyn(has({_EPHEMERAL}) ? {_EPHEMERAL}.filter(e, request.operation == 'CREATE'"
        " || !has(oldObject.spec.ephemeralContainers)"
        " || !oldObject.spec.ephemeralContainers.exists(o, o.name == e.name)) : [])"
    ),
)
"""A variable: the containers that a request brings, of all three kinds."""
NOT_MIRROR: Final = (
    "not-the-kubelets-mirror-of-a-static-pod",
    (
        f"!(has(object.metadata.annotations) && {text(MIRROR)} in object.metadata.annotations"
        " && has(request.userInfo.groups) && 'system:nodes' in request.userInfo.groups)"
    ),
)
"""A static pod runs whatever is said here; refusing its mirror would only hide it."""


class Denial(NamedTuple):
    """What a policy would say against the creation of a pod: the rules once more, without an API server.

    Attributes:
        policy: its name.
        said: how its message begins; what to do instead is left out.
    """

    policy: str
    said: str


def fresh(pod: Manifest) -> tuple[ManifestContainer, ...]:
    """The variable `FRESH` of a creation."""
    spec = pod.spec
    return (*(spec.containers or ()), *(spec.init_containers or ()), *(spec.ephemeral_containers or ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that has to hold.

    Attributes:
        holds: CEL, true where the request may pass.
        message: CEL, a text that says what is wrong and what to do instead.
        summary: a text for where the message can't be evaluated.
    """

    holds: str
    message: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One policy.

    Attributes:
        name: of the policy and of its binding.
        resources: of the core API group, with subresources.
        operations: on them.
        variables: (name, CEL), each of which may use those before it.
        checks: see there.
        conditions: (name, CEL), all of which have to hold for the checks to be made.
        exempt: namespaces that it doesn't look at.
    """

    name: str
    checks: tuple[Check, ...]
    resources: tuple[str, ...] = _PODS
    operations: tuple[str, ...] = ("CREATE", "UPDATE")
    variables: tuple[tuple[str, str], ...] = ()
    conditions: tuple[tuple[str, str], ...] = ()
    exempt: tuple[str, ...] = ()


def objects(policy: Policy, *, warns: bool = False) -> list[Object]:
    """A policy and its binding, as Kubernetes objects.

    Args:
        policy: which.
        warns: whether the binding lets pass what the policy is against, with a warning and a note in the audit log.
    """
    match: Object = {
        "matchPolicy": "Equivalent",
        "resourceRules": [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "resources": list(policy.resources),
                "operations": list(policy.operations),
                "scope": "*",
            }
        ],
    }
    if policy.exempt:
        expression = {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": list(policy.exempt)}
        match["namespaceSelector"] = {"matchExpressions": [expression]}
    spec: Object = {
        "failurePolicy": "Fail",
        "matchConstraints": match,
        "matchConditions": [{"name": name, "expression": expression} for name, expression in policy.conditions],
        "variables": [{"name": name, "expression": expression} for name, expression in policy.variables],
        "validations": [
            {
                "expression": check.holds,
                "messageExpression": check.message,
                "message": check.summary,
                "reason": "Forbidden",
            }
            for check in policy.checks
        ],
    }
    binding: Object = {"policyName": policy.name, "validationActions": ["Warn", "Audit"] if warns else ["Deny"]}
    return [
        _object("ValidatingAdmissionPolicy", policy.name, {key: value for key, value in spec.items() if value}),
        _object("ValidatingAdmissionPolicyBinding", policy.name, binding),
    ]


def _object(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": _API, "kind": kind, "metadata": {"name": name}, "spec": spec}
