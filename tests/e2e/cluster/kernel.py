"""What a cluster changes in the kernel: the bridge, mounts, cgroups and sysctls. Each is recorded first, then done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import ClusterError
from cluster.processes import ended, send, start_time
from cluster.record import Record, Started

CGROUPS = Path("/sys/fs/cgroup")
SYSTEM = 6
"""Processes of the system that are busy at the same time: API server, etcd, controllers, scheduler, kubelet, containerd."""
SYSCTLS = Path("/proc/sys")

# What the kubelet (container manager), the bridge plugin and kube-proxy set, and nobody sets back.
CHANGED = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/forwarding",
    "net/ipv4/conf/default/forwarding",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/forwarding",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
)


def keep_sysctls(record: Record) -> None:
    """Write down what the cluster's programs will change."""
    record.sysctls = read_sysctls()
    record.save()


def read_sysctls() -> dict[str, str]:
    """Return the present values of what the cluster's programs change."""
    return {name: (SYSCTLS / name).read_text().strip() for name in CHANGED if (SYSCTLS / name).exists()}


def restore_sysctls(record: Record) -> None:
    """Set back what has changed, ip_forward first: writing it sets the others."""
    for name in sorted(record.sysctls, key=lambda each: each != "net/ipv4/ip_forward"):
        path = SYSCTLS / name
        if path.exists() and path.read_text().strip() != record.sysctls[name]:
            path.write_text(record.sysctls[name])
    record.sysctls = {}


def make_folder(record: Record, path: Path) -> None:
    """Make a folder, and remember to remove it if it wasn't there."""
    if not path.exists():
        record.note("folders", str(path))
        path.mkdir(parents=True, mode=0o755)


def make_bridge(record: Record, name: str, address: str) -> None:
    """Make a bridge with an address; it reaches nothing but this machine."""
    if Path(f"/sys/class/net/{name}").exists():
        raise ClusterError(f"there is an interface {name} that this program did not make")
    record.note("links", name)
    _ip("link", "add", name, "type", "bridge")
    _ip("addr", "add", f"{address}/24", "dev", name)
    _ip("link", "set", name, "up")


def remove_links(record: Record) -> None:
    """Take away the interfaces that were made."""
    for name in record.links:
        if Path(f"/sys/class/net/{name}").exists():
            remove_ports(name)
            _ip("link", "del", name)
    record.links = []


def remove_ports(bridge: str) -> None:
    """Take away the pods' interfaces on a bridge.

    They go with their network namespaces; but one of a pod that was killed lives on while a connection of it is waited for.
    """
    for port in Path(f"/sys/class/net/{bridge}/brif").iterdir():
        subprocess.run(["ip", "link", "del", port.name], capture_output=True, check=False)


def mount_tmpfs(record: Record, path: Path, size: str) -> None:
    """Mount memory on a folder."""
    record.note("mounts", str(path))
    path.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(path))


def mounts_below(*tops: str) -> list[str]:
    """Return mount points at or below folders, the innermost and latest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # Blanks and the like are written as octal escapes.
        point = line.split()[4].encode().decode("unicode_escape")
        if any(point == top or point.startswith(f"{top}/") for top in tops):
            found.append(point)
    return found[::-1]


def unmount(record: Record) -> None:
    """Unmount everything at and below the recorded mount points."""
    unmount_below(*record.mounts)
    record.mounts = []


def unmount_below(*tops: str) -> None:
    """Unmount everything at and below some folders."""
    for point in mounts_below(*tops):
        done = subprocess.run(["umount", point], capture_output=True, text=True, check=False)
        if done.returncode:
            subprocess.run(["umount", "-l", point], capture_output=True, check=False)
    left = mounts_below(*tops)
    if left:
        raise ClusterError(f"still mounted: {', '.join(left)}")


def make_cgroup(record: Record, name: str) -> None:
    """Make a cgroup in every controller's hierarchy (cgroup v1), or in the one there is (v2)."""
    record.note("cgroups", name)
    for root in _hierarchies():
        path = root / name
        path.mkdir(exist_ok=True)
        # A new cpuset is empty, and nothing can run in it.
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (root / setting).exists() and (path / setting).exists():
                (path / setting).write_text((root / setting).read_text())
        _weigh(path)
        control = root / "cgroup.subtree_control"
        if control.exists() and root == CGROUPS:
            wanted = (root / "cgroup.controllers").read_text().split()
            control.write_text(" ".join(f"+{each}" for each in wanted))


def _weigh(path: Path) -> None:
    """Give the pods the part of the processors that a node gives them.

    There they weigh 1024 for each processor, against 1024 of a system slice with the kubelet and the runtime in it. Here
    those, and the control plane, are processes of the root cgroup, where each single one weighs as much as such a slice.
    """
    times = SYSTEM * (os.cpu_count() or 1)
    # Each with its own unit and its largest value; 1024 of cgroup v1 are 100 of v2.
    for name, value in (("cpu.shares", min(1024 * times, 262_144)), ("cpu.weight", min(100 * times, 10_000))):
        if (path / name).exists():
            (path / name).write_text(str(value))


def cgroup_folders(name: str) -> list[Path]:
    """Return every folder of a cgroup, in every hierarchy, children before parents."""
    return [folder for root in _hierarchies() for folder in _below(root / name)]


def container_folders(name: str) -> list[Path]:
    """Return every folder of a cgroup in one hierarchy: a container has a folder of the same name in each of them."""
    return _below(next(_hierarchies()) / name)


def _below(top: Path) -> list[Path]:
    return [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]


def cgroup_processes(name: str) -> list[Started]:
    """Return the processes in a cgroup and below."""
    pids: set[int] = set()
    for folder in cgroup_folders(name):
        try:
            pids.update(int(each) for each in (folder / "cgroup.procs").read_text().split())
        except OSError:
            continue
    return [Started(pid=pid, start=start) for pid in pids if (start := start_time(pid)) is not None]


def remove_cgroups(record: Record) -> None:
    """End what still runs in our cgroups (nothing but the pods' containers can), and remove them."""
    for name in record.cgroups:
        left = cgroup_processes(name)
        for process in left:
            send(process, signal.SIGKILL)
        for process in left:
            ended(process, 5)
        for folder in cgroup_folders(name):
            folder.rmdir()
    record.cgroups = []


def forget_cgroups(name: str) -> None:
    """Remove what is below a cgroup, which is empty of processes; it stays itself."""
    tops = {root / name for root in _hierarchies()}
    for folder in cgroup_folders(name):
        if folder not in tops:
            folder.rmdir()


def remove_folders(record: Record) -> None:
    """Remove the folders that were made; never into something that is mounted."""
    for name in record.folders:
        mounted = mounts_below(name)
        if mounted:
            raise ClusterError(f"{name} is not removed: {', '.join(mounted)} is still mounted")
        shutil.rmtree(name, ignore_errors=True)
    record.folders = []


def _hierarchies() -> Iterator[Path]:
    if (CGROUPS / "cgroup.controllers").exists():
        yield CGROUPS
        return
    for path in sorted(CGROUPS.iterdir()):
        # cpu -> cpu,cpuacct is a link where both are one hierarchy.
        if path.is_dir() and not path.is_symlink() and (path / "cgroup.procs").exists():
            yield path


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
