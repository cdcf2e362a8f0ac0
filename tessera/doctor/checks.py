"""The table of checks, in the order in which they are told. A new check is a function, one line here
with all that it reads, and an entry in docs/doctor.md.
"""

from __future__ import annotations

from typing import Final

from tessera.doctor import (
    certificates,
    injection,
    nodes,
    parts,
    pods,
    policies,
    recreation,
    refusing,
    scheduling,
    settings,
    webhooks,
)
from tessera.doctor.check import Check
from tessera.doctor.evidence import LISTS, Read


def _reads(*what: Read) -> frozenset[Read]:
    return frozenset(what)


CHECKS: Final = (
    Check("objects-readable", "objects are of the form they should have", settings.well_formed, _reads(*LISTS)),
    Check("api-version", "the API server is new enough", scheduling.api_version, _reads("version")),
    Check(
        "webhook-registered",
        "admission is registered as it should be",
        webhooks.registered,
        _reads("config", "mutating", "validating"),
    ),
    Check("webhook-answers", "the API server reaches the webhook", webhooks.answers, _reads("config", "probe")),
    Check("webhook-endpoints", "the webhook has ready replicas", webhooks.endpoints, _reads("endpoints")),
    Check(
        "certificate-life",
        "the webhook's certificates live on",
        certificates.lifetimes,
        _reads("config", "mutating", "validating", "certificates"),
    ),
    Check(
        "certificate-trust",
        "the API server trusts what the webhook serves",
        certificates.trusted,
        _reads("config", "mutating", "validating", "certificates"),
    ),
    Check("certificate-in-force", "what is served right now lives on", parts.certificate_in_force, _reads("said")),
    Check(
        "config-readable", "the config is read without a mistake", settings.readable, _reads("config", "config_maps")
    ),
    Check("config-in-force", "every part runs by the newest config", parts.config_in_force, _reads("said")),
    Check("config-units", "one memory unit everywhere", settings.units, _reads("config", "nodes")),
    Check(
        "policies-in-force",
        "policies are there, bound and current",
        policies.in_force,
        _reads("config", "policies", "bindings"),
    ),
    Check(
        "policies-bypassed",
        "no GPU pods in exempt namespaces",
        policies.bypassed,
        _reads("config", "namespaces", "pods", "policies", "bindings", "mutating"),
    ),
    Check("guard-recreation", "the guard lets every pod be made again", recreation.again, _reads("config", "pods")),
    Check(
        "injection-open",
        "no way to GPUs that admission can't see",
        injection.open_ways,
        _reads("config", "nodes", "pods"),
    ),
    Check("injection-runtime", "runtimes inject devices as config says", injection.runtimes, _reads("config", "nodes")),
    Check("runtime-class", "the RuntimeClass exists", injection.runtime_class, _reads("config", "runtime_classes")),
    Check(
        "scheduler-config",
        "kube-scheduler asks the extender",
        scheduling.configured,
        _reads("config", "config_maps", "nodes"),
    ),
    Check("scheduler-version", "kube-scheduler's version fits", scheduling.versions, _reads("version", "pods")),
    Check(
        "scheduler-foreign", "GPU pods go to our scheduler", scheduling.foreign, _reads("config", "config_maps", "pods")
    ),
    Check("part-ready", "webhook, extender and scheduler are ready", nodes.parts, _reads("pods", "said")),
    Check("node-closed", "GPU nodes are open", nodes.closed, _reads("config", "nodes")),
    Check("node-refusing", "kubelets take the pods that are bound there", refusing.refusing, _reads("refusals")),
    Check("node-agent", "every GPU node has its agent", nodes.agents, _reads("config", "nodes", "pods", "said")),
    Check("node-rivals", "nobody else gives the same GPUs away", nodes.rivals, _reads("config", "nodes", "pods")),
    Check("gpu-health", "GPUs are healthy", nodes.gpus, _reads("config", "nodes")),
    Check("gpu-foreign-use", "only slices use GPU memory", nodes.foreign_use, _reads("config", "nodes")),
    Check("pod-waiting", "no pod waits for a slice", pods.waiting, _reads("config", "nodes", "pods")),
    Check("pod-untranslated", "admission has seen every pod", pods.untranslated, _reads("config", "pods")),
    Check("pod-other-unit", "no pod asks in another unit", settings.tickets_elsewhere, _reads("config", "pods")),
    Check("pod-drift", "pods have the GPUs of their plans", pods.drift, _reads("config", "nodes", "pods")),
    Check("pod-lingering", "no pod outlives its object", nodes.lingering, _reads("config", "nodes")),
    Check("quota-foreign", "quotas bound what is counted", pods.quotas, _reads("config", "quotas", "pods")),
)
