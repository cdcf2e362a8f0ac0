"""vgpu-manager (coldzerofear): number, MiB per GPU and percent of compute per GPU.

Source: coldzerofear/vgpu-manager README and pkg/util/consts.go. The number alone means whole cards; it defaults to 1. Memory
absent beside cores is all of the card's. The first README misspelt ``vgpu-cores`` as ``vgpu-core``; both are read.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from tessera.dialects.amounts import memory_in, tiny_warning
from tessera.dialects.dialect import Baggage, Context, Dialect, ForeignOptions, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.dialects.wished import Wished
from tessera.model.quantity import MIB
from tessera.model.request import container_request

COUNT: Final = "nvidia.com/vgpu-number"
MEMORY: Final = "nvidia.com/vgpu-memory"
CORES: Final = "nvidia.com/vgpu-cores"
_MISSPELT: Final = "nvidia.com/vgpu-core"
_NAMES: Final = (COUNT, MEMORY, CORES, _MISSPELT)
_WISHES: Final = Wished(
    models=("nvidia.com/include-gpu-type",),
    not_models=("nvidia.com/exclude-gpu-type",),
    uuids=("nvidia.com/include-gpu-uuid",),
    not_uuids=("nvidia.com/exclude-gpu-uuid",),
    policies=("nvidia.com/device-scheduler-policy",),
)


class VgpuManagerOptions(ForeignOptions, frozen=True, kw_only=True):
    """What vgpu-manager's installation could be told.

    Attributes:
        memory_factor: MiB that one ``vgpu-memory`` stands for.
    """

    memory_factor: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1


def _container(container: ContainerReader, _pod: PodReader, context: Context) -> Reading | None:
    gpus = container.count(COUNT)
    memory = memory_in(container, MEMORY, context.option(VgpuManagerOptions).memory_factor * MIB)
    cores = container.percent(CORES) or container.percent(_MISSPELT)
    if not (gpus or memory or cores):
        return None
    request = container_request(
        container=container.name,
        gpus=gpus or 1,
        memory=memory,
        memory_percent=100 if cores and not memory else None,
        compute=cores,
        init=container.role == "init",
    )
    return (
        None
        if request is None
        else Reading(
            request=request,
            resources=container.present(_NAMES),
            warnings=tiny_warning(memory, MEMORY, "memoryFactor"),
        )
    )


def _baggage(pod: PodReader, context: Context) -> Baggage:
    return _WISHES.baggage(pod, context)


DIALECT: Final = Dialect(
    name="vgpuManager",
    about="vgpu-manager",
    options=VgpuManagerOptions,
    resources=frozenset(_NAMES),
    switch=COUNT,
    container=_container,
    baggage=_baggage,
)
