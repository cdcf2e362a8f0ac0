"""What a container gets with its slice: devices, environment and mounts (contract, section 2a), as plain values.

The output contract stands here alone; the server that answers the kubelet copies it into its message and the tests read it.

Devices come by one way only, and the others are shut: with ``cdi`` and ``volume-mounts`` NVIDIA_VISIBLE_DEVICES is
``void``, at which nvidia-container-runtime behaves like plain runc. An image's own ``all`` (every CUDA base image has it)
would otherwise show the container every GPU of the node. NVIDIA's CDI specs set the same value, and where the toolkit
accepts mounts they go before the variable, so nothing is taken from the container by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from deviceplugin.errors import RefusedError
from deviceplugin.isolation import kernel, mps
from deviceplugin.isolation.cdi import KIND
from deviceplugin.isolation.environment import Mode
from deviceplugin.nvml.facts import GpuFacts
from deviceplugin.slices import Given, Slice
from tessera.model.errors import AnnotationError
from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.names import Names
from tessera.model.quantity import GIB
from tessera.model.request import PodRequest, decode

GPU_IDS: Final = "TESSERA_GPU_IDS"
GPU_MEMORY: Final = "TESSERA_GPU_MEMORY_BYTES"
GPU_COMPUTE: Final = "TESSERA_GPU_COMPUTE"
VISIBLE: Final = "NVIDIA_VISIBLE_DEVICES"
NOTHING_VISIBLE: Final = "void"
DEVICE_MOUNTS: Final = "/var/run/nvidia-container-devices"
"""Where nvidia-container-runtime looks for devices asked for by mounts; what is mounted there is /dev/null."""
ALIYUN: Final = "aliyun"
ALIYUN_CONTAINER: Final = "ALIYUN_COM_GPU_MEM_CONTAINER"
ALIYUN_DEVICE: Final = "ALIYUN_COM_GPU_MEM_DEV"
ALIYUN_INDEX: Final = "ALIYUN_COM_GPU_MEM_IDX"
ALIYUN_POD: Final = "ALIYUN_COM_GPU_MEM_POD"


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A path of the host shown to the container."""

    container_path: str
    host_path: str
    read_only: bool = True


class DeviceNode(msgspec.Struct, frozen=True, kw_only=True):
    """A device node of the host given to the container; `permissions` as in cgroups, ``rw``."""

    container_path: str
    host_path: str
    permissions: str = "rw"


class Injection(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one container is given; `cdi_devices` are fully qualified names."""

    envs: dict[str, str]
    mounts: tuple[Mount, ...] = ()
    devices: tuple[DeviceNode, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    annotations: dict[str, str] = {}


class Portion(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU's part of what a container holds.

    Attributes:
        uuid: of the GPU, or of the MIG instance. index: NVML's. card: bytes of the whole GPU (of the instance).
        memory: bytes held. compute: percent reserved, 0 and None where none was asked. mig: it is an instance.
        whole: the GPU is exclusive.
    """

    uuid: str
    index: int
    card: int
    memory: int
    compute: int | None
    mig: bool = False
    whole: bool = False


class MpsFolders(msgspec.Struct, frozen=True, kw_only=True):
    """What clients of the node's MPS daemon are shown of the host: its pipes (at the same path), and /dev/shm."""

    pipes: str
    shared: str


class AliyunAmounts(msgspec.Struct, frozen=True, kw_only=True):
    """What pods in Aliyun's dialect are told in: bytes of one unit of gpu-mem, and bytes that the whole pod asked for."""

    unit: int = GIB
    pod: int = 0


def injection(
    portions: Sequence[Portion],
    *,
    guarantees: Guarantees,
    mode: Mode,
    aliyun: AliyunAmounts | None = None,
    folders: MpsFolders | None = None,
) -> Injection:
    """What a container with these portions gets.

    Args:
        portions: in the plan's order, at least one.
        guarantees: what its GPUs are promised; the weakest where they differ.
        mode: how devices are injected.
        aliyun: set where the request came in Aliyun's dialect.
        folders: the MPS daemon's, where the container is to be its client.

    Raises:
        RefusedError: no portion at all: a container without devices would see all of them or none, by chance.
    """
    if not portions:
        raise RefusedError("the container's slice has no GPU that this node still has; delete the pod to place it anew")
    uuids = [portion.uuid for portion in portions]
    envs = {
        GPU_IDS: ",".join(uuids),
        GPU_MEMORY: ",".join(str(portion.memory) for portion in portions),
        GPU_COMPUTE: ",".join(str(portion.compute) if portion.compute else "" for portion in portions),
    }
    if not any(portion.compute for portion in portions):
        envs[GPU_COMPUTE] = ""
    if guarantees.memory is Guarantee.KERNEL and not any(portion.mig for portion in portions):
        envs |= kernel.variables(portion.memory for portion in portions)
    if aliyun is not None:
        envs |= _aliyun(portions, aliyun)
    shared: tuple[Mount, ...] = ()
    if folders is not None:
        envs |= mps.variables(
            folders.pipes,
            memory=[portion.memory for portion in portions],
            compute=[portion.compute for portion in portions],
            whole=all(portion.whole for portion in portions),
        )
        shared = (
            Mount(container_path=folders.pipes, host_path=folders.pipes, read_only=True),
            Mount(container_path=mps.SHM, host_path=folders.shared, read_only=False),
        )
    match mode:
        case "cdi":
            return Injection(
                envs=envs | {VISIBLE: NOTHING_VISIBLE},
                mounts=shared,
                cdi_devices=tuple(f"{KIND}={uuid}" for uuid in uuids),
            )
        case "volume-mounts":
            mounts = tuple(Mount(container_path=f"{DEVICE_MOUNTS}/{uuid}", host_path="/dev/null") for uuid in uuids)
            return Injection(envs=envs | {VISIBLE: NOTHING_VISIBLE}, mounts=mounts + shared)
        case "envvar":
            return Injection(envs=envs | {VISIBLE: ",".join(uuids)}, mounts=shared)


def _aliyun(portions: Sequence[Portion], amounts: AliyunAmounts) -> dict[str, str]:
    """The variables that programs written for gpushare and cGPU read to limit themselves.

    As its device plugin has them: amounts per GPU in units of gpu-mem (GiB, or MiB by install flag), the card's total rounded
    down (15 for a T4's 15360 MiB), the index of the GPU, and what all containers of the pod asked for together.
    """
    own = min(portion.memory for portion in portions)
    return {
        ALIYUN_CONTAINER: str(own // amounts.unit),
        ALIYUN_DEVICE: str(min(portion.card for portion in portions) // amounts.unit),
        ALIYUN_INDEX: ",".join(str(portion.index) for portion in portions),
        ALIYUN_POD: str(max(amounts.pod, sum(portion.memory for portion in portions)) // amounts.unit),
    }


class Injector:
    """Makes the injection of what the allocator gave, from what is known of the node now."""

    def __init__(self, names: Names, *, aliyun_unit: int = GIB) -> None:
        """Know no GPU yet; see `update`.

        Args:
            names: of the installation.
            aliyun_unit: bytes of one ``aliyun.com/gpu-mem``.
        """
        self._names = names
        self._aliyun_unit = aliyun_unit
        self._facts: dict[str, GpuFacts] = {}
        self._guarantees: dict[str, Guarantees] = {}
        self.mode: Mode = "envvar"
        self._folders: MpsFolders | None = None
        self._clients: frozenset[str] = frozenset()

    def update(self, facts: Sequence[GpuFacts], *, guarantees: Mapping[str, Guarantees], mode: Mode) -> None:
        """Take new facts, the guarantee of each GPU by id, and how devices are injected."""
        self._facts = {gpu.id: gpu for gpu in facts}
        self._guarantees = dict(guarantees)
        self.mode = mode

    def share_by_mps(self, gpus: Iterable[str], folders: MpsFolders) -> None:
        """Make clients of the MPS daemon of all containers on these GPUs.

        Whether the daemon runs at that moment doesn't matter: a container keeps what it is given here, and on an exclusive
        GPU one that isn't a client keeps all others out.
        """
        self._clients, self._folders = frozenset(gpus), folders

    def inject(self, given: Given) -> Injection:
        """What the container gets.

        Raises:
            RefusedError: it holds nothing on a GPU or MIG instance that the node has.
        """
        portions = [portion for piece in given.slices if (portion := self._portion(piece)) is not None]
        return injection(
            portions,
            guarantees=self.guarantees(piece.gpu.id for piece in given.slices),
            mode=self.mode,
            aliyun=self._amounts(given),
            folders=self._folders if self._clients.issuperset(piece.gpu.id for piece in given.slices) else None,
        )

    def guarantees(self, gpus: Iterable[str]) -> Guarantees:
        """What a container on these GPUs is promised: the weakest of each dimension."""
        found = [self._guarantees.get(gpu, Guarantees()) for gpu in gpus] or [Guarantees()]
        return Guarantees(
            memory=_weakest(each.memory for each in found), compute=_weakest(each.compute for each in found)
        )

    def _portion(self, piece: Slice) -> Portion | None:
        if piece.instance is not None:
            facts = self._facts.get(piece.gpu.id)
            parts = [] if facts is None else [part for part in facts.mig if part.id == piece.instance]
            return next(
                (
                    Portion(
                        uuid=part.uuid,
                        index=piece.gpu.index,
                        card=part.memory,
                        memory=part.memory,
                        compute=None,
                        mig=True,
                    )
                    for part in parts
                ),
                None,
            )
        return Portion(
            uuid=piece.gpu.uuid,
            index=piece.gpu.index,
            card=piece.gpu.memory,
            memory=(piece.units or 0) * self._names.memory_unit,
            compute=piece.compute,
            whole=piece.whole,
        )

    def _amounts(self, given: Given) -> AliyunAmounts | None:
        """Whether the container speaks Aliyun's dialect, by the webhook's annotation."""
        text = given.pod.metadata.annotation(self._names.request) if given.pod is not None else None
        if text is None:
            return None
        try:
            annotated = decode(text)
        except AnnotationError:
            return None
        mine = annotated.containers.get(given.container)
        if mine is None or (mine.dialect or annotated.dialect) != ALIYUN:
            return None
        return AliyunAmounts(unit=self._aliyun_unit, pod=_pod_memory(annotated))


def _pod_memory(request: PodRequest) -> int:
    return sum(asked.gpus * (asked.memory or 0) for asked in request.containers.values())


def _weakest(guarantees: Iterable[Guarantee]) -> Guarantee:
    order = tuple(Guarantee)
    return max(guarantees, key=order.index)
