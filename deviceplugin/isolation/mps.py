"""The guarantee per process: an MPS server refuses memory above a client's limit and caps the SMs that it may fill.

Facts are NVIDIA's (Multi-Process Service, "MPS v2 Interface" and "Environment Variables"); what k8s-device-plugin's users
found is in brackets. One control daemon serves all GPUs of the node; a client finds it by CUDA_MPS_PIPE_DIRECTORY and
shares /dev/shm with it. CUDA_MPS_PINNED_DEVICE_MEM_LIMIT limits each *process*, so two processes of one container get the
slice twice (issues 594, 720); devices are named in it by the ordinals that the container sees (by UUID it was ignored,
issue 569). Both limits only tighten the daemon's defaults, and a program may drop its own: this holds the honest.

A client connects to the daemon's socket ``control`` and is handed a connection to the server (gvisor issues 14594, 14595 have
traces); it makes nothing in the pipe folder. So it gets the folder read-only: Linux lets it connect there, and even root in a
container can't remove the socket that the others need. NVIDIA's container toolkit mounted it so until 1.18.1 (its pull request
1593 changed that for nested runtimes' sake); k8s-device-plugin mounts it writable. /dev/shm has to be writable: there clients
and server share memory.

A GPU in the default compute mode takes a process that leaves MPS aside, with no limit at all, so nothing is claimed unless
its mode is EXCLUSIVE_PROCESS. That mode is the administrator's to set: it would outlive MPS, and keep pods from sharing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from deviceplugin.nvml.facts import GpuFacts
from tessera.model.quantity import MIB

VOLTA: Final = (7, 0)
"""The first compute capability whose MPS isolates clients' memory and knows limits."""
MOST_CLIENTS: Final = 48
"""Clients of one GPU: 48 since Volta, 60 with newer drivers on newer cards; what every one of them takes."""
PIPES: Final = "CUDA_MPS_PIPE_DIRECTORY"
MEMORY: Final = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
THREADS: Final = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
SHM: Final = "/dev/shm"  # noqa: S108 - where clients and server meet


def problem(gpu: GpuFacts, daemon: str | None) -> str | None:
    """Why this guarantee can't be given for one GPU, None where it can.

    Args:
        gpu: its facts.
        daemon: why the daemon can't be used, None where it can.
    """
    if gpu.mig_mode:
        return "MIG is on, and one MPS daemon serves whole GPUs"
    if gpu.capability is None or gpu.capability < VOLTA:
        return "MPS holds clients to limits since Volta (compute capability 7.0)"
    if daemon is not None:
        return daemon
    if not gpu.exclusive:
        return (
            "its compute mode lets processes in that leave MPS aside; set it with nvidia-smi -i "
            f"{gpu.index} -c EXCLUSIVE_PROCESS"
        )
    return None


def variables(pipes: str, *, memory: Sequence[int], compute: Sequence[int | None], whole: bool) -> dict[str, str]:
    """What a client's container gets.

    Args:
        pipes: the daemon's pipe folder, as the container sees it.
        memory: bytes of each of its GPUs. On cards of different sizes the least counts, for nobody can tell which ordinal
            is which.
        compute: percent of each; one number speaks for all, the least.
        whole: the GPUs are exclusive: it is a client like others, and needs no limit.
    """
    found = {PIPES: pipes}
    if whole:
        return found
    limit = min(memory) // MIB
    found[MEMORY] = ",".join(f"{ordinal}={limit}M" for ordinal in range(len(memory)))
    if asked := [each for each in compute if each]:
        found[THREADS] = str(min(asked))
    return found
