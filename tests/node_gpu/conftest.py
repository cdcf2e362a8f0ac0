"""A node's world in a folder: a fake driver, a sysfs, a /proc, and a clock that is moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deviceplugin.nvml.binding import Binding
from deviceplugin.nvml.driver import NvmlDriver
from deviceplugin.nvml.facts import GpuFacts, GpuSample, Look, RecoveryAction
from deviceplugin.nvml.pci import PciBus
from deviceplugin.nvml.source import Tick
from tessera.testing.nvml import STATE_VARIABLE, FakeGpu, FakeNvml

GIB = 1 << 30


class ManualClock:
    """Time that stands still; a sleep moves it and lets others run."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def make_fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeNvml]]:
    """A fake driver that this process finds."""
    with ExitStack() as stack:

        def make(*gpus: str | FakeGpu, **arguments: object) -> FakeNvml:
            cards = [FakeGpu.of(gpu) if isinstance(gpu, str) else gpu for gpu in gpus]
            fake = stack.enter_context(FakeNvml.create(tmp_path / "state", gpus=cards, **arguments))
            monkeypatch.setenv(STATE_VARIABLE, str(fake.path))
            return fake

        yield make


@pytest.fixture
def make_driver() -> Iterator[Callable[[FakeNvml], NvmlDriver]]:
    """An open driver on a fake; one at a time, as one process has one NVML."""
    with ExitStack() as stack:

        def make(fake: FakeNvml, *, pci: PciBus | None = None) -> NvmlDriver:
            driver = NvmlDriver(Binding(str(fake.library)), pci or PciBus("/nowhere"))
            stack.callback(driver.close)
            driver.open()
            return driver

        yield make


@pytest.fixture
def make_sysfs(tmp_path: Path) -> Callable[..., str]:
    """A sysfs with these PCI devices: address -> (vendor, class, NUMA node or None)."""

    def make(devices: dict[str, tuple[str, str, str | None]]) -> str:
        for address, (vendor, kind, numa) in devices.items():
            folder = tmp_path / "sys" / "bus" / "pci" / "devices" / address
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "vendor").write_text(f"{vendor}\n")
            (folder / "class").write_text(f"{kind}\n")
            if numa is not None:
                (folder / "numa_node").write_text(f"{numa}\n")
        return str(tmp_path / "sys")

    return make


@pytest.fixture
def one_card(make_sysfs: Callable[..., str]) -> str:
    return make_sysfs({"0000:17:00.0": ("0x10de", "0x030200", "0")})


@pytest.fixture
def facts_of() -> Callable[..., GpuFacts]:
    """Facts of a GPU by its number."""

    def make(number: int = 0, **changes: object) -> GpuFacts:
        id_ = f"{number:012x}"
        plain: dict[str, object] = {
            "id": id_,
            "uuid": f"GPU-{id_[:8]}-{id_[8:]}-0000-0000-000000000000",
            "index": number,
            "name": "NVIDIA A100-SXM4-80GB",
            "memory": 80 * GIB,
            "reserved": GIB,
            "accounting": True,
        }
        return GpuFacts(**(plain | changes))

    return make


@pytest.fixture
def tick_of() -> Callable[..., Tick]:
    """A look at GPUs: each fine and empty unless said otherwise."""

    def make(now: float, *gpus: GpuFacts, events: tuple = (), failure: str | None = None, **samples: object) -> Tick:
        fine = GpuSample(processes=(), used=0, recovery=RecoveryAction.NONE)
        seen = {} if failure else {gpu.id: samples.get(f"gpu{gpu.index}", fine) for gpu in gpus}
        present = {gpu: sample for gpu, sample in seen.items() if sample is not None}
        return Tick(
            now=now, known={gpu.id: gpu for gpu in gpus}, look=Look(samples=present, events=events), failure=failure
        )

    return make
