"""What an agent waits for before it asks for the node's lock: all at once, and for none of it for long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable

from deviceplugin.nvml.source import GpuSource, Serving, Starting


async def together(works: Iterable[Awaitable[object]], *, within: float) -> None:
    """Do these at the same time; what has not ended after `within` seconds is given up."""
    tasks = [asyncio.create_task(_awaited(work)) for work in works]
    try:
        await asyncio.wait(tasks, timeout=within)
    finally:
        for task in tasks:
            task.cancel()


async def first_look(source: GpuSource) -> None:
    """Wait until the GPUs have been looked at, or are known to be absent or out of reach."""
    known = asyncio.Event()
    # The first look comes with the facts; where there are none, there is no look either.
    source.on_state(lambda state: None if isinstance(state, Serving) else known.set())
    source.on_tick(lambda _: known.set())
    if isinstance(source.state, Starting | Serving):
        await known.wait()


async def _awaited(work: Awaitable[object]) -> None:
    await work
