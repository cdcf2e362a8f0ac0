"""elastic-gpu: percent of a card and MiB of its memory; from 100 percent on, whole cards.

Source: elastic-ai/elastic-gpu-scheduler (pkg/types, pkg/scheduler) and elastic-gpu-agent. ``pgpu`` counts whole cards;
the ``qgpu-`` spellings are those of its vendor's fork and mean the same.
"""

from __future__ import annotations

from typing import Final

from tessera.dialects.amounts import cards_or_share, memory_in
from tessera.dialects.dialect import Context, Dialect, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.model.errors import RequestError
from tessera.model.quantity import MIB
from tessera.model.request import container_request

CARDS: Final = "elasticgpu.io/pgpu"
_CORES: Final = ("elasticgpu.io/gpu-core", "elasticgpu.io/qgpu-core")
_MEMORIES: Final = ("elasticgpu.io/gpu-memory", "elasticgpu.io/qgpu-memory")
_NAMES: Final = (CARDS, *_CORES, *_MEMORIES)


def _container(container: ContainerReader, _pod: PodReader, _context: Context) -> Reading | None:
    cards = container.count(CARDS)
    core = next((found for name in _CORES if (found := container.count(name)) is not None), None)
    memory = next((found for name in _MEMORIES if (found := memory_in(container, name, MIB)) is not None), None)
    if cards and (core or memory):
        raise RequestError(
            f"asks for {cards} whole cards ({CARDS}) and for a share",
            container=container.name,
            fix="keep one of the two",
        )
    whole = cards or cards_or_share(core or 0, _CORES[0], container.name)
    request = container_request(
        container=container.name,
        gpus=whole or None,
        memory=None if whole else memory,
        compute=None if whole else core,
        init=container.role == "init",
    )
    return None if request is None else Reading(request=request, resources=container.present(_NAMES))


DIALECT: Final = Dialect(
    name="elasticgpu",
    about="elastic-gpu",
    resources=frozenset(_NAMES),
    container=_container,
)
