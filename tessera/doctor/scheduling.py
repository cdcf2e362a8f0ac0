"""kube-scheduler: it asks the extender about every ticket, shows it every node, and leaves the counting to it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import yaml

from tessera.doctor.check import Seen
from tessera.doctor.evidence import Evidence, NotLookedError
from tessera.doctor.finding import Finding, Severity, counted, several
from tessera.model import inventory as inventories
from tessera.model.errors import AnnotationError
from tessera.placement.shape import profile_name

_KIND: Final = "KubeSchedulerConfiguration"
_LARGEST: Final = 256 << 10
_TAG: Final = re.compile(r"kube-scheduler(?:-[a-z0-9]+)?:v?(\d{1,3})\.(\d{1,3})", re.ASCII)
_VERSION: Final = re.compile(r"\d+", re.ASCII)
OLDEST: Final = 34
_WIDE_OPEN: Final = "default-scheduler"

Tree = Mapping[str, object]


def configurations(evidence: Evidence) -> dict[str, Tree]:
    """Every scheduler configuration that a ConfigMap holds, by where it stands; one that is no YAML is left out."""
    found: dict[str, Tree] = {}
    for config_map in evidence.config_maps.need():
        for key, text in (config_map.data or {}).items():
            if _KIND not in text or len(text) > _LARGEST:
                continue
            try:
                tree = yaml.safe_load(text)
            except (yaml.YAMLError, ValueError, RecursionError):
                continue
            if isinstance(tree, dict) and tree.get("kind") == _KIND:
                found[f"configmap/{config_map.metadata.namespace}/{config_map.metadata.name} ({key})"] = tree
    return found


def served(evidence: Evidence) -> frozenset[str]:
    """Names of schedulers that ask our extender, as far as their configurations can be seen, and the config's own."""
    names = {evidence.settings.config.scheduler_name or _WIDE_OPEN}
    for tree in configurations(evidence).values() if evidence.config_maps.value is not None else ():
        if any(_ours(extender, evidence) for extender in _trees(tree, "extenders")):
            names |= {str(p.get("schedulerName", _WIDE_OPEN)) for p in _trees(tree, "profiles")} or {_WIDE_OPEN}
    return frozenset(names)


def configured(evidence: Evidence) -> Seen:
    """The scheduler's configuration is the one that the extender needs."""
    found = configurations(evidence)
    if not found:
        raise NotLookedError(
            f"no ConfigMap in {evidence.namespace} or kube-system holds a {_KIND}; one in a file of the control plane can't "
            "be seen from here"
        )
    with_ours = {
        where: tree for where, tree in found.items() if any(_ours(e, evidence) for e in _trees(tree, "extenders"))
    }
    findings: list[Finding] = []
    if not with_ours:
        findings.append(
            Finding(
                severity=Severity.ERROR,
                object=next(iter(found)),
                seen=f"no extender manages a ticket of {evidence.names.domain}",
                why="Slices are placed by node totals, without a plan: a pod may be bound where no GPU has room for it.",
                mend="Generate the configuration again and restart kube-scheduler.",
            )
        )
    for where, tree in with_ours.items():
        findings += _judge(where, tree, evidence)
    return Seen(findings, several(found))


def _judge(where: str, tree: Tree, evidence: Evidence) -> Iterator[Finding]:
    def finding(severity: Severity, seen: str, why: str, mend: str) -> Finding:
        return Finding(severity=severity, object=where, seen=seen, why=why, mend=f"{mend}, and restart kube-scheduler.")

    profiles = _trees(tree, "profiles")
    shares = [tree.get("percentageOfNodesToScore"), *(p.get("percentageOfNodesToScore") for p in profiles)]
    said = [share for share in shares if share is not None]
    wrong = [share for share in said if share != 100]
    if wrong or not said:
        yield finding(
            Severity.WARNING,
            f"percentageOfNodesToScore is {wrong[0] if wrong else 'not set'}",
            "The extender is shown a part of a large cluster's nodes, so a pod may wait though a node has room.",
            "Set percentageOfNodesToScore: 100",
        )
    wanted = evidence.settings.config.scheduler_name
    names = {str(profile.get("schedulerName", _WIDE_OPEN)) for profile in profiles} or {_WIDE_OPEN}
    if wanted and wanted not in names:
        yield finding(
            Severity.ERROR,
            f"no profile is named {wanted}, which the webhook writes on pods ({several(sorted(names))})",
            "Nobody schedules pods that ask for GPUs.",
            f"Name a profile {wanted}, or set schedulerName in Tessera's config",
        )
    for extender in _trees(tree, "extenders"):
        if _ours(extender, evidence):
            for severity, seen, why, mend in (*_extender(extender), *_managed(extender, _tickets(evidence))):
                yield finding(severity, seen, why, mend)
    mode = evidence.settings.config.placement.cpu_pods
    everybody = [each for each in _trees(tree, "extenders") if not each.get("managedResources")]
    if mode != "ignore" and not everybody:
        yield finding(
            Severity.WARNING,
            f"no extender is for every pod, though placement.cpuPods is {mode}",
            "Pods without GPUs never come to the extender, so they are placed as if the option were not there.",
            "Generate the configuration again from Tessera's config",
        )
    for each in everybody if mode != "ignore" else ():
        if each.get("ignorable") is not True or each.get("bindVerb"):
            yield finding(
                Severity.ERROR,
                "the extender for every pod is not ignorable, or binds",
                "While the extender is away no pod of the cluster is scheduled, its own included.",
                "Generate the configuration again from Tessera's config",
            )


def _managed(extender: Tree, tickets: Sequence[str]) -> Iterator[tuple[Severity, str, str, str]]:
    managed = {str(each.get("name")): each for each in _trees(extender, "managedResources")}
    if missing := [ticket for ticket in tickets if ticket not in managed]:
        yield (
            Severity.ERROR,
            f"managedResources lacks {several(missing)}",
            "A pod that asks for that ticket is placed without the extender, by node totals and without a plan.",
            "Add it to managedResources with ignoredByScheduler: true",
        )
    if counted_twice := [t for t in tickets if t in managed and managed[t].get("ignoredByScheduler") is not True]:
        yield (
            Severity.ERROR,
            f"ignoredByScheduler is not true for {several(counted_twice)}",
            "kube-scheduler counts too, by numbers up to 10 s old: freed slices are not used, sick GPUs count twice.",
            "Set ignoredByScheduler: true",
        )


def _extender(extender: Tree) -> Iterator[tuple[Severity, str, str, str]]:
    if extender.get("ignorable") is True:
        yield (
            Severity.ERROR,
            "ignorable is true",
            "While the extender is away, pods are bound without a plan, to nodes whose GPUs may be full.",
            "Set ignorable: false",
        )
    if extender.get("nodeCacheCapable") is not True:
        yield (
            Severity.WARNING,
            "nodeCacheCapable is not true",
            "Whole Node objects are sent with every call, megabytes in a large cluster.",
            "Set nodeCacheCapable: true",
        )
    for verb in ("filterVerb", "bindVerb"):
        if not extender.get(verb):
            yield (
                Severity.ERROR,
                f"{verb} is not set",
                "Without filter no GPU is looked at, without bind no plan is written.",
                f"Set {verb}",
            )


def _ours(extender: Tree, evidence: Evidence) -> bool:
    """Whether an extender is ours for pods that ask: it manages a ticket."""
    prefix = f"{evidence.names.domain}/"
    return any(str(each.get("name", "")).startswith(prefix) for each in _trees(extender, "managedResources"))


def _tickets(evidence: Evidence) -> list[str]:
    """Every ticket that has to be managed: the three of a GPU, and those of MIG instances that nodes have."""
    names = evidence.names
    found = dict.fromkeys(names.tickets)
    for node in evidence.nodes.value or ():
        found |= dict.fromkeys(name for name in node.status.allocatable or {} if name.startswith(names.mig_prefix))
        try:
            text = node.metadata.annotation(names.inventory)
            gpus = inventories.decode(text).gpus if text is not None else ()
        except AnnotationError:
            continue
        found |= dict.fromkeys(names.mig(profile_name(each.profile)) for gpu in gpus for each in gpu.mig)
    return list(found)


def _trees(tree: Tree, key: str) -> list[Tree]:
    found = tree.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def versions(evidence: Evidence) -> Seen:
    """Schedulers are of the API server's minor version, or one older."""
    version = evidence.version.need()
    minor = minor_of(version.minor)
    found: dict[str, tuple[int, int]] = {}
    for pod in evidence.pods.need():
        for container in pod.spec.containers or ():
            match = None if pod.ended else _TAG.search(container.image)
            if match:
                found[pod.key] = (int(match[1]), int(match[2]))
    if not found:
        raise NotLookedError("no pod's image names a version of kube-scheduler")
    findings = [
        Finding(
            severity=Severity.ERROR if theirs > minor else Severity.WARNING,
            object=f"pod/{pod}",
            seen=f"kube-scheduler {major}.{theirs} beside an API server {version.major}.{minor}",
            why="Kubernetes supports a scheduler of the same minor version or one older; others may miss fields or fail.",
            mend="Use the image of the API server's version.",
        )
        for pod, (major, theirs) in sorted(found.items())
        if minor and not minor - 1 <= theirs <= minor
    ]
    return Seen(findings, counted(len(found), "scheduler"))


def api_version(evidence: Evidence) -> Seen:
    """The API server is of a version that this was made for."""
    version = evidence.version.need()
    minor = minor_of(version.minor)
    findings = []
    if version.major == "1" and minor and minor < OLDEST:
        findings.append(
            Finding(
                severity=Severity.ERROR,
                object="apiserver",
                seen=f"the API server is {version.git_version}, older than 1.{OLDEST}",
                why="Match conditions, policies and Bindings with annotations are relied on as 1.34 has them.",
                mend=f"Upgrade the cluster to 1.{OLDEST} or newer.",
            )
        )
    return Seen(findings, version.git_version or "a version that names nothing")


def minor_of(text: str) -> int:
    """``34+`` is 34; 0 where there is no number."""
    found = _VERSION.match(text)
    return int(found[0]) if found else 0


def foreign(evidence: Evidence) -> Seen:
    """Pods that ask in our tickets go to a scheduler that asks our extender."""
    config = evidence.settings.config
    known = served(evidence)
    by_scheduler: dict[str, list[tuple[str, bool]]] = {}
    asking = 0
    for pod in evidence.pods.need():
        if pod.ended or not any(
            evidence.names.is_ticket(name)
            for each in (*(pod.spec.containers or ()), *(pod.spec.init_containers or ()))
            for name in (each.resources.limits if each.resources else None) or {}
        ):
            continue
        asking += 1
        name = pod.spec.scheduler_name or _WIDE_OPEN
        if name not in known:
            by_scheduler.setdefault(name, []).append((pod.key, bool(pod.spec.node_name)))
    findings = [
        Finding(
            severity=Severity.WARNING,
            object=f"pod/{found[0][0]}",
            seen=f"{counted(len(found), 'pod')} with our tickets ({several(key for key, _ in found)}) for scheduler {name}"
            + (f", {waiting} of them waiting" if (waiting := sum(not bound for _, bound in found)) else ""),
            why="That scheduler asks no extender of ours: it places by node totals, without a plan, or does not exist.",
            mend=f"Name {config.scheduler_name or 'no scheduler'} in the manifest, or give that scheduler the extender too.",
        )
        for name, found in sorted(by_scheduler.items())
    ]
    return Seen(findings, f"{counted(asking, 'pod')} with tickets; served: {several(sorted(known))}")
