"""The table of checks, in the order in which they are told. A new check is a function, one line here, and an entry in docs/doctor.md."""

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
    scheduling,
    settings,
    webhooks,
)
from tessera.doctor.check import Check

CHECKS: Final = (
    Check("objects-readable", "objects are of the form they should have", settings.well_formed),
    Check("api-version", "the API server is new enough", scheduling.api_version),
    Check("webhook-registered", "admission is registered as it should be", webhooks.registered),
    Check("webhook-answers", "the API server reaches the webhook", webhooks.answers),
    Check("webhook-endpoints", "the webhook has ready replicas", webhooks.endpoints),
    Check("certificate-life", "the webhook's certificates live on", certificates.lifetimes),
    Check("certificate-trust", "the API server trusts what the webhook serves", certificates.trusted),
    Check("certificate-in-force", "what is served right now lives on", parts.certificate_in_force),
    Check("config-readable", "the config is read without a mistake", settings.readable),
    Check("config-in-force", "every part runs by the newest config", parts.config_in_force),
    Check("config-units", "one memory unit everywhere", settings.units),
    Check("policies-in-force", "policies are there, bound and current", policies.in_force),
    Check("policies-bypassed", "no GPU pods in exempt namespaces", policies.bypassed),
    Check("guard-recreation", "the guard lets every pod be made again", recreation.again),
    Check("injection-open", "no way to GPUs that admission can't see", injection.open_ways),
    Check("injection-runtime", "runtimes inject devices as config says", injection.runtimes),
    Check("runtime-class", "the RuntimeClass exists", injection.runtime_class),
    Check("scheduler-config", "kube-scheduler asks the extender", scheduling.configured),
    Check("scheduler-version", "kube-scheduler's version fits", scheduling.versions),
    Check("scheduler-foreign", "GPU pods go to our scheduler", scheduling.foreign),
    Check("part-ready", "webhook, extender and scheduler are ready", nodes.parts),
    Check("node-closed", "GPU nodes are open", nodes.closed),
    Check("node-agent", "every GPU node has its agent", nodes.agents),
    Check("node-rivals", "nobody else gives the same GPUs away", nodes.rivals),
    Check("gpu-health", "GPUs are healthy", nodes.gpus),
    Check("gpu-foreign-use", "only slices use GPU memory", nodes.foreign_use),
    Check("pod-waiting", "no pod waits for a slice", pods.waiting),
    Check("pod-untranslated", "admission has seen every pod", pods.untranslated),
    Check("pod-other-unit", "no pod asks in another unit", settings.tickets_elsewhere),
    Check("pod-drift", "pods have the GPUs of their plans", pods.drift),
    Check("pod-lingering", "no pod outlives its object", nodes.lingering),
    Check("quota-foreign", "quotas bound what is counted", pods.quotas),
)
