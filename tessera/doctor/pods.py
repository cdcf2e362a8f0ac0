"""Pods: those that wait and why, those that nobody translated, those that got something else than their plan."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Final

from tessera.dialects import nvidia
from tessera.dialects.recognise import Dialects
from tessera.doctor.capacity import Capacity, asked_of
from tessera.doctor.check import Seen
from tessera.doctor.evidence import Evidence
from tessera.doctor.finding import Finding, Severity, counted, several
from tessera.doctor.objects import LookedPod
from tessera.doctor.times import age
from tessera.model import plan as plans
from tessera.model import request as requests
from tessera.model.config import Config
from tessera.model.errors import AnnotationError, TesseraError
from tessera.model.plan import Drift
from tessera.model.tickets import DIALECT as TICKETS
from tessera.model.tickets import describe
from tessera.placement.claims import planned_places

MOST_KINDS: Final = 100
"""Kinds of pods that are tried on every node: 5,000 nodes take 0.1 s for one."""
SETTLED: Final = 60.0
"""Seconds after which a pod that has no node, or no plan, is no longer just on its way."""


def waiting(evidence: Evidence) -> Seen:
    """No pod has been waiting for a slice for longer than a minute."""
    config = evidence.settings.config
    pods = evidence.pods.need()
    nodes = evidence.nodes.need()
    unbound = [pod for pod in pods if not pod.spec.node_name and not pod.ended and not pod.metadata.deletion_timestamp]
    late = [pod for pod in unbound if asked_of(pod, config) and (age(pod, evidence.now) or 0.0) >= SETTLED]
    if not late:
        return Seen((), counted(len(unbound), "unbound pod"))
    capacity = Capacity(nodes, pods, config)
    verdicts: dict[tuple[str, ...], str] = {}
    by_reason: dict[tuple[str, str], list[LookedPod]] = {}
    unjudged = 0
    for pod in late:
        asked = tuple(f"{describe(ask.request)}" for ask in asked_of(pod, config))
        key = (*asked, *sorted((pod.metadata.annotations or {}).get(name, "") for name in _wishes(evidence)))
        if key not in verdicts:
            if len(verdicts) >= MOST_KINDS:
                unjudged += 1
                continue
            verdicts[key] = capacity.judge(pod).text
        by_reason.setdefault((verdicts[key], "; ".join(asked)), []).append(pod)
    findings = [_waits(why, asked, found, evidence.now) for (why, asked), found in by_reason.items()]
    notes = [f"{counted(unjudged, 'pod')} of other kinds not judged: {MOST_KINDS} kinds are"] if unjudged else []
    return Seen(findings, counted(len(unbound), "unbound pod"), notes)


def _wishes(evidence: Evidence) -> tuple[str, ...]:
    names = evidence.names
    return (names.gpu_models, names.gpu_uuids, names.gpu_topology, names.guarantee)


def _waits(why: str, asked: str, pods: list[LookedPod], now: float) -> Finding:
    oldest = max(pods, key=lambda pod: age(pod, now) or 0.0)
    said = next((each.message for pod in pods if (each := pod.condition("PodScheduled")) and each.message), "")
    minutes = (age(oldest, now) or 0.0) / 60
    told = f"{counted(len(pods), 'pod')} ({several(pod.key for pod in pods)}) {'wait' if len(pods) > 1 else 'waits'} "
    told += f"for {asked}, up to {minutes:.0f} min: {why}"
    if why.startswith("room on"):
        told += f"; the scheduler says: {said}" if said else "; no scheduler has tried it"
        mend = "Look at its scheduler, node selectors, taints and CPU; tessera explain tells one pod's whole story."
    else:
        mend = f"Free slices, add GPUs, or ask for less; kubectl tessera explain {oldest.key} tells more."
    return Finding(
        severity=Severity.WARNING,
        object=f"pod/{oldest.key}",
        seen=told,
        why="It starts when a node has room.",
        mend=mend,
    )


def untranslated(evidence: Evidence) -> Seen:
    """No pod waits with a request that admission would have translated."""
    config = evidence.settings.config
    dialects = Dialects(config)
    pods = [
        pod
        for pod in evidence.pods.need()
        if not pod.spec.node_name and not pod.ended and (age(pod, evidence.now) or 0.0) >= SETTLED
    ]
    by_dialect: dict[str, list[str]] = {}
    for pod in pods:
        if asked_of(pod, config):
            continue
        try:
            found = dialects.recognise(pod)
        except TesseraError:
            continue
        if found is not None:
            by_dialect.setdefault(found.request.dialect, []).append(pod.key)
    findings = [
        Finding(
            severity=Severity.ERROR,
            object=f"pod/{found[0]}",
            seen=f"{counted(len(found), 'pod')} ({several(found)}) {'ask' if len(found) > 1 else 'asks'} for GPUs as {dialect} "
            "does and admission never saw it",
            why="It waits for resources that no node of ours has.",
            mend="Made before Tessera was installed, or while its webhook was not called: delete it, so that its owner makes "
            "it anew.",
        )
        for dialect, found in sorted(by_dialect.items())
    ]
    return Seen(findings, counted(len(pods), "unbound pod"))


def drift(evidence: Evidence) -> Seen:
    """Every pod has the GPUs of its plan."""
    names = evidence.names
    by_uid = {pod.metadata.uid: pod for pod in evidence.pods.need() if pod.metadata.uid}
    findings: list[Finding] = []
    reported: set[str] = set()
    unread: set[str] = set()
    for node in evidence.nodes.need():
        text = node.metadata.annotation(names.drift)
        if text is None:
            continue
        try:
            told: Drift = plans.decode_drift(text)
        except AnnotationError as error:
            unread.add(node.metadata.name)
            findings.append(
                Finding(
                    severity=Severity.ERROR,
                    object=f"node/{node.metadata.name}",
                    seen=str(error),
                    why="What the node gave can't be told, so nothing more is placed there.",
                    mend="Restart the node's agent, which writes it anew; look at who else writes that annotation.",
                )
            )
            continue
        reported |= told.keys()
        findings += [
            _drifted(node.metadata.name, uid, found, by_uid.get(uid), evidence) for uid, found in sorted(told.items())
        ]
    for pod in by_uid.values():
        if pod.metadata.uid in reported or pod.spec.node_name in unread or not pod.spec.node_name or pod.ended:
            continue
        asked = asked_of(pod, evidence.settings.config)
        if asked and planned_places(pod, asked, names) is None and (age(pod, evidence.now) or 0.0) >= SETTLED:
            findings.append(
                Finding(
                    severity=Severity.WARNING,
                    object=f"pod/{pod.key}",
                    seen=f"is bound to {pod.spec.node_name} with tickets, without a plan of its own, and the node does not say "
                    "where it is",
                    why="Its slice is withheld on every GPU of that node until the node's agent tells.",
                    mend="Look at the agent on that node; delete the pod to have it placed anew.",
                )
            )
    return Seen(findings, f"{counted(len(by_uid), 'pod')}")


def _drifted(
    node: str, uid: str, told: dict[str, tuple[plans.PlannedSlice, ...]], pod: LookedPod | None, evidence: Evidence
) -> Finding:
    where = several(f"{name} on {'+'.join(piece.gpu for piece in pieces)}" for name, pieces in sorted(told.items()))
    if pod is None:
        return Finding(
            severity=Severity.WARNING,
            object=f"node/{node}",
            seen=f"reports slices of a pod whose object is gone, {uid}: {where}",
            why="Its slices stay taken while the node sees it.",
            mend="See whether its containers still run on the node (crictl ps).",
        )
    asked = asked_of(pod, evidence.settings.config)
    planned = planned_places(pod, asked, evidence.names)
    scheduler = pod.spec.scheduler_name or "default-scheduler"
    if planned is None:
        seen = f"has no plan (scheduler {scheduler}); node {node} packed it: {where}"
        why = "It was placed by totals: another pod may have been meant for that GPU."
        mend = (
            f"Let it be scheduled by {evidence.settings.config.scheduler_name or 'the scheduler with the extender'}, "
        )
        mend += "without spec.nodeName; a static pod has to stay so."
    else:
        plan = several(
            f"{name} on {'+'.join(place.gpu for place in places)}" for name, places in sorted(planned.items())
        )
        seen = f"has other GPUs than planned: {where} instead of {plan}"
        why = "The planned GPU could not be given (sick, taken, or gone); the books follow what the node gave."
        mend = "Nothing, if it runs well; delete it to have it placed anew."
    return Finding(severity=Severity.WARNING, object=f"pod/{pod.key}", seen=seen, why=why, mend=mend)


def quotas(evidence: Evidence) -> Seen:
    """No ResourceQuota bounds a name that pods no longer ask for once they are translated."""
    found = evidence.quotas.need()
    spoken = _spoken(evidence)
    findings = []
    for quota in found:
        namespace = quota.metadata.namespace
        names = {
            key: name
            for key in quota.spec.hard or {}
            if (name := key.removeprefix("requests.").removeprefix("limits.")) != key
        }
        bounded = sorted(
            key for key, name in names.items() if _translated(name, evidence, spoken.get(namespace, frozenset()))
        )
        if bounded:
            findings.append(
                Finding(
                    severity=Severity.WARNING,
                    object=f"resourcequota/{namespace}/{quota.metadata.name}",
                    seen=f"bounds {several(bounded)}, which admission translates",
                    why="Pods are counted by their tickets, so this bound holds nobody back.",
                    mend=f"Bound requests.{evidence.names.memory_units}, requests.{evidence.names.memory_percent} and "
                    f"requests.{evidence.names.compute_percent} too: a whole GPU counts 100 of each percent.",
                )
            )
    return Seen(findings, counted(len(found), "quota"))


def _spoken(evidence: Evidence) -> dict[str, set[str]]:
    """By namespace, the dialects in which its pods have asked."""
    found: dict[str, set[str]] = {}
    for pod in evidence.pods.value or ():
        text = pod.metadata.annotation(evidence.names.request)
        if text is not None:
            with contextlib.suppress(AnnotationError):
                found.setdefault(pod.metadata.namespace, set()).add(requests.decode(text).dialect)
    return found


def _translated(resource: str, evidence: Evidence, spoken: Collection[str]) -> bool:
    """Whether pods that ask by a name are counted by their tickets.

    ``nvidia.com/gpu`` is NVIDIA's own plugin's, and stays, unless the config takes whole cards over; other dialects use it
    beside names of their own, so there it counts where a pod of the namespace has spoken one of these.
    """
    config = evidence.settings.config
    if resource in evidence.names.asks:
        return True
    owners = {dialect.name for dialect in Dialects(config).active if dialect.owns(resource)}
    if resource == nvidia.COUNT:
        return _takes(config, resource) or bool((owners - {nvidia.DIALECT.name}) & set(spoken))
    if nvidia.DIALECT.name in owners:
        return _takes(config, resource)
    return bool(owners - {TICKETS})


def _takes(config: Config, resource: str) -> bool:
    """Whether the config takes this name of NVIDIA's plugin over."""
    options = config.dialects.get(nvidia.DIALECT.name)
    if not isinstance(options, nvidia.NvidiaOptions) or not options.enabled:
        return False
    if resource == nvidia.COUNT:
        return options.whole
    return options.mig if resource.startswith(nvidia.MIG) else bool(options.shared_percent)
