"""Aliyun's gpushare (open source) and ACK Pro's cGPU: ``aliyun.com/gpu-mem``, GiB by default, a total over the pod's count.

Sources: AliyunContainerService/gpushare-scheduler-extender (docs/userguide.md; the installer's memory unit) and Alibaba
Cloud's documentation of ACK Pro's cGPU. The count is a pod label and means: so many cards, the total divided evenly.
A resource ``aliyun.com/gpu-count`` does nothing in either; it would keep the pod from ever running here.
"""

from __future__ import annotations

from typing import Final, Literal

from tessera.dialects.dialect import Baggage, Context, Dialect, Reading
from tessera.dialects.reader import ContainerReader, PodReader, as_count
from tessera.model.config import DialectOptions
from tessera.model.errors import RequestError
from tessera.model.quantity import GIB, MIB
from tessera.model.request import container_request

MEMORY: Final = "aliyun.com/gpu-mem"
CORES: Final = "aliyun.com/gpu-core.percentage"
CARDS: Final = "aliyun.com/gpu"
COUNT: Final = "aliyun.com/gpu-count"
LARGEST_GIB: Final = 1024
"""GiB above any card there is: such a number was written for an installation that counts MiB."""
_SELECTORS: Final = ("gpushare", "cgpu", "ack.node.gpu.schedule")
_DISABLE: Final = "CGPU_DISABLE"


class AliyunOptions(DialectOptions, frozen=True, kw_only=True):
    """What gpushare's installer could be told.

    Attributes:
        memory_unit: what one ``gpu-mem`` stands for. With GiB, a number above 1024 is still read as MiB.
    """

    memory_unit: Literal["GiB", "MiB"] = "GiB"


def _container(container: ContainerReader, pod: PodReader, context: Context) -> Reading | None:
    total = container.amount(MEMORY)
    cores = container.count(CORES)
    cards = container.count(CARDS)
    if total is None and cores is None and cards is None:
        return None
    taken = tuple(name for name in (MEMORY, CORES, CARDS, COUNT) if name in container.resources)
    init = container.role == "init"
    if total is None:
        if cores is not None:
            raise RequestError(
                f"{CORES}: {cores} without {MEMORY}", container=container.name, fix=f"write {MEMORY} beside it"
            )
        request = container_request(container=container.name, gpus=cards, init=init)
        return None if request is None else Reading(request=request, resources=taken)
    if cards is not None:
        raise RequestError(
            f"asks for {cards} whole cards ({CARDS}) and for a share of memory ({MEMORY})",
            container=container.name,
            fix="keep one of the two",
        )
    gpus = _gpus(pod)
    warnings = []
    unit = GIB
    if context.option(AliyunOptions).memory_unit == "MiB":
        unit = MIB
    elif total > LARGEST_GIB:
        unit = MIB
        warnings.append(f"{MEMORY}: {float(total):g} is more GiB than any card has; read as MiB")
    memory = container.scaled(MEMORY, unit) or 0
    for label, amount in ((MEMORY, total), (CORES, cores or 0)):
        if gpus > 1 and amount % gpus:
            raise RequestError(
                f"{label}: a total of {float(amount):g} does not divide evenly over {gpus} GPUs",
                container=container.name,
                fix=f"write a multiple of {gpus}",
            )
    request = container_request(
        container=container.name,
        gpus=gpus,
        memory=memory // gpus,
        compute=None if cores is None else cores // gpus,
        init=init,
    )
    return None if request is None else Reading(request=request, resources=taken, warnings=tuple(warnings))


def _gpus(pod: PodReader) -> int:
    """The number of cards, by the pod's label."""
    text = pod.labels.get(COUNT)
    if text is None:
        return 1
    found = pod.text_amount(text, f"label {COUNT}")
    return 1 if found is None else as_count(found, f"label {COUNT}", container="")


def _baggage(pod: PodReader, _context: Context) -> Baggage:
    warnings = [
        f'container "{container.name}": resource {COUNT} means nothing and is removed; the count is a pod label'
        for container in pod.containers
        if COUNT in container.resources
    ]
    if any(container.container.variable(_DISABLE) == "true" for container in pod.containers):
        warnings.append(f"{_DISABLE}=true has no effect here: the slice is held to its size by the node's guarantee")
    return Baggage(selectors=_SELECTORS, warnings=tuple(warnings))


DIALECT: Final = Dialect(
    name="aliyun",
    about="Aliyun gpushare, ACK Pro cGPU",
    options=AliyunOptions,
    resources=frozenset({MEMORY, CORES, CARDS, COUNT}),
    container=_container,
    baggage=_baggage,
)
