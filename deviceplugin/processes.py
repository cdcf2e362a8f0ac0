"""Which pod and container a process belongs to, by its cgroup.

NVML names processes by number, the kernel names their cgroups in /proc, and a kubelet writes pod and container into the
cgroup's path. Every layout that kubelets and runtimes have is read by two patterns: the segment that names the pod, and
the first container ID after it.

==================  ==========================================================================================
cgroupfs            ``/kubepods/burstable/pod<uid>/<id>``
systemd             ``/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_>.slice/cri-containerd-<id>.scope``
CRI-O, docker       ``…/crio-<id>.scope``, ``…/docker-<id>.scope``
another namespace   ``/../../kubepods-burstable-pod<uid_>.slice/cri-containerd-<id>.scope``
==================  ==========================================================================================

The agent must see the host's processes (hostPID), or NVML's numbers mean nothing here; `ProcessMap.problem` tells.
"""

from __future__ import annotations

import os
import re
from typing import Final, Literal, NamedTuple

PROC: Final = "/proc"
_LONGEST: Final = 64 * 1024
"""Bytes of a cgroup file: a few lines of at most 4 KiB each."""
_LOOKED_AT: Final = 2048
"""Processes looked at to find one that is not ours; PID 1 is the first and nearly always enough."""

_POD: Final = re.compile(
    r"(?:^|[/:-])pod("
    r"[0-9a-f]{8}(?:[-_])[0-9a-f]{4}(?:[-_])[0-9a-f]{4}(?:[-_])[0-9a-f]{4}(?:[-_])[0-9a-f]{12}"
    r"|[0-9a-f]{32})"  # a static pod's UID is a hash of its file
    r"(?:\.slice)?(?=[/:]|$)",
    re.ASCII,
)
_CONTAINER: Final = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", re.ASCII)


class ContainerRef(NamedTuple):
    """A container as cgroups name it: the pod's UID, the container's ID without its runtime's prefix.

    `container` is "" for a process in the pod's cgroup that is in no container of it.
    """

    pod: str
    container: str


Place = ContainerRef | Literal["host", "gone"]
"""Where a process is: in a container of a pod, outside any pod, or no more."""


def parse_cgroup(text: str) -> ContainerRef | None:
    """Read the content of ``/proc/<pid>/cgroup``, of either version; None where no line names a pod."""
    for line in text.splitlines():
        path = line.split(":", 2)[-1]
        pod = _POD.search(path)
        if pod is None:
            continue
        container = _CONTAINER.search(path, pod.end())
        return ContainerRef(pod[1].replace("_", "-"), container[0] if container else "")
    return None


class ProcessMap:
    """Finds processes below one /proc."""

    def __init__(self, proc: str = PROC) -> None:
        """Say where the host's /proc is mounted."""
        self.root = proc

    def locate(self, pid: int) -> Place:
        """Where a process is right now."""
        text = self._cgroup(str(pid))
        if text is None:
            return "gone"
        return parse_cgroup(text) or "host"

    def problem(self) -> str | None:
        """Why processes can't be told apart here, None where they can.

        A process of another cgroup than our own is seen only from the host's PID namespace.
        """
        try:
            numbers = [name for name in os.listdir(self.root) if name.isascii() and name.isdecimal()]
        except OSError as error:
            return f"{self.root} can't be read: {error.strerror}"
        own = self._cgroup("self")
        if own is None:
            return None
        for name in sorted(numbers, key=int)[:_LOOKED_AT]:
            text = self._cgroup(name)
            if text is not None and text != own:
                return None
        return f"{self.root} shows only the node agent's own processes; its pod needs hostPID: true"

    def _cgroup(self, name: str) -> str | None:
        """A cgroup file's text; "" where the process is there and its cgroup is none of our business."""
        try:
            with open(os.path.join(self.root, name, "cgroup"), "rb") as file:
                return file.read(_LONGEST).decode("utf-8", "replace")
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
            return None
        except OSError:
            return ""
