"""Pods that run and could not be made again: what the guard denies is denied at creation only.

An exporter that mounts the whole host, a driver that mounts /dev: in a namespace that isn't exempt they run on after the
guard has come, and are missing after the next rollout or drained node, when nobody thinks of the guard any more. So they are
told beforehand: the rules are evaluated here (`Evidence.guard`), whether policies are in the cluster or not.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tessera.dialects.recognise import Dialects
from tessera.doctor.capacity import asked_of
from tessera.doctor.check import Seen
from tessera.doctor.evidence import Evidence
from tessera.doctor.finding import Finding, Severity, counted, several
from tessera.doctor.objects import LookedPod
from tessera.model.config import Config
from tessera.model.errors import TesseraError

MOST_WORKLOADS: Final = 4
"""Of a namespace that are told with their reason."""
_MOST_NAMES: Final = 30
_LONGEST: Final = 200
"""Letters of one reason; names of variables have no bound."""
_CRON: Final = re.compile(r"(.+)-[0-9]{8,10}", re.ASCII)
"""Name of a CronJob's Job: its minute since 1970 behind the CronJob's name."""
_HASH: Final = "pod-template-hash"


def again(evidence: Evidence) -> Seen:
    """Every pod that is there, and that somebody would make again, could be made again."""
    judge, config = evidence.guard.need(), evidence.settings.config
    dialects = Dialects(config)
    pods = evidence.pods.need()
    by_namespace: dict[str, dict[str, tuple[int, str]]] = {}
    for pod in pods:
        owner = _owner(pod)
        if pod.ended and not owner.startswith("cronjob/"):
            continue
        # A container that somebody has added to look at the pod does not come again.
        made = pod
        if pod.spec.ephemeral_containers:
            made = msgspec.structs.replace(pod, spec=msgspec.structs.replace(pod.spec, ephemeral_containers=None))
        # Whether it asks takes longer to tell than all the rules.
        found = judge(made, False) or judge(made, True)
        if found and (found := judge(made, _asks(made, config, dialects))):
            owners = by_namespace.setdefault(pod.metadata.namespace, {})
            count, said = owners.get(owner, (0, ", and ".join(said[:_LONGEST] for _, said in found)))
            owners[owner] = count + 1, said
    findings = [_finding(name, owners) for name, owners in sorted(by_namespace.items())]
    return Seen(findings, counted(len(pods), "pod"), _notes(by_namespace, config))


def _finding(namespace: str, owners: dict[str, tuple[int, str]]) -> Finding:
    told = [f"{owner} ({counted(count, 'pod')}): {said}" for owner, (count, said) in sorted(owners.items())]
    more = len(told) - MOST_WORKLOADS
    rest = f"; and {counted(more, 'workload')} more" if more > 0 else ""
    return Finding(
        severity=Severity.WARNING,
        object=f"namespace/{namespace}",
        seen=f"the guard denies what is there already: {'; '.join(told[:MOST_WORKLOADS])}{rest}",
        why="These pods run on, but can't be made again: they are missing after the next rollout, restart or drained node.",
        mend=f"Add {namespace} to guard.exemptNamespaces, if its pods may see every GPU of their nodes, or change these "
        "workloads (docs/guard.md says what instead).",
    )


def _notes(by_namespace: dict[str, dict[str, tuple[int, str]]], config: Config) -> list[str]:
    notes = [
        f"namespace/{name}, all of them: {several(sorted(owners), most=_MOST_NAMES)}"
        for name, owners in sorted(by_namespace.items())
        if len(owners) > MOST_WORKLOADS
    ][:_MOST_NAMES]
    if by_namespace:
        exempt = sorted({*config.guard.exempt_namespaces, *by_namespace})
        notes.append(f"to exempt all of these: guard.exemptNamespaces: [{several(exempt, most=_MOST_NAMES)}]")
    return notes


def _asks(pod: LookedPod, config: Config, dialects: Dialects) -> bool:
    """Whether a pod has a GPU of ours, or would have been given one by admission."""
    if asked_of(pod, config):
        return True
    try:
        return dialects.recognise(pod) is not None
    except TesseraError:
        return True  # it asks, in a way that can't be meant


def _owner(pod: LookedPod) -> str:
    """What would make a pod again, as far as the pod itself tells: ``deployment/web``; without an owner the pod."""
    meta = pod.metadata
    owner = next((each for each in meta.owner_references or () if each.controller), None)
    if owner is None:
        return f"pod/{meta.name}"
    suffix = "-" + (meta.labels or {}).get(_HASH, "")
    if owner.kind == "ReplicaSet" and len(suffix) > 1 and owner.name.endswith(suffix):
        return f"deployment/{owner.name.removesuffix(suffix)}"
    if owner.kind == "Job" and (found := _CRON.fullmatch(owner.name)):
        return f"cronjob/{found[1]}"
    return f"{owner.kind.lower()}/{owner.name}"
