"""nvshare: up to ten containers take turns on a card, each with all of its memory, swapped to the host between turns.

Source: grgalex/nvshare README. Nothing here swaps, so the memory its container counts on is reserved, all of it unless
`NvshareOptions` says a slot's share; compute stays free. Forks limit memory and compute by pod annotations, which count.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from tessera.dialects.amounts import percent_of_one, text_count
from tessera.dialects.dialect import Context, Dialect, ForeignOptions, Reading
from tessera.dialects.reader import ContainerReader, PodReader, as_bytes
from tessera.model.request import container_request

COUNT: Final = "nvshare.com/gpu"
MEMORY: Final = "nvshare.com/gpu-memory-limit"
COMPUTE: Final = "nvshare.com/gpu-core-limit"


class NvshareOptions(ForeignOptions, frozen=True, kw_only=True):
    """What a slot stands for.

    Attributes:
        memory: ``whole`` reserves all of a card's memory, ``slot`` its share among `slots`.
        slots: containers on one card.
    """

    memory: Literal["whole", "slot"] = "whole"
    slots: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10


def _container(container: ContainerReader, pod: PodReader, context: Context) -> Reading | None:
    if container.count(COUNT) is None:
        return None
    options = context.option(NvshareOptions)
    memory = pod.annotations.get(MEMORY)
    limit = None if memory is None else pod.text_amount(memory, f"annotation {MEMORY}", container=container.name)
    compute = pod.annotations.get(COMPUTE)
    share = None if compute is None else text_count(pod, compute, f"annotation {COMPUTE}", container=container.name)
    request = container_request(
        container=container.name,
        memory=None if limit is None else as_bytes(limit, f"annotation {MEMORY}", container=container.name),
        memory_percent=None if limit else 100 if options.memory == "whole" else max(1, 100 // options.slots),
        compute=percent_of_one(share, f"annotation {COMPUTE}", container.name),
        init=container.role == "init",
    )
    return None if request is None else Reading(request=request, resources=(COUNT,))


DIALECT: Final = Dialect(
    name="nvshare",
    about="nvshare",
    options=NvshareOptions,
    resources=frozenset({COUNT}),
    container=_container,
)
