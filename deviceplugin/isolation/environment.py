"""What the machine itself brings: looked at once at start, and again when asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, Self

import msgspec

from deviceplugin.isolation import cdi, runtime, toolkit
from deviceplugin.isolation.cdi import CdiDevices
from deviceplugin.isolation.toolkit import Run, Toolkit
from deviceplugin.processes import ProcessMap

Mode = Literal["cdi", "envvar", "volume-mounts"]
"""How a container gets its GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPaths:
    """Where the host's files are, seen from the agent. Make it with `under`."""

    root: str
    proc: str
    sysfs: str
    cgroup: str
    cdi: tuple[str, ...]
    containerd: tuple[str, ...]
    crio: tuple[str, ...]
    toolkit_programs: tuple[str, ...]
    toolkit_configs: tuple[str, ...]

    @classmethod
    def under(cls, root: str = "/", *, proc: str = "", sysfs: str = "", cgroup: str = "") -> Self:
        """The usual places below a root; proc, sysfs and cgroup may be named apart, since containers have their own."""

        def at(*paths: str) -> tuple[str, ...]:
            return tuple(os.path.join(root, path) for path in paths)

        return cls(
            root=root,
            proc=proc or os.path.join(root, "proc"),
            sysfs=sysfs or os.path.join(root, "sys"),
            cgroup=cgroup or os.path.join(root, "sys/fs/cgroup"),
            cdi=at("etc/cdi", "var/run/cdi"),
            containerd=at(
                "etc/containerd/config.toml",
                "var/lib/rancher/k3s/agent/etc/containerd/config.toml",
                "var/lib/rancher/rke2/agent/etc/containerd/config.toml",
            ),
            crio=at("etc/crio/crio.conf", "etc/crio/crio.conf.d"),
            # The second of each is where the GPU operator puts them.
            toolkit_programs=at("usr/bin/nvidia-ctk", "usr/local/nvidia/toolkit/nvidia-ctk"),
            toolkit_configs=at(
                "etc/nvidia-container-runtime/config.toml",
                "usr/local/nvidia/toolkit/.config/nvidia-container-runtime/config.toml",
            ),
        )


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        cgroup_v2: the unified hierarchy is mounted.
        cdi: what CDI specs offer. runtime_cdi: the runtime injects CDI devices; None where not known.
        toolkit: NVIDIA's.
        process_problem: why processes can't be told apart here, None where they can.
        mps: why no MPS daemon can be relied on, None where one can.
    """

    cgroup_v2: bool = False
    cdi: CdiDevices = CdiDevices()
    runtime_cdi: bool | None = None
    toolkit: Toolkit = Toolkit()
    process_problem: str | None = None
    mps: str | None = "MPS is off on this node (--mps-dir)"


async def survey(paths: HostPaths, *, runtime_version: str = "", run: Run = toolkit.run) -> Environment:
    """Look at the machine.

    Args:
        paths: where its files are.
        runtime_version: the Node's ``status.nodeInfo.containerRuntimeVersion``, "" where not known.
        run: how a program is run.
    """
    return Environment(
        cgroup_v2=_unified(paths.cgroup),
        cdi=cdi.read(paths.cdi),
        runtime_cdi=runtime.cdi_enabled(
            version=runtime_version, root=paths.root, containerd=paths.containerd, crio=paths.crio
        ),
        toolkit=await toolkit.probe(paths.toolkit_programs, paths.toolkit_configs, run),
        process_problem=ProcessMap(paths.proc).problem(),
    )


def _unified(cgroup: str) -> bool:
    """Only the unified hierarchy has this file at its root (cgroups(7)); a hybrid setup mounts it elsewhere."""
    return os.path.exists(os.path.join(cgroup, "cgroup.controllers"))
