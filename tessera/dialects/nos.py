"""nos (Nebuly): slices under MPS whose size is in the resource's name, ``nvidia.com/gpu-10gb``; one per container.

Source: nebuly-ai/nos pkg/gpu/slicing, docs "MPS partitioning". nos counts a node's GB as MiB / 1000 and limits a slice by MPS,
whose ``10G`` is 10 GiB; what a program may use there is reserved by default, see `NosOptions`. ``hostIPC`` and
``runAsUser: 1000`` in its samples belong to its MPS server and do no harm.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from tessera.dialects.dialect import Baggage, Context, Dialect, ForeignOptions, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.dialects.trigger import Resource, Trigger
from tessera.model.errors import RequestError
from tessera.model.quantity import GIB
from tessera.model.request import container_request

PREFIX: Final = "nvidia.com/gpu-"
_NAME: Final = re.compile(r"nvidia\.com/gpu-([1-9][0-9]{0,3})gb", re.ASCII)


class NosOptions(ForeignOptions, frozen=True, kw_only=True):
    """What nos leaves open.

    Attributes:
        memory_unit: what one ``gb`` of the name stands for.
    """

    memory_unit: Literal["GiB", "GB"] = "GiB"


def _container(container: ContainerReader, _pod: PodReader, context: Context) -> Reading | None:
    asked = [
        (name, count, int(match.group(1)))
        for name in container.resources
        if (match := _NAME.fullmatch(name)) and (count := container.count(name)) is not None
    ]
    if not asked:
        return None
    if len(asked) > 1 or asked[0][1] > 1:
        raise RequestError(
            "asks for " + ", ".join(f"{name}: {count}" for name, count, _ in asked),
            container=container.name,
            fix="ask for one slice in one container, in the size that is needed",
        )
    name, _, size = asked[0]
    unit = GIB if context.option(NosOptions).memory_unit == "GiB" else 10**9
    request = container_request(container=container.name, memory=size * unit, init=container.role == "init")
    return None if request is None else Reading(request=request, resources=(name,))


def _baggage(pod: PodReader, _context: Context) -> Baggage:
    named = any(_NAME.fullmatch(name) for container in pod.containers for name in container.resources)
    if named and pod.pod.spec.host_ipc:
        return Baggage(warnings=("hostIPC is not needed here: slices do not share the host's IPC namespace",))
    return Baggage()


def _trigger(_context: Context) -> Trigger:
    return Resource(prefix=PREFIX, pattern=_NAME.pattern)


DIALECT: Final = Dialect(
    name="nos",
    about="nos (Nebuly) MPS slices",
    options=NosOptions,
    prefixes=(PREFIX,),
    container=_container,
    baggage=_baggage,
    trigger=_trigger,
)
