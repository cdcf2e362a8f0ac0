"""Huawei CCE's GPU virtualization (xGPU): totals over the cards that a pod label counts, or a fraction of ``nvidia.com/gpu``.

Sources: CCE user guide, "Equal Distribution Scheduling on Virtual GPUs" (cce_10_0965), "Supporting Kubernetes' Default GPU
Scheduling" (cce_10_0742). One unit of memory is 128 MiB; compute needs memory; both are divided evenly over the cards. A
fraction of ``nvidia.com/gpu`` is that share of a card's memory and binds no compute. CCE rounds the share down to 128 MiB;
here the card is not known yet, so it is a percentage, rounded down.
"""

from __future__ import annotations

from typing import Final

from tessera.dialects.amounts import fraction_percent, label_count, memory_of, memory_share, percent_of_one, share
from tessera.dialects.dialect import Context, Dialect, Reading
from tessera.dialects.hami import CORES as HAMI_CORES
from tessera.dialects.hami import COUNT as CARDS
from tessera.dialects.hami import MEMORY as HAMI_MEMORY
from tessera.dialects.hami import PERCENT as HAMI_PERCENT
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.dialects.trigger import VIRTUAL, Not, Resource, Trigger, all_of, any_of
from tessera.model.errors import RequestError
from tessera.model.quantity import MIB
from tessera.model.request import ContainerRequest, container_request

MEMORY: Final = "volcano.sh/gpu-mem.128Mi"
COMPUTE: Final = "volcano.sh/gpu-core.percentage"
COUNT: Final = "volcano.sh/gpu-num"
_UNIT: Final = 128 * MIB


def _container(container: ContainerReader, pod: PodReader, _context: Context) -> Reading | None:
    total, compute = container.amount(MEMORY), container.count(COMPUTE)
    if not total and not compute:
        return _fraction(container)
    if not total:
        raise RequestError(
            f"{COMPUTE}: {compute} without {MEMORY}", container=container.name, fix=f"write {MEMORY} beside it"
        )
    gpus = label_count(pod, COUNT, container.name)
    request = container_request(
        container=container.name,
        gpus=gpus,
        memory=memory_of(memory_share(total, gpus, MEMORY, container.name), _UNIT, MEMORY, container.name),
        compute=percent_of_one(share(compute or 0, gpus, COMPUTE, container.name), COMPUTE, container.name),
        init=container.role == "init",
    )
    return None if request is None else Reading(request=request, resources=container.present((MEMORY, COMPUTE)))


def _fraction(container: ContainerReader) -> Reading | None:
    if container.has(HAMI_MEMORY, HAMI_PERCENT, HAMI_CORES):
        return None
    cards = container.amount(CARDS)
    if cards is None or cards.denominator == 1:
        return None
    if cards > 1:
        raise RequestError(
            f"{CARDS}: {float(cards):g} is neither a share of one GPU nor a number of whole ones",
            container=container.name,
            fix="write less than 1, or a whole number",
        )
    request = ContainerRequest(gpus=1, memory_percent=fraction_percent(cards), init=container.role == "init")
    return Reading(request=request, resources=(CARDS,))


def _trigger(_context: Context) -> Trigger:
    """Whole cards are not CCE's; on a virtual node fractions are its vendor's."""
    own = Resource(names=frozenset({MEMORY, COMPUTE}))
    return all_of(Not(VIRTUAL), any_of(own, Resource(names=frozenset({CARDS}), amount="fraction")))


DIALECT: Final = Dialect(
    name="cce",
    about="Huawei CCE GPU virtualization",
    resources=frozenset({MEMORY, COMPUTE, CARDS}),
    container=_container,
    trigger=_trigger,
)
