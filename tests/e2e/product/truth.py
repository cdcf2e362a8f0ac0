"""What containers really have: read from the kernel, the kubelet and the API, by nothing of what is tested."""

from __future__ import annotations

import json
import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from cluster import Cluster
from cluster.kernel import container_folders
from cluster.processes import ended, send, start_time
from cluster.record import Started

from deviceplugin._proto import podresources_v1_pb2 as wire
from deviceplugin._proto.podresources_v1_pb2_grpc import PodResourcesListerStub
from tessera.demo.evidence import Evidence
from tessera.demo.judge import Check, judge

RUNTIME = "containerd://"


class RealEvidence(Evidence):
    """The node as the demo's judge looks at one: the kubelet's own checkpoint, and what each container was started with."""

    def __init__(self, cluster: Cluster, pods: list[dict[str, Any]]) -> None:
        """Read everything now."""
        super().__init__(cluster.node(), str(cluster.settings.kubelet_dir))
        folders = folders_of(cluster)
        for each in pods:
            for name, environment in environments(cluster, each, folders).items():
                self.records[each["metadata"]["uid"], name] = {"env": environment, "mounts": [], "cdi": []}


def verdict(cluster: Cluster, pods: list[dict[str, Any]]) -> list[Check]:
    """Hold pods' plans against what their containers really have."""
    return judge(pods, [RealEvidence(cluster, pods)])


def verdict_of_nodes(nodes: Sequence[Cluster], pods: list[dict[str, Any]]) -> list[Check]:
    """As `verdict`, for pods on several real nodes."""
    evidence = []
    for node in nodes:
        theirs = [each for each in pods if each["spec"].get("nodeName") == node.settings.node]
        evidence.append(RealEvidence(node, theirs))
    return judge(pods, evidence)


def environments(
    cluster: Cluster, pod: Mapping[str, Any], folders: Mapping[str, Path] | None = None
) -> dict[str, dict[str, str]]:
    """Return the environment of each container: of its process where it runs, else what it wrote to its log.

    Whoever asks for many pods looks for the `folders` once.
    """
    found = {}
    folders = folders_of(cluster) if folders is None else folders
    status = pod.get("status", {})
    for each in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        name, state = each["name"], each.get("state", {})
        if "running" in state:
            found[name] = environment_of(each["containerID"].removeprefix(RUNTIME), folders)
        elif "terminated" in state:
            meta = pod["metadata"]
            path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/log"
            found[name] = _variables(cluster.api.text(path, container=name).splitlines())
    return found


def folders_of(cluster: Cluster) -> dict[str, Path]:
    """Return the cgroup of each container (of each pod, too), by the last part of its path."""
    return {folder.name: folder for folder in container_folders(cluster.settings.cgroup)}


def environment_of(container_id: str, folders: Mapping[str, Path]) -> dict[str, str]:
    """Return the environment of a running container's first process, as the kernel has it."""
    process = min(_processes(container_id, folders))
    return _variables(Path(f"/proc/{process}/environ").read_text(errors="replace").split("\0"))


def processes_of(cluster: Cluster, container_id: str) -> set[int]:
    """Return a container's processes, by its cgroup."""
    return _processes(container_id, folders_of(cluster))


def _processes(container_id: str, folders: Mapping[str, Path]) -> set[int]:
    folder = folders.get(container_id)
    found = (folder / "cgroup.procs").read_text().split() if folder else []
    if not found:
        message = f"container {container_id} has no process"
        raise LookupError(message)
    return {int(each) for each in found}


def containers_of(cluster: Cluster, uid: str) -> dict[str, dict[str, str]]:
    """Return container ID -> environment of what runs of a pod now, by its cgroup; nobody has to be asked.

    The sandbox's own container is among them.
    """
    found = {}
    for folder in container_folders(cluster.settings.cgroup):
        if folder.parent.name == f"pod{uid}":
            try:
                pids = [int(each) for each in (folder / "cgroup.procs").read_text().split()]
                found[folder.name] = _variables(
                    Path(f"/proc/{min(pids)}/environ").read_text(errors="replace").split("\0")
                )
            except (OSError, ValueError):
                continue
    return found


def kill(cluster: Cluster, container_id: str) -> None:
    """End a container's processes without a warning, and return when they have ended."""
    found = [(pid, start_time(pid)) for pid in processes_of(cluster, container_id)]
    processes = [Started(pid=pid, start=start) for pid, start in found if start is not None]
    for each in processes:
        send(each, signal.SIGKILL)
    for each in processes:
        ended(each, 5)


def pod_resources(cluster: Cluster) -> dict[str, dict[str, dict[str, list[str]]]]:
    """Return pod -> container -> resource -> device IDs, from the kubelet's PodResources; pods with devices only."""
    found: dict[str, dict[str, dict[str, list[str]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with _lister(cluster) as lister:
        for pod in lister.List(wire.ListPodResourcesRequest(), timeout=5, wait_for_ready=True).pod_resources:
            for container in pod.containers:
                for device in container.devices:
                    found[pod.name][container.name][device.resource_name] += device.device_ids
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def listed(cluster: Cluster) -> set[str]:
    """Return the names of the pods that PodResources lists, devices or not."""
    with _lister(cluster) as lister:
        return {pod.name for pod in lister.List(wire.ListPodResourcesRequest(), timeout=5).pod_resources}


def allocatable(cluster: Cluster) -> dict[str, int]:
    """Return how many healthy devices of each resource the kubelet has now, given away or not."""
    counts: dict[str, int] = defaultdict(int)
    with _lister(cluster) as lister:
        for entry in lister.GetAllocatableResources(wire.AllocatableResourcesRequest(), timeout=5).devices:
            counts[entry.resource_name] += len(entry.device_ids)
    return dict(counts)


def gpus_of(ids: Mapping[str, list[str]]) -> set[str]:
    """Return the GPUs that a container's device IDs lie on."""
    return {each.partition("-")[0] for of_resource in ids.values() for each in of_resource}


@contextmanager
def _lister(cluster: Cluster) -> Iterator[PodResourcesListerStub]:
    with grpc.insecure_channel(f"unix:{cluster.settings.kubelet_dir}/pod-resources/kubelet.sock") as channel:
        yield PodResourcesListerStub(channel)  # type: ignore[no-untyped-call]


def _variables(lines: list[str]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in lines if "=" in line)
