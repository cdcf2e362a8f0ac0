"""From what NVML shows to what the board offers: facts, health, accounting and guarantees, put together.

The parts know nothing of each other; here their news meet, and every piece of news makes the board's picture anew.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NoReturn

import msgspec
from prometheus_client import CollectorRegistry

from deviceplugin.board import Board
from deviceplugin.health import HealthTable
from deviceplugin.isolation.environment import Environment
from deviceplugin.isolation.injection import Injector, MpsFolders
from deviceplugin.isolation.mps import problem as mps_problem
from deviceplugin.isolation.probe import Verdict, choose_mode, probe
from deviceplugin.monitor import Monitor, Report
from deviceplugin.mpsdaemon import MpsDaemon
from deviceplugin.notices import Notices
from deviceplugin.nvml.facts import GpuFacts, inventory_gpus
from deviceplugin.nvml.source import GpuSource, Idle, Serving, State, Tick
from deviceplugin.processes import ProcessMap
from deviceplugin.tenants import Tenants
from tessera.kube.clock import Clock
from tessera.model.config import Config
from tessera.model.errors import TesseraError
from tessera.model.guarantee import Guarantee

_log = logging.getLogger(__name__)

SURVEY_EVERY: Final = 300.0
"""Seconds between two looks at the machine: a CDI spec may be written anew, a runtime restarted with another config."""


class GpuSide:
    """Keeps board and injector up to date with the hardware."""

    def __init__(
        self,
        board: Board,
        source: GpuSource,
        *,
        config: Callable[[], Config],
        survey: Callable[[], Awaitable[Environment]],
        processes: ProcessMap,
        tenants: Tenants,
        notices: Notices,
        registry: CollectorRegistry,
        clock: Clock,
        mps: MpsDaemon | None = None,
    ) -> None:
        """Listen to the source.

        Args:
            board: what is kept up to date.
            source: NVML.
            config: as it is now.
            survey: looks at the machine.
            processes: which container a process is in.
            tenants: which container may use what.
            notices: told of excesses.
            registry: of metrics.
            clock: paces.
            mps: the node's MPS daemon; None claims nothing of it.
        """
        self._board = board
        self._source = source
        self._config = config
        self._survey = survey
        self._notices = notices
        self._clock = clock
        self._environment = Environment(process_problem=processes.problem())
        self._problem: str | None = None
        self._verdicts: dict[str, Verdict] = {}
        self._last: tuple[GpuFacts, ...] = ()
        health = config().health
        self.health = HealthTable(registry=registry)
        self.health.configure(ignore_xids=health.ignore_xids, recover_after=health.recover_after)
        self.monitor = Monitor(
            tenants,
            processes.locate,
            unit=board.names.memory_unit,
            registry=registry,
            settled=True,
            own=lambda: mps.servers if mps is not None else frozenset(),
        )
        self.injector = Injector(board.names)
        self._mps = mps
        if mps is not None:
            mps.subscribe(self.refresh)
            mps.on_lost(self._mps_lost)
        source.on_state(self._on_state)
        source.on_tick(self._on_tick)
        self.health.subscribe(lambda _: self.refresh())
        self.monitor.subscribe(self._on_report)
        self._held: dict[str, int] = {}
        self._blind: frozenset[str] = frozenset()
        self._judging = False
        self._looked: Tick | None = None

    @property
    def problem(self) -> str | None:
        """Why the GPUs can't be served, or None."""
        return self._source.problem() or self._problem

    @property
    def instances(self) -> Mapping[str, str]:
        """GPU id by the UUID of a MIG instance."""
        return {part.uuid: gpu.id for gpu in self._gpus() for part in gpu.mig}

    async def run(self) -> NoReturn:
        """Look at the machine now and then, until cancelled."""
        while True:
            await self.look()
            await self._clock.sleep(SURVEY_EVERY)

    def judge_processes(self) -> None:
        """Begin to look at who uses the GPUs. Without the ledger every tenant would be foreign, and withheld as such."""
        self._judging = True
        if self._looked is not None:
            # What is foreign is to be withheld in our first word to the kubelet.
            self.monitor.feed(self._looked)

    async def look(self) -> None:
        """Look at the machine once."""
        self._environment = await self._survey()
        self.refresh()

    def configure(self, config: Config) -> None:
        """Take a new config."""
        health = config.health
        self.health.configure(ignore_xids=health.ignore_xids, recover_after=health.recover_after)
        self.refresh()

    def refresh(self) -> None:
        """Make the board's picture of what is known now."""
        state = self._source.state
        gpus = self._gpus()
        config = self._config()
        if isinstance(state, Serving):
            mode = choose_mode(config.device_injection, gpus, self._environment)
            environment = self._environment
            if self._mps is not None:
                environment = msgspec.structs.replace(environment, mps=self._mps.problem)
                able = [
                    gpu.id for gpu in gpus if Guarantee.PROCESS in config.isolation and mps_problem(gpu, None) is None
                ]
                self.injector.share_by_mps(able, MpsFolders(pipes=self._mps.pipes, shared=self._mps.shared))
            verdicts = probe(state.facts, environment, order=config.isolation, mode=mode, blind=self._blind)
            self._log_verdicts(verdicts)
            guarantees = {gpu: verdict.guarantees for gpu, verdict in verdicts.items()}
            self.injector.update(gpus, guarantees=guarantees, mode=mode)
        guarantees = {gpu: verdict.guarantees for gpu, verdict in self._verdicts.items()}
        try:
            self._board.update(
                inventory_gpus(
                    gpus,
                    unit=config.memory_unit,
                    headroom=config.headroom_per_gpu,
                    health=self.health.health,
                    guarantees=guarantees,
                    held=self._held,
                )
            )
        except TesseraError as error:
            if str(error) != self._problem:
                _log.error("%s", error)
            self._problem = str(error)
        else:
            self._problem = None

    @property
    def limits(self) -> dict[int, int]:
        """Bytes that the slices of a GPU may come to, by NVML's index: no MPS client may have more."""
        unit = self._board.names.memory_unit
        return {gpu.index: gpu.units * unit for gpu in self._board.gpus.values() if gpu.units}

    def _mps_lost(self) -> None:
        exclusive = {gpu.id for gpu in self._gpus() if gpu.exclusive}
        for grant in self._board.ledger:
            if not exclusive.isdisjoint(grant.gpus):
                self._notices.mps_ended(grant)

    def _gpus(self) -> tuple[GpuFacts, ...]:
        state = self._source.state
        if isinstance(state, Serving):
            self._last = state.gpus
        elif isinstance(state, Idle):
            self._last = ()
        return self._last

    def _on_state(self, _: State) -> None:
        self.refresh()

    def _on_tick(self, tick: Tick) -> None:
        self.health.feed(tick)
        if self._judging:
            self.monitor.feed(tick)
        else:
            self._looked = tick

    def _on_report(self, report: Report) -> None:
        for excess in report.excesses:
            self._notices.excess(excess.pod_uid, excess.namespace, excess.pod, str(excess))
        if (report.held, report.blind) != (self._held, self._blind):
            self._held, self._blind = report.held, report.blind
            self.refresh()

    def _log_verdicts(self, verdicts: dict[str, Verdict]) -> None:
        for gpu, verdict in verdicts.items():
            if self._verdicts.get(gpu) != verdict:
                reasons = "; ".join(f"not {guarantee.value}: {why}" for guarantee, why in verdict.against.items())
                _log.info(
                    "GPU %s: memory guarantee %s, compute guarantee %s%s",
                    gpu,
                    verdict.guarantees.memory.value,
                    verdict.guarantees.compute.value,
                    f" ({reasons})" * bool(reasons),
                )
        self._verdicts = verdicts
