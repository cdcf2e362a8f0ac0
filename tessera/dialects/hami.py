"""HAMi and its ancestor 4paradigm's vGPU: ``nvidia.com/gpu`` with gpumem (MiB), gpumem-percentage and gpucores per GPU.

Sources: Project-HAMi/HAMi docs/config.md and pkg/device/nvidia/device.go. The count defaults to 1; gpumem wins over the
percentage; memory absent is all of it; cores absent bind nothing; all memory and no cores is an exclusive card. A plain
``nvidia.com/gpu`` belongs to NVIDIA's own plugin unless the pod says otherwise: HAMi's share names in one of its
containers, its annotations, or its scheduler.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from tessera.dialects.dialect import Baggage, Context, Dialect, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.model.config import DialectOptions
from tessera.model.quantity import MIB
from tessera.model.request import container_request

COUNT: Final = "nvidia.com/gpu"
MEMORY: Final = "nvidia.com/gpumem"
PERCENT: Final = "nvidia.com/gpumem-percentage"
CORES: Final = "nvidia.com/gpucores"
PRIORITY: Final = "nvidia.com/priority"
"""HAMi's task priority: a resource that no node of ours advertises."""
_SHARES: Final = (MEMORY, PERCENT, CORES)
_SCHEDULERS: Final = frozenset({"hami-scheduler", "4pd-scheduler", "vgpu-scheduler"})
_USE, _AVOID = "nvidia.com/use-gputype", "nvidia.com/nouse-gputype"
_USE_UUID, _AVOID_UUID = "nvidia.com/use-gpuuuid", "nvidia.com/nouse-gpuuuid"
_MODE: Final = "nvidia.com/vgpu-mode"
_POLICY: Final = "hami.io/gpu-scheduler-policy"
_OWN: Final = frozenset({_USE, _AVOID, _USE_UUID, _AVOID_UUID, _MODE, _POLICY, "hami.io/node-scheduler-policy"})


class HamiOptions(DialectOptions, frozen=True, kw_only=True):
    """What HAMi's own installation could be told.

    Attributes:
        memory_factor: MiB that one ``gpumem`` stands for (HAMi's installer can raise it to keep numbers small).
    """

    memory_factor: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1


def _container(container: ContainerReader, pod: PodReader, context: Context) -> Reading | None:
    gpus = container.count(COUNT, fix=f"write whole GPUs; a share is {PERCENT} or {MEMORY}")
    memory = container.count(MEMORY, fix="write whole MiB")
    percent = container.percent(PERCENT)
    cores = container.percent(CORES)
    if not (memory or percent or cores) and not (gpus and _spoken(pod)):
        return None
    if memory:
        percent = None  # as HAMi itself decides where both are written
    elif not percent:
        percent = 100
    whole = percent == 100 and not cores
    request = container_request(
        container=container.name,
        gpus=gpus or 1,
        memory=None if memory is None else memory * context.option(HamiOptions).memory_factor * MIB,
        memory_percent=percent,
        compute=100 if whole else cores,
        init=container.role == "init",
    )
    if request is None:
        return None
    names = (COUNT, *_SHARES, PRIORITY)
    return Reading(request=request, resources=tuple(name for name in names if name in container.resources))


def _spoken(pod: PodReader) -> bool:
    """Whether a plain ``nvidia.com/gpu`` in this pod is HAMi's."""
    return (
        pod.scheduler in _SCHEDULERS
        or not _OWN.isdisjoint(pod.annotations)
        or any(container.has(*_SHARES) for container in pod.containers)
    )


def _baggage(pod: PodReader, context: Context) -> Baggage:
    found, names = pod.annotations, context.names
    ours: dict[str, str] = {}
    warnings = []
    models = [part.strip() for part in found.get(_USE, "").split(",") if part.strip()]
    models += [f"-{part.strip()}" for part in found.get(_AVOID, "").split(",") if part.strip()]
    if models:
        ours[names.gpu_models] = ",".join(models)
    if found.get(_USE_UUID, "").strip():
        ours[names.gpu_uuids] = found[_USE_UUID]
    if found.get(_AVOID_UUID, "").strip():
        warnings.append(f"{_AVOID_UUID} has no equivalent and is not honoured; {names.gpu_uuids} names GPUs to use")
    policy = {"binpack": "pack", "spread": "spread"}.get(found.get(_POLICY, ""))
    if policy:
        ours[names.gpu_placement] = policy
    if found.get(_MODE) == "mig":
        warnings.append(f"{_MODE}: mig asks for hardware isolation, which a slice is not; ask for a MIG instance")
    return Baggage(annotations=ours, warnings=tuple(warnings))


DIALECT: Final = Dialect(
    name="hami",
    about="HAMi, 4paradigm vGPU",
    options=HamiOptions,
    resources=frozenset({COUNT, *_SHARES, PRIORITY}),
    annotations=_OWN,
    container=_container,
    baggage=_baggage,
)
