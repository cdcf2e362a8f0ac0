"""Tencent's gpu-manager: percent of a card and units of 256 MiB; a multiple of 100 is so many whole cards.

Sources: tkestack/gpu-manager README, gpu-admission pkg/predicate: below 100 both amounts are needed, from 100 on the
memory is ignored, above 100 only multiples of it are taken. ``tencent.com/vcuda-core-limit`` lets a container use more
compute than it asked for while nobody else does.
"""

from __future__ import annotations

from typing import Final

from tessera.dialects.amounts import cards_or_share, memory_of
from tessera.dialects.dialect import Baggage, Context, Dialect, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.model.errors import RequestError
from tessera.model.quantity import MIB
from tessera.model.request import container_request

CORE: Final = "tencent.com/vcuda-core"
MEMORY: Final = "tencent.com/vcuda-memory"
LIMIT: Final = "tencent.com/vcuda-core-limit"
_UNIT: Final = 256 * MIB


def _container(container: ContainerReader, _pod: PodReader, _context: Context) -> Reading | None:
    core, memory = container.count(CORE), container.amount(MEMORY)
    if core is None and memory is None:
        return None
    cards = cards_or_share(core or 0, CORE, container.name)
    if not cards and (core is None or memory is None):
        there, absent = (CORE, MEMORY) if memory is None else (MEMORY, CORE)
        raise RequestError(
            f"{there}: {float(core or memory or 0):g} without {absent}",
            container=container.name,
            fix=f"write {absent} beside it, or {CORE} as a multiple of 100",
        )
    request = container_request(
        container=container.name,
        gpus=cards or 1,
        memory=None if cards or memory is None else memory_of(memory, _UNIT, MEMORY, container.name),
        compute=None if cards else core,
        init=container.role == "init",
    )
    return None if request is None else Reading(request=request, resources=container.present((CORE, MEMORY)))


def _baggage(pod: PodReader, _context: Context) -> Baggage:
    warnings = (
        (f"annotation {LIMIT} is not honoured: {CORE} is reserved, what others leave is free",)
        if LIMIT in pod.annotations
        else ()
    )
    return Baggage(selectors=("nvidia-device-enable",), warnings=warnings)


DIALECT: Final = Dialect(
    name="tencent",
    about="Tencent gpu-manager",
    resources=frozenset({CORE, MEMORY}),
    container=_container,
    baggage=_baggage,
)
