"""What a container is started with, and the trace of its running that other programs can read.

No process is started. Instead each container gets a process number and a cgroup path, both written down in the kubelet's
directory (a `proc` folder that answers "which container does this process belong to" as /proc does), and hooks are called,
so that a fake NVML can be told of processes. The merged environment, mounts and devices are written to
``containers/<namespace>_<pod>_<uid>/<container>.json`` (a pod's name is cut there after 120 characters), for a checker that trusts nobody.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import msgspec

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from tessera.model.pod import Role
from tessera.testing.kubelet.devices import Allocation
from tessera.testing.kubelet.pods import Container, KubeletPod
from tessera.testing.kubelet.settings import Paths


class Mount(msgspec.Struct, frozen=True, rename="camel"):
    """A folder of the host in a container, as a plugin asked for it."""

    container_path: str
    host_path: str
    read_only: bool


class DeviceNode(msgspec.Struct, frozen=True, rename="camel"):
    """A device file of the host in a container, as a plugin asked for it."""

    container_path: str
    host_path: str
    permissions: str


class RunOptions(msgspec.Struct, frozen=True, rename="camel"):
    """The answers to a container's Allocate calls, merged into one."""

    env: dict[str, str]
    mounts: tuple[Mount, ...]
    devices: tuple[DeviceNode, ...]
    annotations: dict[str, str]
    cdi: tuple[str, ...]


class ContainerRecord(msgspec.Struct, frozen=True, rename="camel"):
    """One container as it was started.

    Attributes:
        state: ``running`` or ``exited``.
        exit_code: None while it runs; `ended_at` likewise.
        pid: the number of its first process, unique for the life of the fake.
        cgroup: its cgroup's path, as a kubelet with the cgroupfs driver lays it out.
        env: what its process sees: the plugin's variables, then those of the pod's spec, which win. Values that come from
            elsewhere (valueFrom) and ``$(NAME)`` are left out and left alone.
        plugin_env: the plugin's variables alone.
        mounts: the plugin's; volumes of the pod are not shown.
        device_ids: resource -> the IDs that the kubelet recorded, sorted.
    """

    namespace: str
    pod: str
    uid: str
    container: str
    role: Role
    container_id: str = msgspec.field(name="containerID")
    state: Literal["running", "exited"]
    exit_code: int | None
    restart_count: int
    started_at: str
    ended_at: str | None
    pid: int
    cgroup: str
    env: dict[str, str]
    plugin_env: dict[str, str]
    mounts: tuple[Mount, ...]
    devices: tuple[DeviceNode, ...]
    annotations: dict[str, str]
    cdi: tuple[str, ...]
    device_ids: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Hooks:
    """Called when a container has started and when it has ended; both return at once."""

    started: Callable[[ContainerRecord], None] = lambda _: None
    ended: Callable[[ContainerRecord], None] = lambda _: None


def combine(answers: Sequence[api.ContainerAllocateResponse], random: Random) -> RunOptions:
    """Merge the answers of a container's resources (deviceRunContainerOptions in pod_devices.go).

    The first one to name a variable, a path in the container, an annotation or a CDI device wins; who is first is random.
    """
    order = list(answers)
    random.shuffle(order)
    env: dict[str, str] = {}
    mounts: dict[str, Mount] = {}
    devices: dict[str, DeviceNode] = {}
    annotations: dict[str, str] = {}
    cdi: dict[str, None] = {}
    for answer in order:
        for name, value in answer.envs.items():
            env.setdefault(name, value)
        for device in answer.devices:
            node = DeviceNode(device.container_path, device.host_path, device.permissions)
            devices.setdefault(device.container_path, node)
        for mount in answer.mounts:
            mounts.setdefault(mount.container_path, Mount(mount.container_path, mount.host_path, mount.read_only))
        for name, value in answer.annotations.items():
            annotations.setdefault(name, value)
        cdi.update(dict.fromkeys(device.name for device in answer.cdi_devices))
    return RunOptions(env, tuple(mounts.values()), tuple(devices.values()), annotations, tuple(cdi))


class Runtime:
    """The container runtime: it outlives a kubelet's restart, as containerd does."""

    def __init__(self, paths: Paths, *, first_pid: int, hooks: Hooks, now: Callable[[], str]) -> None:
        """Start with no container; records that another run left in the folders are removed."""
        self._paths = paths
        self._next_pid = first_pid
        self._hooks = hooks
        self._now = now
        self._records: dict[tuple[str, str], ContainerRecord] = {}
        for folder in (paths.containers, paths.proc):
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder, mode=0o750)

    def start(
        self, pod: KubeletPod, container: Container, allocations: Mapping[str, Allocation], *, random: Random
    ) -> ContainerRecord:
        """Start a container with what the plugins answered."""
        options = combine([allocation.response for allocation in allocations.values()], random)
        before = self._records.get((pod.uid, container.name))
        restarts = 0 if before is None else before.restart_count + 1
        # Go's runtimes draw an ID; a hash keeps runs comparable.
        container_id = hashlib.sha256(f"{pod.uid}/{container.name}/{restarts}".encode()).hexdigest()
        record = ContainerRecord(
            namespace=pod.namespace,
            pod=pod.name,
            uid=pod.uid,
            container=container.name,
            role=container.role,
            container_id=f"containerd://{container_id}",
            state="running",
            exit_code=None,
            restart_count=restarts,
            started_at=self._now(),
            ended_at=None,
            pid=self._next_pid,
            cgroup=_cgroup(pod, container_id),
            env={**options.env, **container.env},
            plugin_env=options.env,
            mounts=options.mounts,
            devices=options.devices,
            annotations=options.annotations,
            cdi=options.cdi,
            device_ids={resource: tuple(sorted(held.ids)) for resource, held in sorted(allocations.items())},
        )
        self._next_pid += 1
        self._keep(record)
        self._write_process(record)
        self._hooks.started(record)
        return record

    def end(self, uid: str, container: str, exit_code: int) -> ContainerRecord | None:
        """End a container if it runs; tells how it ended, or None where it never started."""
        record = self._records.get((uid, container))
        if record is None or record.state == "exited":
            return record
        record = msgspec.structs.replace(record, state="exited", exit_code=exit_code, ended_at=self._now())
        shutil.rmtree(os.path.join(self._paths.proc, str(record.pid)), ignore_errors=True)
        self._keep(record)
        self._hooks.ended(record)
        return record

    def end_pod(self, uid: str, exit_code: int) -> None:
        """End every container of a pod."""
        for record in self.of_pod(uid):
            self.end(uid, record.container, exit_code)

    def forget_pod(self, uid: str) -> None:
        """Remove a pod's ended containers and their files."""
        for record in self.of_pod(uid):
            del self._records[uid, record.container]
            shutil.rmtree(self._folder(record), ignore_errors=True)

    def get(self, uid: str, container: str) -> ContainerRecord | None:
        return self._records.get((uid, container))

    def of_pod(self, uid: str) -> list[ContainerRecord]:
        return [record for (owner, _), record in self._records.items() if owner == uid]

    def records(self) -> list[ContainerRecord]:
        """Every container that was started and not forgotten."""
        return list(self._records.values())

    def running(self) -> frozenset[tuple[str, str]]:
        """(pod UID, container) of those that run."""
        return frozenset(key for key, record in self._records.items() if record.state == "running")

    def _folder(self, record: ContainerRecord) -> str:
        # A file's name has 255 bytes at most, and a pod's alone may have 253; the UID tells pods apart.
        return os.path.join(self._paths.containers, f"{record.namespace}_{record.pod[:120]}_{record.uid}")

    def _keep(self, record: ContainerRecord) -> None:
        self._records[record.uid, record.container] = record
        folder = self._folder(record)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"{record.container}.json")
        # A reader in another process must never see half a file.
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            json.dump(msgspec.to_builtins(record), file, indent=1, sort_keys=True)
        os.replace(f"{path}.tmp", path)

    def _write_process(self, record: ContainerRecord) -> None:
        folder = os.path.join(self._paths.proc, str(record.pid))
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "cgroup"), "w", encoding="utf-8") as file:
            file.write(f"0::{record.cgroup}\n")


def _cgroup(pod: KubeletPod, container_id: str) -> str:
    qos = pod.qos()
    parent = "" if qos == "Guaranteed" else f"/{qos.lower()}"
    return f"/kubepods{parent}/pod{pod.uid}/{container_id}"
