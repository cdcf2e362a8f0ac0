"""A second real node on the same machine: containerd and kubelet in a mount namespace of their own.

Each kubelet believes that /var/lib/kubelet is its own; here it is another folder, mounted over it for these processes only.
Both nodes share the machine's network namespace, so one kube-proxy serves both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cluster import components, image
from cluster.cluster import CRI_SERVES, Cluster
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
        apart=NODE,
    )


@contextmanager
def second_node(cluster: Cluster, *, archives: tuple[Path, ...], over: Mapping[Path, Path]) -> Iterator[Cluster]:
    """Run a second node during a block, and give a view of it.

    Args:
        cluster: the first node and the control plane.
        archives: images for it.
        over: folders of this machine by what is mounted over them for the second node only.
    """
    settings = settings_of(cluster.settings)
    view = cluster.beside(settings)
    view.make_network()
    settings.kubelet_dir.mkdir(parents=True)
    mounts = {settings.kubelet_dir: cluster.settings.kubelet_dir, **over}
    # The kubelet's volumes have to reach containers: what is mounted later below it is seen there.
    script = " && ".join(f"mount --bind {inside} {outside}" for inside, outside in mounts.items())
    script += f" && mount --make-rshared {cluster.settings.kubelet_dir} && exec " + " ".join(
        components.containerd(settings)
    )
    processes = view.processes
    processes.start(CONTAINERD, ["unshare", "--mount", "--propagation", "private", "sh", "-c", script])
    processes.ready(CONTAINERD, lambda: CRI_SERVES in processes.said(CONTAINERD))
    busybox = settings.own / "busybox.tar"
    image.write_busybox(busybox)
    for archive in (busybox, *archives):
        view.ctr("images", "import", str(archive))
    try:
        command = components.kubelet(replace(settings, kubelet_dir=cluster.settings.kubelet_dir), cluster.binaries)
        inside = ["nsenter", f"--target={processes.pid(CONTAINERD)}", "--mount", "--"]
        processes.start(KUBELET, [*inside, *command])
        processes.ready(KUBELET, view.node_ready, seconds=60)
        yield view
    finally:
        processes.stop(KUBELET, seconds=10)
        view.delete_containers()
        processes.stop(CONTAINERD)
        cluster.api.raw("DELETE", f"/api/v1/nodes/{NODE}")
