"""From `main()` to the event loop and back: logs, signals, and errors that end a daemon with one line."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine

from tessera.model.errors import TesseraError

_log = logging.getLogger(__name__)


class Signals:
    """What the outside asks of a running daemon.

    Attributes:
        stop: set by SIGTERM or SIGINT; a second one ends the process at once.
    """

    def __init__(self) -> None:
        """Make it inside the running loop."""
        self.stop = asyncio.Event()
        self._hangup: list[Callable[[], object]] = []
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping, number)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)

    def on_hangup(self, callback: Callable[[], object]) -> None:
        """Call back at SIGHUP."""
        self._hangup.append(callback)

    def _stopping(self, number: signal.Signals) -> None:
        if self.stop.is_set():
            _log.warning("second %s: ending at once", number.name)
            raise SystemExit(1)
        _log.info("%s: stopping", number.name)
        self.stop.set()

    def _hung_up(self) -> None:
        for callback in self._hangup:
            callback()


def run(daemon: Callable[[Signals], Coroutine[None, None, None]], *, level: str) -> int:
    """Run a daemon until it returns; an error of ours ends it with one line and code 1, never with a traceback.

    Args:
        daemon: takes the signals; returns when it has stopped cleanly.
        level: log level, such as ``INFO``.
    """
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname).1s %(name)s: %(message)s", force=True
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)

    async def start() -> None:
        await daemon(Signals())

    try:
        asyncio.run(start())
    except (TesseraError, OSError) as error:
        _log.critical("%s", error)
        return 1
    return 0
