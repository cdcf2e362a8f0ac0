"""Nodes and their GPUs: agents that are missing, away or draining, GPUs that are sick, others that serve the same GPUs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from tessera.doctor.check import Seen
from tessera.doctor.evidence import Evidence, NotLookedError
from tessera.doctor.finding import Finding, Severity, counted, several
from tessera.doctor.objects import LookedPod
from tessera.doctor.times import age
from tessera.model.errors import QuantityError
from tessera.model.quantity import gib, whole
from tessera.placement.nodefacts import NodeFacts, read
from tessera.placement.reasons import Reason

_GPU_LABELS: Final = (
    ("nvidia.com/gpu.present", "true"),
    ("nvidia.com/gpu.count", ""),
    ("nvidia.com/gpu.product", ""),
    ("feature.node.kubernetes.io/pci-10de.present", "true"),
    ("feature.node.kubernetes.io/pci-0300_10de.present", "true"),
    ("feature.node.kubernetes.io/pci-0302_10de.present", "true"),
    ("aliyun.accelerator/nvidia_name", ""),
    ("aliyun.accelerator/nvidia_count", ""),
    ("cloud.google.com/gke-accelerator", ""),
    ("k8s.amazonaws.com/accelerator", ""),
)
"""Labels by which others say that a node has an NVIDIA GPU; "" takes any value."""
_RIVAL_RESOURCES: Final = (
    "nvidia.com/gpu", "nvidia.com/mig-", "nvidia.com/vgpu", "aliyun.com/gpu", "volcano.sh/vgpu", "volcano.sh/gpu", "koordinator.sh/gpu", "tencent.com/vcuda",
    "tke.cloud.tencent.com/qgpu", "elasticgpu.io/", "k8s.amazonaws.com/vgpu", "nvshare.com/gpu",
)  # fmt: skip
_RIVAL_IMAGES: Final = re.compile(
    r"(?:^|/)(k8s-device-plugin|nvidia-device-plugin|hami|gpushare-device-plugin|k8s-gpushare-plugin|"
    r"volcano-vgpu-device-plugin|gpu-manager|vgpu-manager|nvshare)(?=[:@]|$)",
    re.ASCII,
)
_APP, _AGENT = "app.kubernetes.io/name", "tessera-node"
"""How our manifests name the agent's pods; one that was made otherwise is known by its program."""
_VIRTUAL: Final = ("type", "virtual-kubelet")

_START: Final = 120.0
"""Seconds that a part of ours may take to be ready."""

_CLOSED: Final[Mapping[Reason, tuple[Severity, str, str]]] = {
    Reason.UNREADABLE: (
        Severity.ERROR,
        "Nothing is placed there.",
        "Restart the node's agent, which writes it anew; look at who else writes that annotation.",
    ),
    Reason.NOT_READY: (
        Severity.WARNING,
        "Nothing is placed there until its kubelet reports again.",
        "kubectl describe node, and look at its kubelet.",
    ),
    Reason.DRAINING: (
        Severity.WARNING,
        "Nothing new is placed there. An agent that is replaced drains for seconds; for longer it hangs or has ended.",
        "Look at the agent's pod on that node and its log.",
    ),
    Reason.AGENT_AWAY: (
        Severity.ERROR,
        "The kubelet has no connection to the agent, so pods bound there fail.",
        "Look at the agent's pod on that node and its log.",
    ),
}


def closed(evidence: Evidence) -> Seen:
    """Every GPU node is open for pods."""
    facts = _facts(evidence)
    findings = []
    for name, each in facts.items():
        if each.closed is None or each.closed not in _CLOSED:
            continue
        severity, why, mend = _CLOSED[each.closed]
        seen = each.closed.template.removeprefix("node ").replace("node's", "its")
        problem = f": {'; '.join(each.problems)}" if each.problems else ""
        findings.append(Finding(severity=severity, object=f"node/{name}", seen=f"{seen}{problem}", why=why, mend=mend))
    cordoned = [name for name, each in facts.items() if each.closed is Reason.CORDONED]
    notes = [f"cordoned by somebody: {several(cordoned)}"] if cordoned else []
    return Seen(findings, counted(len(facts), "GPU node"), notes)


def _facts(evidence: Evidence) -> dict[str, NodeFacts]:
    """What placement reads of each node that has, or should have, GPUs of ours."""
    names = evidence.names
    found = {node.metadata.name: read(node, names) for node in evidence.nodes.need()}
    return {name: each for name, each in found.items() if each.closed is not Reason.NO_GPU}


def agents(evidence: Evidence) -> Seen:
    """Every node that has GPUs has an agent, and every inventory has one behind it."""
    names = evidence.names
    nodes = evidence.nodes.need()
    bare = []
    inventories = []
    for node in nodes:
        labels = node.metadata.labels or {}
        if node.metadata.annotation(names.inventory) is not None:
            inventories.append(node.metadata.name)
        elif labels.get(_VIRTUAL[0]) != _VIRTUAL[1] and (sign := _sign(labels)):
            bare.append((node.metadata.name, sign))
    findings = [
        Finding(
            severity=Severity.WARNING,
            object=f"node/{name}",
            seen=f"has GPUs by its label {sign}, and no inventory",
            why="No slice is placed there.",
            mend="Let the agent's DaemonSet run there (its nodeSelector and tolerations), and read /readyz of its pod.",
        )
        for name, sign in bare
    ]
    notes = []
    try:
        there = [pod for pod in evidence.pods.need() if is_agent(pod) and not pod.ended]
        running = {pod.spec.node_name for pod in there}
        findings += [_not_ready(pod, evidence) for pod in there if late(pod, evidence.now)]
    except NotLookedError as error:
        notes.append(f"agents' pods: {error}")
        running = set()
    if running:
        findings += [
            Finding(
                severity=Severity.WARNING,
                object=f"node/{name}",
                seen="has an inventory, and no agent's pod is there",
                why="The inventory is stale: what fails or is used there is not seen, and pods bound there may fail.",
                mend="Let the agent's DaemonSet run there; for good, take its annotations and labels from the node.",
            )
            for name in inventories
            if name not in running
        ]
    elif not notes and inventories:
        notes.append("no pod of a node agent is to be seen; agents may run outside the cluster")
    return Seen(findings, f"{counted(len(nodes), 'node')}, {counted(len(running), 'agent')}", notes)


def parts(evidence: Evidence) -> Seen:
    """What runs in the control plane is ready: webhook, extender, the scheduler beside it."""
    found = [
        pod
        for pod in evidence.pods.need()
        if pod.metadata.namespace == evidence.namespace and not is_agent(pod) and not pod.ended
    ]
    findings = [
        Finding(
            severity=Severity.WARNING,
            object=f"pod/{pod.key}",
            seen=f"is not ready ({_said_by(pod, evidence)}), on {pod.spec.node_name or 'no node yet'}",
            why="Its work is left to its other replicas; where there is none, GPU pods are not made or not placed.",
            mend=f"kubectl -n {pod.metadata.namespace} describe pod {pod.metadata.name}, and its log.",
        )
        for pod in found
        if late(pod, evidence.now)
    ]
    return Seen(findings, counted(len(found), "pod"))


def _said_by(pod: LookedPod, evidence: Evidence) -> str:
    """Why a pod is not ready: in its own words, else in the kubelet's."""
    said = (evidence.said.value or {}).get(pod.key)
    if said is not None and said.unready:
        return said.unready
    ready = pod.condition("Ready")
    return (ready.reason if ready else "") or pod.status.reason or pod.status.phase or "no reason given"


def late(pod: LookedPod, now: float) -> bool:
    """Whether a pod that has had time to start is not ready."""
    ready = pod.condition("Ready")
    waits = pod.status.phase == "Pending" if ready is None else ready.status != "True"
    return waits and (age(pod, now) or 0.0) >= _START


def _not_ready(pod: LookedPod, evidence: Evidence) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        object=f"pod/{pod.key}",
        seen=f"the agent on {pod.spec.node_name or 'no node'} is not ready ({_said_by(pod, evidence)})",
        why="It can't serve GPUs now: no driver, another plugin on the same GPUs, or a kubelet that doesn't know it.",
        mend="Its /readyz says why (also its log): kubectl get --raw "
        f"/api/v1/namespaces/{pod.metadata.namespace}/pods/{pod.metadata.name}:9465/proxy/readyz",
    )


def is_agent(pod: LookedPod) -> bool:
    """Whether a pod is a node agent of ours: it runs the program `tessera-node`."""
    return (pod.metadata.labels or {}).get(_APP) == _AGENT or any(
        word.rpartition("/")[2] == _AGENT
        for container in pod.spec.containers or ()
        for word in (*(container.command or ())[:2], *(container.args or ())[:1], container.name)
    )


def _sign(labels: Mapping[str, str]) -> str:
    return next(
        (f"{key}={labels[key]}" for key, value in _GPU_LABELS if labels.get(key) and value in ("", labels[key])), ""
    )


def gpus(evidence: Evidence) -> Seen:
    """Every GPU is healthy."""
    findings = []
    count = 0
    for name, facts in _facts(evidence).items():
        for gpu in facts.inventory.gpus if facts.inventory else ():
            count += 1
            if gpu.health == "ok":
                continue
            findings.append(
                Finding(
                    severity=Severity.ERROR if gpu.health == "lost" else Severity.WARNING,
                    object=f"node/{name}/gpu/{gpu.index}",
                    seen=f"GPU {gpu.id} ({gpu.model}) is {gpu.health}",
                    why="It takes no new slices; pods on it stay, and may fail."
                    if gpu.health != "recovering"
                    else "It takes no new slices until it has been quiet for a while.",
                    mend="Look for XID messages in the node's kernel log; the agent uses it again by itself once the driver "
                    "asks for nothing more (nvidia-smi -q, GPU Recovery Action).",
                )
            )
    return Seen(findings, counted(count, "GPU"))


def foreign_use(evidence: Evidence) -> Seen:
    """Nothing but slices uses GPU memory."""
    findings = []
    count = 0
    for name, facts in _facts(evidence).items():
        for gpu in facts.inventory.gpus if facts.inventory else ():
            count += 1
            if gpu.held and facts.inventory is not None:
                findings.append(
                    Finding(
                        severity=Severity.WARNING,
                        object=f"node/{name}/gpu/{gpu.index}",
                        seen=f"{gib(gpu.held * facts.inventory.unit)} of GPU {gpu.id} are used by processes without a slice",
                        why="That much is withheld from pods; who uses it asked nobody.",
                        mend="nvidia-smi on the node tells the processes; stop them, or give them a slice.",
                    )
                )
    return Seen(findings, counted(count, "GPU"))


def lingering(evidence: Evidence) -> Seen:
    """No node still sees pods that are gone as objects."""
    findings = []
    facts = _facts(evidence)
    for name, each in facts.items():
        uids = each.inventory.lingering if each.inventory else ()
        if uids:
            findings.append(
                Finding(
                    severity=Severity.WARNING,
                    object=f"node/{name}",
                    seen=f"still has containers or processes of {counted(len(uids), 'pod')} whose object is gone: "
                    f"{several(uids, most=3)}",
                    why="Their slices stay taken: a force delete takes the object away, not the processes.",
                    mend="Wait a minute; then stop the containers on the node (crictl ps, crictl stop) or restart its kubelet.",
                )
            )
    return Seen(findings, counted(len(facts), "GPU node"))


def rivals(evidence: Evidence) -> Seen:
    """Nobody else gives the same GPUs away."""
    names = evidence.names
    findings = []
    ours = {n.metadata.name: n for n in evidence.nodes.need() if n.metadata.annotation(names.inventory) is not None}
    for name, node in ours.items():
        advertised = sorted(
            resource for resource, raw in (node.status.allocatable or {}).items() if _rival(resource) and _any(str(raw))
        )
        if advertised:
            findings.append(
                Finding(
                    severity=Severity.ERROR,
                    object=f"node/{name}",
                    seen=f"advertises {several(advertised)} beside our tickets",
                    why="Two device plugins give the same GPU away. Tessera withholds those it sees served by NVIDIA's and its "
                    "agent is not ready.",
                    mend="Remove the other plugin from this node, or keep its GPUs from it.",
                )
            )
    notes = []
    by_image: dict[str, list[LookedPod]] = {}
    try:
        for pod in evidence.pods.need():
            if pod.spec.node_name in ours and not pod.ended and (image := _rival_image(pod)):
                by_image.setdefault(image, []).append(pod)
    except NotLookedError as error:
        notes.append(f"pods there: {error}")
    for image, pods in sorted(by_image.items()):
        findings.append(
            Finding(
                severity=Severity.WARNING,
                object=f"pod/{pods[0].key}",
                seen=f"{image} runs on {counted(len(pods), 'node')} with our agent "
                f"({several(sorted(pod.spec.node_name for pod in pods))})",
                why="It may give the same GPUs away.",
                mend="Keep its DaemonSet off nodes that Tessera serves.",
            )
        )
    return Seen(findings, counted(len(ours), "GPU node"), notes)


def _rival(resource: str) -> bool:
    return resource.startswith(_RIVAL_RESOURCES)


def _any(raw: str) -> bool:
    try:
        return whole(raw) > 0
    except QuantityError:
        return False


def _rival_image(pod: LookedPod) -> str:
    for container in pod.spec.containers or ():
        found = _RIVAL_IMAGES.search(container.image)
        if found:
            return found[1]
    return ""
