"""The node's GPUs over the life of the agent: three ways to start, and back again after the driver was reloaded.

- no NVIDIA device on the PCI bus: `Idle`; the agent is ready and has nothing to do (a CPU node in the DaemonSet);
- a device and no NVML: `NotReady` with the reason, tried again (a pod that is Running and silent while its node offers no
  GPU is what users of other plugins complain about);
- `Serving`, with the facts.

The source looks at the GPUs once a second and tells its listeners, so that health and accounting need no loop, no thread
and no NVML of their own. `step` is one look; `run` repeats it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from deviceplugin.nvml.driver import Driver
from deviceplugin.nvml.errors import NvmlCallError, NvmlError, NvmlHungError, NvmlUnavailableError
from deviceplugin.nvml.facts import GpuFacts, Look, NodeFacts
from deviceplugin.nvml.pci import PciBus
from deviceplugin.nvml.worker import Worker
from tessera.kube.clock import Clock

_log = logging.getLogger(__name__)

INTERVAL: Final = 1.0
"""Seconds between two looks."""
IDLE_INTERVAL: Final = 30.0
"""Seconds between two looks at the PCI bus of a machine without a GPU: cards are hot-plugged into virtual machines."""
REREAD: Final = 30.0
"""Seconds after which facts are read again: MIG instances come and go."""
RETRY_FIRST: Final = 1.0
RETRY_MOST: Final = 30.0
_HUNG_RETRY: Final = 5.0


class Starting(msgspec.Struct, frozen=True):
    """Nothing is known yet."""


class Idle(msgspec.Struct, frozen=True):
    """There is no GPU here, and that is fine."""


class NotReady(msgspec.Struct, frozen=True):
    """There is a GPU and it can't be used; the reason says what to do."""

    reason: str


class Serving(msgspec.Struct, frozen=True):
    """GPUs are there.

    Attributes:
        facts: what NVML says now.
        gone: GPUs that were there and aren't any more, by id: their last facts. Their slices live on in the ledger.
    """

    facts: NodeFacts
    gone: dict[str, GpuFacts] = {}

    @property
    def gpus(self) -> tuple[GpuFacts, ...]:
        """All GPUs to be published, those that are gone too."""
        return (*self.facts.gpus, *self.gone.values())


State = Starting | Idle | NotReady | Serving


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """One look, for listeners.

    Attributes:
        now: seconds of the injected clock.
        known: every GPU that was ever seen since the start, by id.
        look: what was seen; empty where `failure` is set.
        failure: why nothing could be seen of any GPU.
    """

    now: float
    known: dict[str, GpuFacts]
    look: Look
    failure: str | None = None


class GpuSource:
    """Owns the driver and its thread. Callbacks run in the event loop and must be quick."""

    def __init__(
        self,
        driver: Driver,
        *,
        clock: Clock,
        pci: PciBus,
        insist: bool = False,
        worker: Worker | None = None,
        interval: float = INTERVAL,
    ) -> None:
        """Start nothing yet.

        Args:
            driver: how to talk to the driver.
            clock: what waits and measures.
            pci: where to look for cards.
            insist: a library was named by hand, so NVML is tried even where the PCI bus shows no card.
            worker: the thread for blocking calls.
            interval: seconds between two looks.
        """
        self._driver = driver
        self._clock = clock
        self._pci = pci
        self._insist = insist
        self._worker = worker or Worker()
        self._interval = interval
        self._retry = RETRY_FIRST
        self._reread_at = 0.0
        self._reopen_at = 0.0
        self._known: dict[str, GpuFacts] = {}
        self._states: list[Callable[[State], None]] = []
        self._ticks: list[Callable[[Tick], None]] = []
        self.state: State = Starting()

    def on_state(self, callback: Callable[[State], None]) -> None:
        """Call back with every new state; the present one is not repeated."""
        self._states.append(callback)

    def on_tick(self, callback: Callable[[Tick], None]) -> None:
        """Call back with every look, also with one that failed."""
        self._ticks.append(callback)

    def problem(self) -> str | None:
        """Why the agent is not ready, None where it is: a check for the status port."""
        match self.state:
            case Starting():
                return "the GPUs have not been read yet"
            case NotReady(reason):
                return reason
            case Idle() | Serving():
                return None

    async def run(self) -> None:
        """Look again and again until cancelled; the driver is closed at the end."""
        try:
            while True:
                await self._clock.sleep(await self.step())
        finally:
            await self.close()

    async def close(self) -> None:
        """Disconnect from the driver; one that hangs is left behind."""
        try:
            await self._worker.run("nvmlShutdown", self._driver.close)
        except NvmlHungError as error:
            _log.warning("%s", error)
        self._worker.close()

    async def step(self) -> float:
        """Start, or look once.

        Returns:
            Seconds until the next step.
        """
        if isinstance(self.state, Serving):
            return await self._watch(self.state)
        return await self._start()

    # Starting.

    async def _start(self) -> float:
        cards = self._pci.nvidia_gpus()
        if not cards and not self._insist:
            self._become(Idle())
            return IDLE_INTERVAL
        try:
            facts = await self._worker.run("nvmlInit", self._reopen)
        except NvmlHungError as error:
            self._fail(str(error))
            return _HUNG_RETRY
        except NvmlUnavailableError as error:
            if not cards:
                # The flag stands in the manifest of a DaemonSet that runs on CPU nodes too.
                self._become(Idle())
                return IDLE_INTERVAL
            self._fail(f"{error} (on the PCI bus: {', '.join(cards)})")
            return self._backoff()
        except NvmlCallError as error:
            self._fail(str(error))
            return self._backoff()
        if not facts.gpus and not self._known:
            reasons = "; ".join(gpu.reason for gpu in facts.unreadable)
            if not cards and not reasons:
                self._become(Idle())
                return IDLE_INTERVAL
            self._fail(f"NVML runs and shows no GPU that can be used{f': {reasons}' if reasons else ''}")
            return self._backoff()
        self._serve(facts)
        return 0.0

    def _reopen(self) -> NodeFacts:
        self._driver.close()
        self._driver.open()
        return self._driver.read()

    def _backoff(self) -> float:
        now, self._retry = self._retry, min(2 * self._retry, RETRY_MOST)
        return now

    # Serving.

    async def _watch(self, state: Serving) -> float:
        try:
            look = await self._worker.run("looking at the GPUs", self._driver.look)
            if look.samples and all(isinstance(found, NvmlCallError) for found in look.samples.values()):
                look = await self._look_anew(look)
            elif look.samples:
                self._retry = RETRY_FIRST
            self._tick(look)
            if self._clock.monotonic() >= self._reread_at:
                # A GPU that is lost, or was, is only found by a new connection: its old handle stays lost for ever.
                again = self._reopen if state.gone or state.facts.unreadable else self._driver.read
                self._serve(await self._worker.run("reading the GPUs", again))
        except NvmlError as error:
            self._fail(str(error))
            return _HUNG_RETRY if isinstance(error, NvmlHungError) else self._backoff()
        return self._interval

    async def _look_anew(self, look: Look) -> Look:
        """All GPUs failed at once: a driver that was reloaded looks like this, and only a new connection tells."""
        if self._clock.monotonic() < self._reopen_at:
            return look
        self._reopen_at = self._clock.monotonic() + self._backoff()
        self._serve(await self._worker.run("nvmlInit", self._reopen))
        anew = await self._worker.run("looking at the GPUs", self._driver.look)
        return msgspec.structs.replace(anew, events=look.events + anew.events)

    def _serve(self, facts: NodeFacts) -> None:
        self._reread_at = self._clock.monotonic() + REREAD
        here = {gpu.id: gpu for gpu in facts.gpus}
        gone = {gpu: known for gpu, known in self._known.items() if gpu not in here}
        self._known = self._known | here
        self._become(Serving(facts, gone))

    # Telling.

    def _fail(self, reason: str) -> None:
        self._become(NotReady(reason))
        self._tick(Look(samples={}), failure=reason)

    def _become(self, state: State) -> None:
        if state == self.state:
            return
        match state:
            case Idle():
                _log.info("no NVIDIA GPU on this node: ready and idle")
            case NotReady(reason):
                _log.warning("not ready: %s", reason)
            case Serving(facts, gone):
                _log.info("driver %s: %d GPUs, %d gone", facts.driver, len(facts.gpus), len(gone))
                for gpu in facts.unreadable:
                    _log.warning("GPU %d can't be read: %s", gpu.index, gpu.reason)
            case Starting():
                pass
        self.state = state
        for callback in self._states:
            callback(state)

    def _tick(self, look: Look, *, failure: str | None = None) -> None:
        tick = Tick(now=self._clock.monotonic(), known=self._known, look=look, failure=failure)
        for callback in self._ticks:
            callback(tick)
