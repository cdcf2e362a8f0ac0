"""Aliyun's gpushare (open source) and ACK Pro's cGPU: ``aliyun.com/gpu-mem``, GiB by default, a total over the pod's count.

Sources: AliyunContainerService/gpushare-scheduler-extender (docs/userguide.md; the installer's memory unit) and Alibaba
Cloud's manual of ACK Pro ("Multi-GPU sharing", "Allocate computing power by scheduling shared GPU"). The count is a pod
label and means: so many cards, the total divided evenly. A resource ``aliyun.com/gpu-count`` does nothing in either; it
would keep the pod from ever running here.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Literal

from tessera.dialects.amounts import label_count, memory_of, memory_share, percent_of_one, share
from tessera.dialects.dialect import Baggage, Context, Dialect, ForeignOptions, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.dialects.trigger import Resource, Trigger
from tessera.model.errors import RequestError
from tessera.model.quantity import GIB, MIB
from tessera.model.request import container_request

MEMORY: Final = "aliyun.com/gpu-mem"
CORES: Final = "aliyun.com/gpu-core.percentage"
CARDS: Final = "aliyun.com/gpu"
COUNT: Final = "aliyun.com/gpu-count"
_MISSPELT: Final = "aliyun.com/gpu-core"
"""As manifests in the wild spell `CORES`; no node has ever advertised it."""
_NAMES: Final = (MEMORY, CORES, _MISSPELT, CARDS, COUNT)
_MODEL: Final = "aliyun.accelerator/nvidia_name"
_PLACEMENT: Final = "ack.node.gpu.placement"
"""How ACK's node places its slices; here each pod may say it."""
_POLICIES: Final = MappingProxyType({"binpack": "pack", "spread": "spread"})
_SELECTORS: Final = ("gpushare", "cgpu", "ack.node.gpu.schedule", _PLACEMENT, _MODEL)
_DISABLE: Final = "CGPU_DISABLE"


class AliyunOptions(ForeignOptions, frozen=True, kw_only=True):
    """What gpushare's installer could be told.

    Attributes:
        memory_unit: what one ``gpu-mem`` stands for. With GiB, what no card has in GiB is still read as MiB.
    """

    memory_unit: Literal["GiB", "MiB"] = "GiB"


def _container(container: ContainerReader, pod: PodReader, context: Context) -> Reading | None:
    total, cards = container.amount(MEMORY), container.count(CARDS)
    cores = container.count(CORES) or container.count(_MISSPELT)
    if total is None and cores is None and cards is None:
        return None
    init = container.role == "init"
    if cards is not None:
        if total is not None or cores is not None:
            raise RequestError(
                f"asks for {cards} whole cards ({CARDS}) and for a share ({MEMORY if total else CORES})",
                container=container.name,
                fix="keep one of the two",
            )
        request = container_request(container=container.name, gpus=cards, init=init)
        return None if request is None else Reading(request=request, resources=container.present(_NAMES))
    if total is None:
        raise RequestError(
            f"{CORES}: {cores} without {MEMORY}", container=container.name, fix=f"write {MEMORY} beside it"
        )
    gpus = label_count(pod, COUNT, container.name)
    each = memory_share(total, gpus, MEMORY, container.name)
    unit = GIB if context.option(AliyunOptions).memory_unit == "GiB" else MIB
    memory = memory_of(each, unit, MEMORY, container.name)
    warnings = (
        (f"{MEMORY}: {float(total):g} is more GiB than any card has; read as MiB",)
        if memory == each * MIB < each * unit
        else ()
    )
    request = container_request(
        container=container.name,
        gpus=gpus,
        memory=memory,
        compute=percent_of_one(share(cores or 0, gpus, CORES, container.name), CORES, container.name),
        init=init,
    )
    return None if request is None else Reading(request=request, resources=container.present(_NAMES), warnings=warnings)


def _baggage(pod: PodReader, context: Context) -> Baggage:
    warnings = [
        f'container "{container.name}": resource {COUNT} means nothing and is removed; the count is a pod label'
        for container in pod.containers
        if COUNT in container.resources
    ]
    if any((container.container.variable(_DISABLE) or "").lower() == "true" for container in pod.containers):
        warnings.append(f"{_DISABLE}=true has no effect here: the slice is held to its size by the node's guarantee")
    models = ",".join(pod.choices(_MODEL))
    policy = next((_POLICIES[each] for each in pod.choices(_PLACEMENT) if each in _POLICIES), "")
    ours = {context.names.gpu_models: models, context.names.gpu_placement: policy}
    return Baggage(
        annotations={name: value for name, value in ours.items() if value},
        selectors=_SELECTORS,
        resources=(COUNT,),
        warnings=tuple(warnings),
    )


def _trigger(_context: Context) -> Trigger:
    """The count alone asks nothing, and is left alone where nothing else asks."""
    return Resource(names=frozenset(_NAMES) - {COUNT})


DIALECT: Final = Dialect(
    name="aliyun",
    about="Aliyun gpushare, ACK Pro cGPU",
    options=AliyunOptions,
    resources=frozenset(_NAMES),
    container=_container,
    baggage=_baggage,
    trigger=_trigger,
)
