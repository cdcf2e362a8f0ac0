"""HAMi and its ancestor 4paradigm's vGPU: ``nvidia.com/gpu`` with gpumem (MiB), gpumem-percentage and gpucores per GPU.

Sources: Project-HAMi/HAMi docs/config.md and pkg/device/nvidia/device.go. The count defaults to 1; gpumem wins over the
percentage; memory absent is all of it; cores absent bind nothing; all memory and no cores is an exclusive card. A plain
``nvidia.com/gpu`` belongs to NVIDIA's own plugin unless the pod says otherwise: HAMi's share names in one of its
containers, its annotations, or its scheduler.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from tessera.dialects.amounts import memory_in, tiny_warning
from tessera.dialects.dialect import Baggage, Context, Dialect, ForeignOptions, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.dialects.trigger import (
    TOLERATES_VIRTUAL,
    VIRTUAL,
    Not,
    Resource,
    Scheduler,
    Text,
    Trigger,
    all_of,
    any_of,
)
from tessera.dialects.wished import Wished
from tessera.model.errors import RequestError
from tessera.model.quantity import MIB
from tessera.model.request import container_request

COUNT: Final = "nvidia.com/gpu"
MEMORY: Final = "nvidia.com/gpumem"
PERCENT: Final = "nvidia.com/gpumem-percentage"
CORES: Final = "nvidia.com/gpucores"
PRIORITY: Final = "nvidia.com/priority"
"""HAMi's task priority: a resource that no node of ours advertises."""
_SHARES: Final = (MEMORY, PERCENT, CORES)
_SCHEDULERS: Final = frozenset({"hami-scheduler", "4pd-scheduler"})
_MODE: Final = "nvidia.com/vgpu-mode"
WISHES: Final = Wished(
    models=("nvidia.com/use-gputype",),
    not_models=("nvidia.com/nouse-gputype",),
    uuids=("nvidia.com/use-gpuuuid",),
    not_uuids=("nvidia.com/nouse-gpuuuid",),
    indexes=("nvidia.com/use-gpuindexes", "nvidia.com/nouse-gpuindexes"),
    policies=("hami.io/gpu-scheduler-policy",),
    numa=("nvidia.com/numa-bind",),
    mig_modes=(_MODE,),
)
_OWN: Final = WISHES.annotations | {"hami.io/node-scheduler-policy"}


class HamiOptions(ForeignOptions, frozen=True, kw_only=True):
    """What HAMi's own installation could be told.

    Attributes:
        memory_factor: MiB that one ``gpumem`` stands for (HAMi's installer can raise it to keep numbers small).
    """

    memory_factor: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1


def _container(container: ContainerReader, pod: PodReader, context: Context) -> Reading | None:
    shared = container.has(*_SHARES)
    if not shared and (pod.tolerates_virtual or not container.has(COUNT) or not _spoken(pod)):
        return None
    gpus = container.count(COUNT, fix=f"write whole GPUs; a share is {PERCENT} or {MEMORY}")
    memory = memory_in(container, MEMORY, context.option(HamiOptions).memory_factor * MIB)
    percent = container.percent(PERCENT)
    cores = container.percent(CORES)
    warnings = [*tiny_warning(memory, MEMORY, "memoryFactor")]
    if memory:
        if percent:
            warnings.append(f"{PERCENT} is ignored beside {MEMORY}, as HAMi does")
        percent = None
    elif not percent:
        percent = 100
    whole = percent == 100 and not cores
    if not whole:
        _refuse_privileged(container)
    request = container_request(
        container=container.name,
        gpus=gpus or 1,
        memory=memory,
        memory_percent=percent,
        compute=100 if whole else cores,
        init=container.role == "init",
    )
    if request is None:
        return None
    names = (COUNT, *_SHARES, PRIORITY)
    taken = tuple(name for name in names if name in container.resources)
    return Reading(request=request, resources=taken, warnings=tuple(warnings))


def _spoken(pod: PodReader) -> bool:
    """Whether a plain ``nvidia.com/gpu`` in this pod is HAMi's."""
    return (
        pod.scheduler in _SCHEDULERS
        or not _OWN.isdisjoint(pod.annotations)
        or any(PRIORITY in container.resources or container.has(*_SHARES) for container in pod.containers)
    )


def _refuse_privileged(container: ContainerReader) -> None:
    security = container.container.security_context
    if security is not None and security.privileged:
        raise RequestError(
            "is privileged and asks for a share of a GPU, but would see all of every GPU",
            container=container.name,
            fix="drop securityContext.privileged and add the capabilities that it needs",
        )


def _baggage(pod: PodReader, context: Context) -> Baggage:
    return msgspec.structs.replace(WISHES.baggage(pod, context), resources=(PRIORITY,))


def _trigger(_context: Context) -> Trigger:
    """A share in HAMi's names, or a plain card in a pod that is HAMi's by another sign (see `_spoken`)."""
    signs = any_of(
        Scheduler(_SCHEDULERS),
        Text(where="annotations", names=_OWN),
        Resource(names=frozenset({PRIORITY}), amount="any"),
    )
    plain = all_of(Resource(names=frozenset({COUNT})), signs, Not(TOLERATES_VIRTUAL))
    return all_of(Not(VIRTUAL), any_of(Resource(names=frozenset(_SHARES)), plain))


DIALECT: Final = Dialect(
    name="hami",
    about="HAMi, 4paradigm vGPU",
    options=HamiOptions,
    resources=frozenset({COUNT, *_SHARES, PRIORITY}),
    annotations=_OWN,
    switch=COUNT,
    container=_container,
    baggage=_baggage,
    trigger=_trigger,
)
