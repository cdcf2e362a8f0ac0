"""How containers get their GPUs against what the nodes' runtimes can do, and what that leaves open.

CDI devices reach a runtime from Kubernetes 1.28 on. containerd takes them from 1.7 on, where `enable_cdi` is off by default;
2.0 turned it on (containerd's release notes). CRI-O has had it on by default since 1.23.
"""

from __future__ import annotations

import re
from typing import Final

from tessera.doctor.capacity import asked_of
from tessera.doctor.check import Seen
from tessera.doctor.evidence import Evidence, NotLookedError
from tessera.doctor.finding import Finding, Severity, counted, several
from tessera.doctor.nodes import is_agent
from tessera.doctor.objects import LookedNode, LookedPod
from tessera.placement.nodefacts import read

_DEVICES: Final = "NVIDIA_VISIBLE_DEVICES"
_LIBRARY: Final = "TESSERA_NVML_LIBRARY"
_RUNTIME: Final = re.compile(r"([a-z-]+)://v?(\d{1,3})\.(\d{1,3})", re.ASCII)


def runtimes(evidence: Evidence) -> Seen:
    """The runtime of every GPU node can inject devices as the config says."""
    mode = evidence.settings.config.device_injection
    nodes = [node for node in evidence.nodes.need() if node.metadata.annotation(evidence.names.inventory) is not None]
    old: list[str] = []
    off: list[str] = []
    for node in nodes:
        match _cdi(node):
            case "no":
                old.append(node.metadata.name)
            case "off by default":
                off.append(node.metadata.name)
    findings = []
    if mode == "cdi" and old:
        findings.append(
            Finding(
                severity=Severity.ERROR,
                object=f"node/{old[0]}",
                seen=f"deviceInjection is cdi; the runtime of {several(old)} knows no CDI ({_said(nodes, old)})",
                why="Containers there start without their GPUs.",
                mend="Upgrade to containerd 2 (or 1.7 with enable_cdi), or set deviceInjection: volume-mounts.",
            )
        )
    if mode == "cdi" and off:
        findings.append(
            Finding(
                severity=Severity.WARNING,
                object=f"node/{off[0]}",
                seen=f"deviceInjection is cdi; the runtime of {several(off)} has it off by default ({_said(nodes, off)})",
                why="Where enable_cdi is not set, containers start without their GPUs.",
                mend="Set enable_cdi = true in containerd's CRI section on these nodes, or upgrade to containerd 2.",
            )
        )
    return Seen(findings, f"{mode} on {counted(len(nodes), 'GPU node')}")


def open_ways(evidence: Evidence) -> Seen:
    """No container can name GPUs by an environment that admission can't see."""
    mode = evidence.settings.config.device_injection
    nodes = evidence.nodes.need()
    inventory = evidence.names.inventory
    gpu_nodes = {n.metadata.name: n for n in nodes if n.metadata.annotation(inventory) is not None}
    default = _nvidias_by_default(evidence, gpu_nodes)
    notes = [default] if default else []
    if mode in ("cdi", "volume-mounts"):
        return Seen((), f"deviceInjection is {mode}", notes)
    if mode == "auto":
        gpu_nodes = {name: node for name, node in gpu_nodes.items() if _cdi(node) != "yes"}
    if not gpu_nodes:
        return Seen((), f"deviceInjection is {mode}, and every GPU node's runtime has CDI", notes)
    seen = (
        "deviceInjection is envvar"
        if mode == "envvar"
        else f"deviceInjection is auto, and {counted(len(gpu_nodes), 'node')} may have no CDI ({several(gpu_nodes)}), "
        "which means envvar"
    )
    try:
        hidden = [pod.key for pod in evidence.pods.need() if pod.spec.node_name in gpu_nodes and _hides(pod, evidence)]
    except NotLookedError as error:
        notes.append(f"pods there: {error}")
        hidden = []
    if hidden:
        seen += (
            f"; {counted(len(hidden), 'pod')} there without a GPU take environment from elsewhere: {several(hidden)}"
        )
    if default:
        seen += f"; {default}"
    finding = Finding(
        severity=Severity.WARNING,
        object="config/deviceInjection",
        seen=seen,
        why="A container that sets NVIDIA_VISIBLE_DEVICES where admission can't see it (envFrom a ConfigMap or Secret, or its "
        "image's own ENV) gets every GPU of the node.",
        mend="Set deviceInjection: cdi or volume-mounts, and let NVIDIA's runtime ignore the variable in unprivileged "
        "containers (accept-nvidia-visible-devices-envvar-when-unprivileged = false).",
    )
    return Seen([finding], f"{counted(len(gpu_nodes), 'GPU node')}", notes)


def runtime_class(evidence: Evidence) -> Seen:
    """The RuntimeClass that the webhook writes on pods exists."""
    name = evidence.settings.config.runtime_class_name
    if not name:
        return Seen((), "runtimeClassName is not set")
    if any(each.metadata.name == name for each in evidence.runtime_classes.need()):
        return Seen((), f"runtimeclass/{name}")
    finding = Finding(
        severity=Severity.ERROR,
        object=f"runtimeclass/{name}",
        seen="config names it and it does not exist",
        why="Every pod that asks for a GPU is refused.",
        mend=f"Create the RuntimeClass (handler: nvidia, as the nodes' runtime has it), or take runtimeClassName: {name} "
        "out of the config.",
    )
    return Seen([finding], f"runtimeclass/{name}")


def _cdi(node: LookedNode) -> str:
    """Whether a node's runtime takes CDI devices: ``yes``, ``off by default``, ``no`` or ``unknown``."""
    found = _RUNTIME.match(node.status.node_info.container_runtime_version)
    if found is None:
        return "unknown"
    runtime, version = found[1], (int(found[2]), int(found[3]))
    match runtime:
        case "containerd":
            return "yes" if version >= (2, 0) else "off by default" if version >= (1, 7) else "no"
        case "cri-o":
            return "yes" if version >= (1, 28) else "no"
        case "docker":
            return "no"
    return "unknown"


def _said(nodes: list[LookedNode], names: list[str]) -> str:
    said = {n.status.node_info.container_runtime_version for n in nodes if n.metadata.name in set(names)}
    return several(sorted(said), most=3)


def _nvidias_by_default(evidence: Evidence, gpu_nodes: dict[str, LookedNode]) -> str:
    """A line about nodes whose default runtime is NVIDIA's, "" where none is seen to be.

    A runtime's settings are on its node. But our agent brings no driver library: one that sees GPUs, names no RuntimeClass
    and was given no library of its own has it from the default runtime.
    """
    seeing = {name for name, node in gpu_nodes.items() if (gpus := read(node, evidence.names).inventory) and gpus.gpus}
    found = sorted(
        {pod.spec.node_name for pod in evidence.pods.value or () if pod.spec.node_name in seeing and _by_default(pod)}
    )
    if not found:
        return ""
    return (
        f"NVIDIA's runtime is the default on {several(found)} (the agent there has the driver by it): any image may name GPUs "
        "there, and guard.runtimeClasses closes nothing"
    )


def _by_default(pod: LookedPod) -> bool:
    """Whether a pod is an agent that is ready and asks for the driver of no runtime but the default one."""
    ready = pod.condition("Ready")
    return (
        is_agent(pod)
        and ready is not None
        and ready.status == "True"
        and not pod.spec.runtime_class_name
        and any(
            container.variable(_DEVICES) == "all" and container.variable(_LIBRARY) is None
            for container in pod.spec.containers or ()
        )
    )


def _hides(pod: LookedPod, evidence: Evidence) -> bool:
    """Whether a container that has no GPU takes its whole environment from an object that admission doesn't see."""
    if pod.ended:
        return False
    asking = {ask.container for ask in asked_of(pod, evidence.settings.config)}
    return any(
        container.env_from and container.name not in asking
        for container in (*(pod.spec.containers or ()), *(pod.spec.init_containers or ()))
    )
