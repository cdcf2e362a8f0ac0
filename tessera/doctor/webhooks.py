"""Is admission there: registered as it should be, reachable from the API server, and answering as this config says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from tessera.doctor.check import Seen
from tessera.doctor.evidence import Evidence, NotLookedError
from tessera.doctor.finding import Finding, Severity, counted
from tessera.doctor.objects import LookedPod, Webhook, WebhookConfiguration
from tessera.model.errors import QuantityError, RequestError
from tessera.model.tickets import ticket_counts, units_of

PROBE_MEMORY: Final = 1 << 20
"""Bytes that the dry run asks for: one unit, whatever the unit is."""
CNI_PATH: Final = "/mutate-cni"
_LONGEST_TIMEOUT: Final = 10


def ours(configurations: Iterable[WebhookConfiguration], domain: str) -> Iterator[tuple[WebhookConfiguration, Webhook]]:
    """The webhooks that are ours, by their names under our domain, with the configuration that each stands in."""
    for configuration in configurations:
        for webhook in configuration.webhooks or ():
            if webhook.name.endswith(f".{domain}"):
                yield configuration, webhook


def services(evidence: Evidence) -> tuple[tuple[str, str], ...]:
    """Namespace and name of the Services that our webhooks are called by."""
    found = [
        (service.namespace, service.name)
        for look in (evidence.mutating, evidence.validating)
        for _, webhook in ours(look.value or (), evidence.names.domain)
        if (service := webhook.client_config.service) is not None
    ]
    return tuple(dict.fromkeys(found))


def registered(evidence: Evidence) -> Seen:
    """Both configurations are there, fail closed for GPU pods only, and open for the network's repair."""
    domain = evidence.names.domain
    mutating = list(ours(evidence.mutating.need(), domain))
    findings = []
    notes = []
    if not any(webhook.client_config.path != CNI_PATH for _, webhook in mutating):
        findings.append(
            Finding(
                severity=Severity.ERROR,
                object="mutatingwebhookconfigurations",
                seen=f"no mutating webhook has a name that ends with .{domain}",
                why="Nothing translates what pods ask for, so they wait for resources that no node has.",
                mend="Apply the manifests, or give the installation's config (its domain) by --config.",
            )
        )
    for configuration, webhook in mutating:
        findings += _entry(configuration.metadata.name, webhook)
    try:
        validating = list(ours(evidence.validating.need(), domain))
    except NotLookedError as error:
        notes.append(f"validating webhooks: {error}")
        validating = []
    else:
        if not validating:
            notes.append(
                f"no validating webhook has a name that ends with .{domain}: other webhooks have the last word"
            )
    return Seen(findings, f"{counted(len(mutating), 'mutating entry', 'mutating entries')}, {len(validating)} validating",
                notes)  # fmt: skip


def _entry(configuration: str, webhook: Webhook) -> Iterator[Finding]:
    where = f"mutatingwebhookconfiguration/{configuration}/{webhook.name}"
    if webhook.client_config.path == CNI_PATH:
        if webhook.failure_policy != "Ignore":
            yield Finding(
                severity=Severity.WARNING,
                object=where,
                seen=f"failurePolicy of the CNI repair is {webhook.failure_policy}",
                why="While the webhook is away no CNI pod can be made, and without network the webhook can't come back.",
                mend="Set failurePolicy: Ignore on this entry.",
            )
        return
    if webhook.failure_policy != "Fail":
        yield Finding(
            severity=Severity.WARNING,
            object=where,
            seen=f"failurePolicy is {webhook.failure_policy}",
            why="While the webhook is away, pods are let in untranslated and wait for ever, or run unmanaged.",
            mend="Set failurePolicy: Fail; matchConditions keep it to pods that ask for GPUs.",
        )
    elif not webhook.match_conditions:
        yield Finding(
            severity=Severity.WARNING,
            object=where,
            seen="failurePolicy is Fail and there are no matchConditions",
            why="While the webhook is away, no pod at all can be made where this entry applies.",
            mend="Apply the generated registration, whose matchConditions let other pods pass.",
        )
    if webhook.side_effects not in ("None", "NoneOnDryRun"):
        yield Finding(
            severity=Severity.WARNING,
            object=where,
            seen=f"sideEffects is {webhook.side_effects or 'not set'}",
            why="The API server refuses every dry run of a pod, which kubectl diff and pipelines do.",
            mend="Set sideEffects: None.",
        )
    if webhook.timeout_seconds > _LONGEST_TIMEOUT:
        yield Finding(
            severity=Severity.WARNING,
            object=where,
            seen=f"timeoutSeconds is {webhook.timeout_seconds}",
            why="A webhook that hangs holds every writer of GPU pods that long, controllers included.",
            mend="Set timeoutSeconds to 5.",
        )


def answers(evidence: Evidence) -> Seen:
    """A dry run of a GPU pod comes back translated: the API server reaches the webhook, and both speak of one config."""
    probe = evidence.probe.need()
    names = evidence.names
    if probe.kind == "denied":
        return Seen((), "a dry run of a GPU pod", [f"the webhook was reached and said no: {probe.said}"])
    if probe.kind == "refused":
        raise NotLookedError(f"the API server refused the dry run before it can be told: {probe.said}")
    if probe.kind == "uncalled":
        finding = Finding(
            severity=Severity.ERROR,
            object="webhook",
            seen=f"the API server can't call it: {probe.said}",
            why="Pods that ask for GPUs can't be made.",
            mend="Look at the webhook's pods and logs, the certificate checks here, and NetworkPolicies on its port.",
        )
        return Seen([finding], "a dry run of a GPU pod")
    counts = _tickets(probe.pod or LookedPod(), evidence)
    wanted = units_of(PROBE_MEMORY, names.memory_unit)
    if counts.get(names.memory_units) == wanted:
        return Seen((), f"a dry run of a GPU pod came back with {wanted} x {names.memory_units}")
    if counts:
        seen = f"a dry run of {names.gpu_memory}: 1Mi came back with {_told(counts)} instead of {names.memory_units}"
        why = "The webhook runs by another config than the one here, so pods ask for tickets that no node has."
        mend = "Restart the webhook after a change of memoryUnit or domain, or say the right config by --config."
    else:
        seen = f"a dry run of a pod that asks for {names.gpu_memory} came back as it was"
        why = "The webhook is not called for such pods, so they wait for a resource that no node has."
        mend = "Apply the generated registration; look at its rules, selectors and matchConditions."
    return Seen([Finding(severity=Severity.ERROR, object="webhook", seen=seen, why=why, mend=mend)],
                "a dry run of a GPU pod")  # fmt: skip


def _tickets(pod: LookedPod, evidence: Evidence) -> dict[str, int]:
    counts: dict[str, int] = {}
    for container in pod.spec.containers or ():
        try:
            counts |= ticket_counts(container, evidence.names)
        except (RequestError, QuantityError):
            continue
        limits = (container.resources.limits if container.resources else None) or {}
        prefix = f"{evidence.names.domain}/gpu-memory."
        counts |= {name: 1 for name in limits if name.startswith(prefix) and name not in counts}
    return counts


def _told(counts: dict[str, int]) -> str:
    return ", ".join(sorted(counts))


def endpoints(evidence: Evidence) -> Seen:
    """The webhook's Service has ready endpoints, and more than one."""
    by_service = evidence.endpoints.need()
    findings = []
    if not by_service:
        return Seen((), "no Service", ["our webhooks are called by URL, or there are none"])
    for service, slices in sorted(by_service.items()):
        ready = sum(endpoint.conditions.ready is not False for piece in slices for endpoint in piece.endpoints or ())
        if ready == 0:
            findings.append(
                Finding(
                    severity=Severity.ERROR,
                    object=f"service/{service}",
                    seen="no endpoint is ready",
                    why="Pods that ask for GPUs can't be made.",
                    mend=f"kubectl -n {service.partition('/')[0]} get pods, and read why the webhook's are not ready.",
                )
            )
        elif ready == 1:
            findings.append(
                Finding(
                    severity=Severity.WARNING,
                    object=f"service/{service}",
                    seen="one endpoint is ready",
                    why="While that pod moves to another node, pods that ask for GPUs can't be made.",
                    mend="Run two replicas on different nodes.",
                )
            )
    return Seen(findings, f"{counted(len(by_service), 'Service')}")
