"""Volcano's GPU sharing before vGPU (deprecated in 1.9): whole cards by number, or MiB of one card, never both.

Sources: volcano-sh/volcano docs/user-guide/how_to_use_gpu_sharing.md and how_to_use_gpu_number.md.
"""

from __future__ import annotations

from typing import Final

from tessera.dialects.amounts import memory_in
from tessera.dialects.dialect import Context, Dialect, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.model.errors import RequestError
from tessera.model.quantity import MIB
from tessera.model.request import container_request

COUNT: Final = "volcano.sh/gpu-number"
MEMORY: Final = "volcano.sh/gpu-memory"


def _container(container: ContainerReader, _pod: PodReader, _context: Context) -> Reading | None:
    gpus, memory = container.count(COUNT), memory_in(container, MEMORY, MIB)
    if gpus and memory:
        raise RequestError(
            f"asks for {gpus} whole GPUs ({COUNT}) and for a share of one ({MEMORY})",
            container=container.name,
            fix="keep one of the two",
        )
    request = container_request(
        container=container.name,
        gpus=gpus,
        memory=memory,
        init=container.role == "init",
    )
    return None if request is None else Reading(request=request, resources=container.present((COUNT, MEMORY)))


DIALECT: Final = Dialect(
    name="volcanoOld",
    about="Volcano GPU sharing before vGPU",
    resources=frozenset({COUNT, MEMORY}),
    container=_container,
)
