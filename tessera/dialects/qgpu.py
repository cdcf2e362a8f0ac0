"""TKE's qGPU: percent of compute and GiB of memory, totals over as many cards as the percentage needs.

Source: Tencent Cloud's manual of qGPU. N x 100 is N whole cards; above 100 otherwise, the totals are divided over the
cards and rounded down (121 and 31 are 2 cards of 60 % and 15). ``qgpu-core-greedy`` is best-effort compute for offline pods; an online pod
asks for memory only. The manual says "GB" and "G" in some places and GiB in others: see `QgpuOptions`.
"""

from __future__ import annotations

from typing import Final, Literal

from tessera.dialects.amounts import memory_of
from tessera.dialects.dialect import Baggage, Context, Dialect, ForeignOptions, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.model.errors import RequestError
from tessera.model.quantity import GIB
from tessera.model.request import container_request

CORE: Final = "tke.cloud.tencent.com/qgpu-core"
MEMORY: Final = "tke.cloud.tencent.com/qgpu-memory"
GREEDY: Final = "tke.cloud.tencent.com/qgpu-core-greedy"
_NAMES: Final = (CORE, MEMORY, GREEDY)
_SELECTORS: Final = ("qgpu-device-enable", "tke.cloud.tencent.com/qgpu-schedule-policy")


class QgpuOptions(ForeignOptions, frozen=True, kw_only=True):
    """What the manual leaves open.

    Attributes:
        memory_unit: what one ``qgpu-memory`` stands for.
    """

    memory_unit: Literal["GiB", "GB"] = "GiB"


def _container(container: ContainerReader, _pod: PodReader, context: Context) -> Reading | None:
    core, memory, greedy = container.count(CORE), container.amount(MEMORY), container.percent(GREEDY)
    if core is None and memory is None and greedy is None:
        return None
    name = container.name
    if core is not None and greedy is not None:
        raise RequestError(f"asks for {CORE} and {GREEDY}", container=name, fix="keep one of the two")
    if core is not None and core % 100 == 0:
        request = container_request(container=name, gpus=core // 100, init=container.role == "init")
    elif memory is None:
        raise RequestError(
            f"{CORE if greedy is None else GREEDY}: {core or greedy} without {MEMORY}",
            container=name,
            fix=f"write {MEMORY} beside it",
        )
    else:
        gpus = max(1, -(-(core or 0) // 100))
        unit = GIB if context.option(QgpuOptions).memory_unit == "GiB" else 10**9
        request = container_request(
            container=name,
            gpus=gpus,
            memory=memory_of(memory if gpus == 1 else memory // gpus, unit, MEMORY, name),
            compute=None if core is None else core // gpus,
            init=container.role == "init",
        )
    return None if request is None else Reading(request=request, resources=container.present(_NAMES))


def _baggage(pod: PodReader, _context: Context) -> Baggage:
    greedy = any(container.has(GREEDY) for container in pod.containers)
    return Baggage(
        selectors=_SELECTORS,
        warnings=(f"{GREEDY}: compute is best effort, none is reserved",) if greedy else (),
    )


DIALECT: Final = Dialect(
    name="qgpu",
    about="TKE qGPU",
    options=QgpuOptions,
    resources=frozenset(_NAMES),
    container=_container,
    baggage=_baggage,
)
