"""Alibaba Cloud ACS, GPU sharing on GPU-HPN nodes: percentages of one GPU's memory and compute.

Source: "Use GPU sharing on GPU-HPN nodes" in the manual of ACS. Requests may be smaller than limits there (a soft share);
the limit is what the container may use, so the limit is reserved. ACS refuses ``nvidia.com/gpu`` beside it.
"""

from __future__ import annotations

from typing import Final

from tessera.dialects.dialect import Context, Dialect, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.model.request import container_request

MEMORY: Final = "alibabacloud.com/gpu-memory.percentage"
COMPUTE: Final = "alibabacloud.com/gpu-core.percentage"


def _container(container: ContainerReader, _pod: PodReader, _context: Context) -> Reading | None:
    request = container_request(
        container=container.name,
        memory_percent=container.percent(MEMORY),
        compute=container.percent(COMPUTE),
        init=container.role == "init",
    )
    return None if request is None else Reading(request=request, resources=container.present((MEMORY, COMPUTE)))


DIALECT: Final = Dialect(
    name="acs",
    about="Alibaba Cloud ACS GPU-HPN sharing",
    resources=frozenset({MEMORY, COMPUTE}),
    container=_container,
)
