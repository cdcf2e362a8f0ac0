"""One thread, a deadline for each call, and a driver that hangs."""

from __future__ import annotations

import asyncio
import threading

import pytest

from deviceplugin.nvml.errors import NvmlHungError
from deviceplugin.nvml.worker import Worker

SHORT = 0.05
LONG = 10.0


async def test_results_and_errors_come_back() -> None:
    worker = Worker(deadline=LONG)
    assert await worker.run("adding", lambda: 1 + 1) == 2
    with pytest.raises(ZeroDivisionError):
        await worker.run("dividing", lambda: 1 // 0)
    assert await worker.run("adding", lambda: 2 + 2) == 4
    worker.close()


async def test_calls_run_in_one_thread_one_after_another() -> None:
    worker = Worker(deadline=LONG)
    found = await asyncio.gather(*(worker.run("asking", threading.get_ident) for _ in range(20)))
    assert len(set(found)) == 1
    assert found[0] != threading.get_ident()
    worker.close()


async def test_a_hung_call_fails_in_time_and_later_ones_at_once() -> None:
    worker = Worker(deadline=SHORT)
    released = threading.Event()
    with pytest.raises(NvmlHungError, match=r"nvmlInit within 0\.05 s"):
        await worker.run("nvmlInit", released.wait)
    assert worker.stuck == "nvmlInit"
    ran: list[int] = []
    with pytest.raises(NvmlHungError, match="still hanging in nvmlInit"):
        await worker.run("looking", lambda: ran.append(1))
    released.set()
    async with asyncio.timeout(LONG):
        while worker.stuck is not None:  # noqa: ASYNC110 - the thread's own sign
            await asyncio.sleep(0.001)
    assert await worker.run("looking", lambda: 7) == 7
    assert ran == []
    worker.close()


async def test_closing_leaves_a_hung_thread_behind() -> None:
    worker = Worker(deadline=SHORT)
    released = threading.Event()
    with pytest.raises(NvmlHungError):
        await worker.run("nvmlInit", released.wait)
    worker.close()
    released.set()


async def test_a_waiter_that_gave_up_harms_nobody() -> None:
    worker = Worker(deadline=LONG)
    begun, released = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        released.wait(LONG)

    task = asyncio.create_task(worker.run("blocking", block))
    async with asyncio.timeout(LONG):
        while not begun.is_set():  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    released.set()
    assert await worker.run("asking", lambda: 3) == 3
    worker.close()


async def test_no_thread_before_the_first_call() -> None:
    before = threading.active_count()
    Worker().close()
    assert threading.active_count() == before
