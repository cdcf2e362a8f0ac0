"""One thread for all blocking calls into the driver, and a deadline for each.

A hung driver leaves a thread inside an ioctl for ever, where nothing can reach it. So there is one such thread and never
a second: while it is stuck every further call fails at once, and when the driver comes back the thread goes on.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from deviceplugin.nvml.errors import NvmlHungError

DEADLINE: Final = 10.0
"""Seconds. Reading eight GPUs takes milliseconds, the first call on a machine without persistence mode some seconds."""

T = TypeVar("T")
_Job = Callable[[], None]


class Worker:
    """Runs functions one after another in its thread; from one event loop."""

    def __init__(self, *, deadline: float = DEADLINE) -> None:
        """Start no thread yet: an idle agent needs none.

        Args:
            deadline: seconds for one call.
        """
        self._deadline = deadline
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stuck: str | None = None

    @property
    def stuck(self) -> str | None:
        """The call that has not come back within its deadline, None where all is well."""
        return self._stuck

    async def run(self, what: str, call: Callable[[], T]) -> T:
        """Run a function in the thread.

        Args:
            what: says in errors what is being done, such as ``nvmlInit``.
            call: the function.

        Raises:
            NvmlHungError: it has not come back in time, or an earlier one still hasn't.
        """
        if self._stuck is not None:
            raise NvmlHungError(f"the NVIDIA driver is still hanging in {self._stuck}; the node may need a reboot")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                result = call()
            except Exception as error:  # noqa: BLE001 - handed on, whatever it is
                _post(loop, partial(self._fail, done, error))
            else:
                _post(loop, partial(self._finish, done, result))

        self._start()
        self._jobs.put(job)
        try:
            async with asyncio.timeout(self._deadline):
                return await done
        except TimeoutError as error:
            self._stuck = what
            raise NvmlHungError(
                f"the NVIDIA driver has not come back from {what} within {self._deadline:g} s; look for NVRM lines in "
                "the kernel's log, the node may need a reboot"
            ) from error

    def close(self) -> None:
        """Let the thread end after its present job; one that hangs is left behind."""
        if self._thread is not None:
            self._jobs.put(None)
            if self._stuck is None:
                self._thread.join(self._deadline)
            self._thread = None

    def _start(self) -> None:
        if self._thread is None:
            # A daemon: a hung driver must not keep the process from ending.
            self._thread = threading.Thread(target=self._serve, name="nvml", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _finish(self, done: asyncio.Future[T], result: T) -> None:
        self._stuck = None
        if not done.done():
            done.set_result(result)

    def _fail(self, done: asyncio.Future[T], error: Exception) -> None:
        self._stuck = None
        if not done.done():
            done.set_exception(error)


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        # The loop was closed while the driver hung: nobody waits any more.
        return
