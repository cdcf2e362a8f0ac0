"""What a machine looks like, in the respects in which a cluster could leave something behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.kernel import CGROUPS, mounts_below, read_sysctls
from cluster.processes import MARKER

# Where a node's programs keep things unless they are told otherwise, or whatever they are told.
FOLDERS = (
    "/etc/cni",
    "/etc/kubernetes",
    "/opt/cni",
    "/opt/containerd",
    "/run/containerd",
    "/run/netns",
    "/usr/libexec/kubernetes",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
    "/var/run/kubernetes",
)


@dataclass(frozen=True)
class Snapshot:
    """One look.

    Attributes:
        things: what there is, each as a line that says its kind and name.
    """

    things: frozenset[str]

    def added(self, later: Snapshot) -> list[str]:
        """Return what a later look has more, changed values included."""
        return sorted(later.things - self.things)


def look() -> Snapshot:
    """Look at mounts, interfaces, marked processes, cgroups, firewall tables, folders and sysctls."""
    # Nothing of a cluster is mounted below /tmp, and other programs of this machine come and go there.
    things = [f"mount {point}" for point in mounts_below("") if not point.startswith("/tmp/")]  # noqa: S108
    things += [f"interface {name}" for name in os.listdir("/sys/class/net")]
    things += [f"process {line}" for line in _marked_processes()]
    things += [f"cgroup {path}" for root in CGROUPS.iterdir() if root.is_dir() for path in _children(root)]
    things += [f"folder {folder}" for folder in FOLDERS if os.path.exists(folder)]
    things += [f"sysctl {name} = {value}" for name, value in read_sysctls().items()]
    if shutil.which("nft"):
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
        things += [f"firewall {line}" for line in tables.splitlines()]
    return Snapshot(frozenset(things))


def _marked_processes() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"{MARKER}=".encode() in (entry / "environ").read_bytes():
                found.append(f"{entry.name} {(entry / 'comm').read_text().strip()}")
        except OSError:
            continue
    return found


def _children(root: Path) -> list[str]:
    return [str(each) for each in root.iterdir() if each.is_dir()]
