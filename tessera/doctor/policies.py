"""The guard: policies are there, in force, as this version generates them, and not bypassed where GPU pods run.

What the API server adds to an object (defaults) is no difference: everything that was generated has to be there as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tessera.doctor.capacity import asked_of
from tessera.doctor.check import Seen
from tessera.doctor.evidence import Evidence, NotLookedError
from tessera.doctor.finding import Finding, Severity, counted, several
from tessera.doctor.objects import LookedPod, Namespace, Policy, Selector
from tessera.doctor.webhooks import CNI_PATH, ours

_WHY: Final = "Pods can take GPUs that they did not ask for, or forge what Tessera has written on them."
_APPLY: Final = "tessera generate policies --config YOUR-CONFIG | kubectl apply -f -"
_POLICY, _BINDING = "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"


def in_force(evidence: Evidence) -> Seen:
    """Every policy is there, fails closed, is bound to deny, and is the one that this version generates."""
    policies = {policy.metadata.name: policy for policy in evidence.policies.need()}
    bindings = {binding.metadata.name: binding for binding in evidence.bindings.need()}
    notes = []
    expected: tuple[dict[str, object], ...] = ()
    try:
        expected = evidence.expected_policies.need()
    except NotLookedError as error:
        notes.append(f"not compared with what this version generates: {error}")
    findings = _compare(expected, {_POLICY: policies, _BINDING: bindings})
    wanted = {_name(each) for each in expected if each.get("kind") == _POLICY}
    mine = {name: policy for name, policy in policies.items() if name in wanted or _is_ours(name, evidence)}
    if not mine and not findings:
        findings.append(
            Finding(severity=Severity.ERROR, object="validatingadmissionpolicies", seen="there is none of ours",
                    why=_WHY, mend=_APPLY)
        )  # fmt: skip
    warning = {_bound(each) for each in expected if each.get("kind") == _BINDING and not _denies(_spec(each))}
    for name, policy in sorted(mine.items()):
        bound = [b.spec for b in bindings.values() if b.spec.get("policyName") == name]
        findings += _one(name, policy, bound, warning=name in warning)
    if only := sorted(warning & mine.keys()):
        findings.append(
            Finding(
                severity=Severity.WARNING,
                object=f"validatingadmissionpolicy/{only[0]}",
                seen=f"{several(only)}: warns only, as guard.actions: warn says",
                why="Pods can take GPUs that they did not ask for; whoever makes one is told, and nobody is kept from it.",
                mend=f"When guard-recreation finds nothing more, take guard.actions out of the config, then {_APPLY}",
            )
        )
    return Seen(findings, f"{counted(len(mine), 'policy', 'policies')}", notes)


def _is_ours(name: str, evidence: Evidence) -> bool:
    return name.endswith(f".{evidence.names.domain}") or name.startswith("tessera-")


def _spec(tree: Mapping[str, object]) -> dict[str, object]:
    spec = tree.get("spec")
    return spec if isinstance(spec, dict) else {}


def _bound(tree: Mapping[str, object]) -> str:
    """Which policy a binding is of."""
    return str(_spec(tree).get("policyName", ""))


def _name(tree: Mapping[str, object]) -> str:
    metadata = tree.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""


def _compare(expected: Sequence[dict[str, object]], there: Mapping[str, Mapping[str, Policy]]) -> list[Finding]:
    findings = []
    missing = []
    for tree in expected:
        kind, name = str(tree.get("kind", "")), _name(tree)
        if kind not in there:
            continue
        where = f"{kind.lower()}/{name}"
        found = there[kind].get(name)
        if found is None:
            missing.append(where)
        elif (path := _difference(tree.get("spec", {}), found.spec)) is not None:
            seen = f"is not what this version generates by this config: spec{path} differs"
            findings.append(Finding(severity=Severity.ERROR, object=where, seen=seen, why=_WHY, mend=_APPLY))
    if missing:
        seen = f"{len(missing)} of {counted(len(expected), 'object')} missing: {several(missing, most=3)}"
        findings.append(Finding(severity=Severity.ERROR, object=missing[0], seen=seen, why=_WHY, mend=_APPLY))
    return findings


def _difference(wanted: object, found: object) -> str | None:
    """The path of the first thing that is not as wanted; what is there besides is the API server's."""
    if isinstance(wanted, dict):
        if not isinstance(found, dict):
            return "" if wanted else None
        for key, value in wanted.items():
            if (path := _difference(value, found.get(key))) is not None:
                return f".{key}{path}"
        return None
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            return "" if wanted or found else None
        for at, (one, other) in enumerate(zip(wanted, found, strict=True)):
            if (path := _difference(one, other)) is not None:
                return f"[{at}]{path}"
        return None
    return None if wanted == found else ""


def _one(name: str, policy: Policy, bindings: list[dict[str, object]], *, warning: bool) -> list[Finding]:
    where = f"validatingadmissionpolicy/{name}"
    findings = []
    if policy.spec.get("failurePolicy", "Fail") != "Fail":
        findings.append(
            Finding(
                severity=Severity.WARNING,
                object=where,
                seen=f"failurePolicy is {policy.spec['failurePolicy']}",
                why="A pod for which an expression fails is let through.",
                mend="Set failurePolicy: Fail.",
            )
        )
    if not (bindings if warning else [each for each in bindings if _denies(each)]):
        seen = "no binding" if not bindings else "its binding does not deny (validationActions)"
        findings.append(Finding(severity=Severity.ERROR, object=where, seen=seen, why=_WHY, mend=_APPLY))
    checking = policy.status.type_checking
    findings += [
        Finding(
            severity=Severity.WARNING,
            object=where,
            seen=f"the API server warns of {warning.field_ref}: {warning.warning}",
            why="An expression that can't be evaluated denies every pod that reaches it, or none.",
            mend=_APPLY,
        )
        for warning in (checking.expression_warnings if checking else None) or ()
    ]
    return findings


def _denies(binding: Mapping[str, object]) -> bool:
    actions = binding.get("validationActions")
    return isinstance(actions, list) and "Deny" in actions


def bypassed(evidence: Evidence) -> Seen:
    """No pod with GPUs runs in a namespace that the policies or the webhook leave out."""
    namespaces = evidence.namespaces.need()
    pods = evidence.pods.need()
    exempt = {each.metadata.name: _exempting(each, evidence) for each in namespaces}
    by_namespace: dict[str, list[LookedPod]] = {}
    for pod in pods:
        if not pod.ended and exempt.get(pod.metadata.namespace) and asked_of(pod, evidence.settings.config):
            by_namespace.setdefault(pod.metadata.namespace, []).append(pod)
    findings = [
        Finding(
            severity=Severity.WARNING,
            object=f"namespace/{name}",
            seen=f"{counted(len(found), 'pod')} with GPUs ({several(p.metadata.name for p in found)}) in a namespace "
            f"that {several(exempt[name])} leaves out",
            why="There a pod may take any GPU by its environment or by a host path, and nobody refuses it.",
            mend="Move these pods to another namespace, or take the exemption away.",
        )
        for name, found in sorted(by_namespace.items())
    ]
    left_out = sorted(name for name, by in exempt.items() if by)
    notes = [f"left out: {several(left_out, most=10)}"] if left_out else []
    return Seen(findings, counted(len(namespaces), "namespace"), notes)


def _exempting(namespace: Namespace, evidence: Evidence) -> list[str]:
    """Which of our policies, bindings and webhooks leave a namespace out by their selectors or by its name."""
    labels = {"kubernetes.io/metadata.name": namespace.metadata.name} | (namespace.metadata.labels or {})
    found = [
        f"{kind} {each.metadata.name}"
        for kind, key, look in (
            ("policy", "matchConstraints", evidence.policies),
            ("binding", "matchResources", evidence.bindings),
        )
        for each in look.value or ()
        if _is_ours(each.metadata.name, evidence) and not _selects(each.spec.get(key), labels)
    ]
    for _, webhook in ours(evidence.mutating.value or (), evidence.names.domain):
        selector = webhook.namespace_selector
        if webhook.client_config.path != CNI_PATH and selector is not None and not selector.matches(labels):
            found.append(f"webhook {webhook.name}")
    return found


def _selects(match: object, labels: dict[str, str]) -> bool:
    selector = match.get("namespaceSelector") if isinstance(match, dict) else None
    if not selector:
        return True
    try:
        return msgspec.convert(selector, Selector).matches(labels)
    except msgspec.ValidationError:
        return True
