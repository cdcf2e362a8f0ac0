"""A second real node on the same machine: containerd and kubelet in a mount namespace of their own.

Each kubelet believes that /var/lib/kubelet is its own; here it is another folder, mounted over it for these processes only.
Both nodes share the machine's network namespace, so one kube-proxy serves both.
"""

from __future__ import annotations

import shlex
import shutil
import signal
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster import components, image, kernel
from cluster.cluster import CRI_SERVES, Cluster
from cluster.processes import ended, send
from cluster.settings import Settings

NODE = "n2"
CONTAINERD, KUBELET = "containerd-n2", "kubelet-n2"


def settings_of(first: Settings) -> Settings:
    """Where the second node lives, beside the first one and with the same control plane."""
    return replace(
        first,
        node=NODE,
        bridge=f"{first.bridge[:-1]}1",
        network=f"{first.network.rpartition('.')[0]}.1",
        cgroup=f"{first.cgroup}-{NODE}",
        kubelet_dir=first.home / NODE / "kubelet",
        control=first.address,
        apart=NODE,
    )


class SecondNode(AbstractContextManager["SecondNode"]):
    """A second node that runs during a block.

    Attributes:
        view: the cluster as seen from this node: its settings, its kubelet's folder, its containers.
    """

    def __init__(self, cluster: Cluster, *, archives: tuple[Path, ...], over: Mapping[Path, Path]) -> None:
        """Start nothing yet.

        Args:
            cluster: the first node and the control plane.
            archives: images for it.
            over: folders of this machine by what is mounted over them for the second node only.
        """
        self._first = cluster
        self._archives = archives
        self.view = cluster.beside(settings_of(cluster.settings))
        self._mounts = {self.view.settings.kubelet_dir: cluster.settings.kubelet_dir, **over}

    def __enter__(self) -> Self:
        """Start it, and wait until its Node is Ready; or leave nothing that runs."""
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self) -> None:
        settings = self.view.settings
        self.view.make_network()
        settings.kubelet_dir.mkdir(parents=True)
        self._start_containerd()
        busybox = settings.own / "busybox.tar"
        image.write_busybox(busybox)
        for archive in (busybox, *self._archives):
            self.view.ctr("images", "import", str(archive))
        self._start_kubelet()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it, and take its Node away."""
        self.view.processes.stop(KUBELET)
        if self.view.processes.alive(CONTAINERD):
            self.view.delete_containers()
        self.view.processes.stop(CONTAINERD)
        self._first.api.raw("DELETE", f"/api/v1/nodes/{NODE}")

    def reboot(self) -> None:
        """End everything on it at once and start it again; return when its Node is Ready."""
        processes, settings = self.view.processes, self.view.settings
        for name in (KUBELET, CONTAINERD):
            processes.kill(name)
        shims = processes.with_argument(str(settings.containerd_socket))
        ending = [*shims, *kernel.cgroup_processes(settings.cgroup)]
        for each in ending:
            send(each, signal.SIGKILL)
        for each in ending:
            ended(each, 10)
        # Its mounts went with its mount namespace.
        kernel.forget_cgroups(settings.cgroup)
        kernel.remove_ports(settings.bridge)
        shutil.rmtree(settings.containerd_root / "state", ignore_errors=True)
        self._start_containerd()
        self._start_kubelet()

    def _start_containerd(self) -> None:
        kubelet_dir = self._first.settings.kubelet_dir
        steps = [f"mount --bind {inside} {outside}" for inside, outside in self._mounts.items()]
        # What the kubelet mounts below it later is to be seen by containers.
        steps += [
            f"mount --make-rshared {kubelet_dir}",
            f"exec {shlex.join(components.containerd(self.view.settings))}",
        ]
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", " && ".join(steps)]
        processes = self.view.processes
        processes.start(CONTAINERD, command)
        processes.ready(CONTAINERD, lambda: CRI_SERVES in processes.said(CONTAINERD))

    def _start_kubelet(self) -> None:
        settings = replace(self.view.settings, kubelet_dir=self._first.settings.kubelet_dir)
        processes = self.view.processes
        inside = ["nsenter", f"--target={processes.pid(CONTAINERD)}", "--mount", "--"]
        processes.start(KUBELET, [*inside, *components.kubelet(settings, self._first.binaries)])
        processes.ready(KUBELET, self.view.node_ready, seconds=60)
