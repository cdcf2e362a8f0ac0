"""Koordinator's DeviceShare: totals over ``gpu.shared`` GPUs, in percent of compute, bytes or percent of memory.

Sources: koordinator.sh manual "Device Scheduling" (fine-grained), koordinator pkg/scheduler/plugins/deviceshare/utils.go.
``koordinator.sh/gpu: N`` is N percent of both; 100 is a whole GPU. The manual also prints ``gpu-shared``; before 0.7 the
prefix was ``kubernetes.io/``. The same names beside another vendor's resources (Ascend, MetaX, Cambricon …) speak of that
vendor's cards and are left alone.
"""

from __future__ import annotations

from typing import Final

from tessera.dialects.amounts import cards_or_share, percent_of_one, share
from tessera.dialects.dialect import Baggage, Context, Dialect, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.dialects.trigger import Resource, Trigger
from tessera.model.errors import RequestError
from tessera.model.request import ContainerRequest, container_request

_PREFIXES: Final = ("koordinator.sh/", "kubernetes.io/")
_OTHERS: Final = (
    "huawei.com/",
    "metax-tech.com/",
    "hygon.com/",
    "iluvatar.ai/",
    "cambricon.com/",
    "enflame.com/",
    "birentech.com/",
)
"""Vendors whose cards Koordinator shares under its own names, beside one of theirs."""


def _names(suffix: str) -> tuple[str, ...]:
    return tuple(prefix + suffix for prefix in _PREFIXES)


_MODEL: Final = "node.koordinator.sh/gpu-model"
"""A nodeSelector that only Koordinator's nodes have; what it wishes is a model."""
BOTH: Final = _names("gpu")
CORE: Final = _names("gpu-core")
MEMORY: Final = _names("gpu-memory")
RATIO: Final = _names("gpu-memory-ratio")
SHARED: Final = ("koordinator.sh/gpu.shared", "koordinator.sh/gpu-shared")
_ALL: Final = (*BOTH, *CORE, *MEMORY, *RATIO, *SHARED)


def _container(container: ContainerReader, _pod: PodReader, _context: Context) -> Reading | None:
    if not container.has(*_ALL) or any(name.startswith(_OTHERS) for name in container.resources):
        return None
    both, core, memory, ratio = (_one_of(container, names) for names in (BOTH, CORE, MEMORY, RATIO))
    if both and (core or memory or ratio):
        raise RequestError(
            f"asks by {BOTH[0]}: {both} and by its parts together", container=container.name, fix="keep one of the two"
        )
    if memory and ratio:
        raise RequestError(
            f"asks for memory as {MEMORY[0]}: {memory} and as {RATIO[0]}: {ratio}",
            container=container.name,
            fix="keep one of the two",
        )
    if both:
        core = ratio = both
    if core and not memory and not ratio:
        raise RequestError(
            f"{CORE[0]}: {core} without memory", container=container.name, fix=f"write {MEMORY[0]} or {RATIO[0]} too"
        )
    gpus = _one_of(container, SHARED) or _gpus(container, core, ratio)
    request = _request(container, gpus, core, memory, ratio)
    return None if request is None else Reading(request=request, resources=container.present(_ALL))


def _request(
    container: ContainerReader, gpus: int, core: int | None, memory: int | None, ratio: int | None
) -> ContainerRequest | None:
    name = container.name
    if memory is None and ratio is None:
        raise RequestError(
            f"asks for {SHARED[0]}: {gpus} without memory", container=name, fix=f"write {MEMORY[0]} or {RATIO[0]} too"
        )
    return container_request(
        container=name,
        gpus=gpus,
        memory=None if memory is None else -(-memory // gpus),
        memory_percent=None if ratio is None else percent_of_one(share(ratio, gpus, RATIO[0], name), RATIO[0], name),
        compute=None if core is None else percent_of_one(share(core, gpus, CORE[0], name), CORE[0], name),
        init=container.role == "init",
    )


def _gpus(container: ContainerReader, core: int | None, ratio: int | None) -> int:
    """How many GPUs, where that is not said: by a percentage of 100 and more, which counts whole GPUs."""
    if ratio is not None:
        return cards_or_share(ratio, RATIO[0], container.name) or 1
    return cards_or_share(core, CORE[0], container.name) or 1 if core is not None else 1


def _one_of(container: ContainerReader, names: tuple[str, ...]) -> int | None:
    """The amount under a name in its new or old spelling."""
    found = [(name, amount) for name in names if (amount := container.count(name)) is not None]
    if len({amount for _, amount in found}) > 1:
        raise RequestError(
            " and ".join(f"{name}: {amount}" for name, amount in found) + " differ",
            container=container.name,
            fix="keep one of the two",
        )
    return found[0][1] if found else None


def _baggage(pod: PodReader, context: Context) -> Baggage:
    models = ",".join(pod.choices(_MODEL))
    return Baggage(annotations={context.names.gpu_models: models} if models else {}, selectors=(_MODEL,))


def _trigger(_context: Context) -> Trigger:
    return Resource(names=frozenset(_ALL), without=_OTHERS)


DIALECT: Final = Dialect(
    name="koordinator",
    about="Koordinator",
    resources=frozenset(_ALL),
    container=_container,
    baggage=_baggage,
    trigger=_trigger,
)
