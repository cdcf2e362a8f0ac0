"""Volcano's vGPU (volcano-vgpu-device-plugin, HAMi's core under Volcano's scheduler): amounts per GPU.

Sources: volcano-sh/volcano docs/user-guide/how_to_use_volcano_vgpu.md, pkg/scheduler/api/devices/nvidia/vgpu/utils.go.
The number defaults to 1; memory is MiB times the installer's factor, or a percentage; absent, all of the card's memory;
cores absent bind nothing. Older documents of Volcano call the memory ``volcano.sh/vgpu-memory`` where they mean the same.
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

COUNT: Final = "volcano.sh/vgpu-number"
MEMORY: Final = "volcano.sh/vgpu-memory"
PERCENT: Final = "volcano.sh/vgpu-memory-percentage"
CORES: Final = "volcano.sh/vgpu-cores"
_NAMES: Final = (COUNT, MEMORY, PERCENT, CORES)
_WISHES: Final = Wished(
    models=("volcano.sh/vgpu-use-gputype",),
    not_models=("volcano.sh/vgpu-nouse-gputype",),
    uuids=("volcano.sh/vgpu-use-gpuuuid",),
    not_uuids=("volcano.sh/vgpu-nouse-gpuuuid",),
    mig_modes=("volcano.sh/vgpu-mode",),
)


class VolcanoOptions(ForeignOptions, frozen=True, kw_only=True):
    """What the device plugin's installation could be told.

    Attributes:
        memory_factor: MiB that one ``vgpu-memory`` stands for (its ``--gpu-memory-factor``).
    """

    memory_factor: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1


def _container(container: ContainerReader, _pod: PodReader, context: Context) -> Reading | None:
    if not container.has(*_NAMES):
        return None
    memory = memory_in(container, MEMORY, context.option(VolcanoOptions).memory_factor * MIB)
    percent = container.percent(PERCENT)
    warnings = [*tiny_warning(memory, MEMORY, "memoryFactor")]
    if memory and percent:
        warnings.append(f"{PERCENT} is ignored beside {MEMORY}, as Volcano does")
    request = container_request(
        container=container.name,
        gpus=container.count(COUNT) or 1,
        memory=memory,
        memory_percent=None if memory else percent or 100,
        compute=container.percent(CORES),
        init=container.role == "init",
    )
    return (
        None
        if request is None
        else Reading(request=request, resources=container.present(_NAMES), warnings=tuple(warnings))
    )


def _baggage(pod: PodReader, context: Context) -> Baggage:
    return _WISHES.baggage(pod, context)


DIALECT: Final = Dialect(
    name="volcano",
    about="Volcano vGPU",
    options=VolcanoOptions,
    resources=frozenset(_NAMES),
    switch=COUNT,
    container=_container,
    baggage=_baggage,
)
