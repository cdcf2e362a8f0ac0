"""Pod annotations of Alibaba's simulators and of the traces made from its clusters: memory per GPU, or thousandths of one.

Sources: alibaba/open-simulator pkg/utils (``alibabacloud.com/gpu-mem``, ``gpu-count``); the simulator of "Beware of
Fragmentation" (ATC'23, ``gpu-milli``, ``gpu-card-model`` with ``|`` between models). The memory is a quantity of bytes; a
number below one MiB can't be bytes and is read as GiB, or MiB where no card has as many GiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tessera.dialects.amounts import first_container, memory_of, text_count
from tessera.dialects.dialect import Baggage, Context, Dialect, Reading
from tessera.dialects.reader import PodReader, as_bytes
from tessera.dialects.wished import Wished
from tessera.model.errors import RequestError
from tessera.model.quantity import GIB, MIB
from tessera.model.request import container_request

MEMORY: Final = "alibabacloud.com/gpu-mem"
MILLI: Final = "alibabacloud.com/gpu-milli"
COUNT: Final = "alibabacloud.com/gpu-count"
_WISHES: Final = Wished(models=("alibabacloud.com/gpu-card-model",), separators="|")


def _pod(pod: PodReader, _context: Context) -> Mapping[str, Reading]:
    if pod.annotations.keys().isdisjoint((MEMORY, MILLI)):
        return {}
    container = first_container(pod)
    memory, percent = _memory(pod, container.name), _percent(pod, container.name)
    if memory and percent:
        raise RequestError(
            f"annotations {MEMORY} and {MILLI} both ask", container=container.name, fix="keep one of the two"
        )
    if not memory and not percent:
        return {}
    count = pod.annotations.get(COUNT)
    request = container_request(
        container=container.name,
        gpus=None if count is None else text_count(pod, count, f"annotation {COUNT}", container=container.name),
        memory=memory,
        memory_percent=percent,
        compute=percent,
        init=False,
    )
    return {} if request is None else {container.name: Reading(request=request)}


def _memory(pod: PodReader, container: str) -> int | None:
    text = pod.annotations.get(MEMORY)
    found = None if text is None else pod.text_amount(text, f"annotation {MEMORY}", container=container)
    if found is None:
        return None
    if found.denominator == 1 and found < MIB:
        return memory_of(found, GIB, f"annotation {MEMORY}", container)
    return as_bytes(found, f"annotation {MEMORY}", container=container)


def _percent(pod: PodReader, container: str) -> int | None:
    text = pod.annotations.get(MILLI)
    milli = None if text is None else text_count(pod, text, f"annotation {MILLI}", container=container)
    if milli is None:
        return None
    if milli > 1000:
        raise RequestError(
            f"annotation {MILLI}: {milli} is more than one GPU",
            container=container,
            fix=f"write up to 1000, and the number as {COUNT}",
        )
    return max(1, milli // 10)


def _baggage(pod: PodReader, context: Context) -> Baggage:
    return _WISHES.baggage(pod, context)


DIALECT: Final = Dialect(
    name="alibaba",
    about="Alibaba's pod annotations",
    annotations=frozenset({MEMORY, MILLI}),
    pod=_pod,
    baggage=_baggage,
)
