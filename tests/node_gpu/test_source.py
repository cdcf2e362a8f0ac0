"""Idle, not ready, serving: how the agent starts, and how it comes back."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable

import pytest

from deviceplugin.nvml.binding import Binding
from deviceplugin.nvml.driver import NvmlDriver
from deviceplugin.nvml.errors import Code, NvmlCallError, NvmlUnavailableError
from deviceplugin.nvml.facts import GpuSample, Look, NodeFacts, RecoveryAction, UnreadableGpu
from deviceplugin.nvml.pci import PciBus
from deviceplugin.nvml.source import REREAD, RETRY_MOST, GpuSource, Idle, NotReady, Serving, Starting
from deviceplugin.nvml.worker import Worker
from tessera.testing.nvml import FakeGpu, NvmlReturn

FINE = GpuSample(processes=(), used=0, recovery=RecoveryAction.NONE)


def call_error(code: int, gpu: str = "") -> NvmlCallError:
    return NvmlCallError("nvmlDeviceGetMemoryInfo", code, "text", gpu=gpu)


class ScriptedDriver:
    """Answers what a test put there; an exception is raised."""

    def __init__(self, *gpus: object) -> None:
        self.facts: NodeFacts | Exception = NodeFacts(driver="615.10", gpus=gpus)
        self.samples: dict[str, object] = {gpu.id: FINE for gpu in gpus}
        self.error: Exception | None = None
        self.calls: list[str] = []
        self.block: threading.Event | None = None

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.block is not None:
            self.block.wait(10)

    def open(self) -> None:
        self._called("open")
        if isinstance(self.error, NvmlUnavailableError):
            raise self.error

    def close(self) -> None:
        self._called("close")

    def read(self) -> NodeFacts:
        self._called("read")
        if isinstance(self.facts, Exception):
            raise self.facts
        return self.facts

    def look(self) -> Look:
        self._called("look")
        if self.error is not None:
            raise self.error
        return Look(samples=dict(self.samples))


@pytest.fixture
def make_source(clock, one_card):
    def make(driver, *, sysfs: str = one_card, insist: bool = False, worker: Worker | None = None) -> GpuSource:
        return GpuSource(driver, clock=clock, pci=PciBus(sysfs), insist=insist, worker=worker)

    return make


def ticks(source: GpuSource) -> list:
    found: list = []
    source.on_tick(found.append)
    return found


def test_which_pci_devices_are_gpus(make_sysfs) -> None:
    sysfs = make_sysfs(
        {
            "0000:17:00.0": ("0x10de", "0x030200", "0"),
            "0000:00:02.0": ("0x8086", "0x030000", "0"),
            "0000:05:00.0": ("0x10de", "0x068000", None),
            "0000:65:00.0": ("0x10de", "0x030000", "-1"),
            "0000:66:00.0": ("nonsense", "0x030000", None),
        }
    )
    bus = PciBus(sysfs)
    assert bus.nvidia_gpus() == ("0000:17:00.0", "0000:65:00.0")
    assert (bus.numa("0000:17:00.0"), bus.numa("0000:65:00.0"), bus.numa("0000:66:00.0")) == (0, -1, -1)
    assert PciBus("/nowhere").nvidia_gpus() == ()


async def test_a_machine_without_a_card_is_ready_and_idle(make_source, facts_of) -> None:
    driver = ScriptedDriver(facts_of())
    source = make_source(driver, sysfs="/nowhere")
    assert source.problem() is not None
    await source.step()
    assert source.state == Idle()
    assert source.problem() is None
    assert driver.calls == []
    await source.close()


async def test_a_card_that_is_plugged_in_later_is_found(make_source, make_sysfs, facts_of, tmp_path) -> None:
    shutil.rmtree(tmp_path / "sys")
    source = make_source(ScriptedDriver(facts_of()), sysfs=str(tmp_path / "sys"))
    await source.step()
    assert source.state == Idle()
    make_sysfs({"0000:17:00.0": ("0x10de", "0x030200", "0")})
    await source.step()
    assert isinstance(source.state, Serving)
    await source.close()


async def test_a_card_without_nvml_is_not_ready_says_why_and_is_tried_again(make_source, facts_of) -> None:
    driver = ScriptedDriver(facts_of())
    driver.error = NvmlUnavailableError("the NVIDIA kernel driver is not loaded")
    source = make_source(driver)
    waits = [await source.step() for _ in range(8)]
    assert isinstance(source.state, NotReady)
    assert "not loaded" in (source.problem() or "")
    assert "0000:17:00.0" in (source.problem() or "")
    assert waits[:3] == [1.0, 2.0, 4.0]
    assert max(waits) == RETRY_MOST
    driver.error = None
    await source.step()
    assert isinstance(source.state, Serving)
    assert source.problem() is None
    await source.close()


async def test_a_library_named_by_hand_is_tried_without_a_card(make_source, facts_of) -> None:
    driver = ScriptedDriver(facts_of())
    source = make_source(driver, sysfs="/nowhere", insist=True)
    await source.step()
    assert isinstance(source.state, Serving)
    await source.close()


async def test_a_library_named_by_hand_on_a_cpu_node_is_idle(make_source) -> None:
    driver = ScriptedDriver()
    driver.error = NvmlUnavailableError("can't be loaded")
    source = make_source(driver, sysfs="/nowhere", insist=True)
    await source.step()
    assert source.state == Idle()
    await source.close()


async def test_nvml_that_sees_no_usable_gpu_says_which_reasons(make_source) -> None:
    driver = ScriptedDriver()
    driver.facts = NodeFacts(driver="615.10", unreadable=(UnreadableGpu(index=0, uuid="", reason="GPU 0 is lost"),))
    source = make_source(driver)
    await source.step()
    assert "GPU 0 is lost" in (source.problem() or "")
    await source.close()


async def test_every_look_reaches_the_listeners(make_source, facts_of) -> None:
    gpu = facts_of()
    source = make_source(ScriptedDriver(gpu))
    heard = ticks(source)
    await source.step()
    assert await source.step() == 1.0
    assert [tick.look.samples for tick in heard] == [{gpu.id: FINE}]
    assert heard[0].known == {gpu.id: gpu}
    assert heard[0].failure is None
    await source.close()


async def test_one_gpus_error_is_handed_on_without_a_new_connection(make_source, facts_of) -> None:
    one, two = facts_of(0), facts_of(1)
    driver = ScriptedDriver(one, two)
    source = make_source(driver)
    heard = ticks(source)
    await source.step()
    driver.samples[one.id] = call_error(Code.GPU_IS_LOST)
    await source.step()
    assert heard[-1].look.samples[two.id] == FINE
    assert driver.calls.count("open") == 1
    await source.close()


async def test_a_driver_that_was_reloaded_is_connected_to_anew(make_source, facts_of) -> None:
    driver = ScriptedDriver(facts_of())
    source = make_source(driver)
    heard = ticks(source)
    await source.step()
    driver.error = call_error(Code.UNINITIALIZED)
    await source.step()
    assert isinstance(source.state, NotReady)
    assert heard[-1].failure is not None
    assert heard[-1].known, "GPUs that were known are still told of"
    driver.error = None
    await source.step()
    assert isinstance(source.state, Serving)
    await source.close()


async def test_all_gpus_failing_at_once_means_a_new_connection_but_not_every_second(
    make_source, facts_of, clock
) -> None:
    gpu = facts_of()
    driver = ScriptedDriver(gpu)
    source = make_source(driver)
    heard = ticks(source)
    await source.step()
    driver.samples[gpu.id] = call_error(999)
    for _ in range(20):
        clock.now += await source.step()
    opened = driver.calls.count("open") - 1
    assert 1 <= opened <= 6
    assert isinstance(source.state, Serving)
    driver.samples[gpu.id] = FINE
    await source.step()
    assert heard[-1].look.samples == {gpu.id: FINE}
    await source.close()


async def test_a_gpu_that_vanishes_is_kept_as_gone_and_looked_for_by_a_new_connection(
    make_source, facts_of, clock
) -> None:
    one, two = facts_of(0), facts_of(1)
    driver = ScriptedDriver(one, two)
    source = make_source(driver)
    states: list = []
    source.on_state(states.append)
    await source.step()
    driver.facts = NodeFacts(driver="615.10", gpus=(one,))
    del driver.samples[two.id]
    clock.now += REREAD + 1
    await source.step()
    assert states[-1] == Serving(driver.facts, {two.id: two})
    assert states[-1].gpus == (one, two)
    driver.calls.clear()
    driver.facts = NodeFacts(driver="615.10", gpus=(one, two))
    clock.now += REREAD + 1
    await source.step()
    assert driver.calls == ["look", "close", "open", "read"]
    assert states[-1].gone == {}
    await source.close()


async def test_new_mig_instances_are_noticed(make_source, facts_of, clock) -> None:
    driver = ScriptedDriver(facts_of(mig_mode=False))
    source = make_source(driver)
    states: list = []
    source.on_state(states.append)
    await source.step()
    driver.facts = NodeFacts(driver="615.10", gpus=(facts_of(mig_mode=True),))
    clock.now += REREAD + 1
    await source.step()
    assert states[-1].facts.gpus[0].mig_mode
    assert len(states) == 2
    await source.close()


async def test_a_hung_driver_is_not_ready_and_the_agent_goes_on(make_source, facts_of) -> None:
    driver = ScriptedDriver(facts_of())
    source = make_source(driver, worker=Worker(deadline=0.05))
    heard = ticks(source)
    await source.step()
    driver.block = threading.Event()
    await source.step()
    assert "has not come back" in (source.problem() or "")
    assert heard[-1].failure is not None
    await source.step()
    assert "still hanging" in (source.problem() or "")
    released, driver.block = driver.block, None
    released.set()
    async with asyncio.timeout(10):
        while not isinstance(source.state, Serving):
            await source.step()
            await asyncio.sleep(0.001)
    await source.close()


async def test_it_runs_until_it_is_cancelled_and_closes_the_driver(make_source, facts_of) -> None:
    driver = ScriptedDriver(facts_of())
    source = make_source(driver)
    enough = asyncio.Event()
    heard: list = []

    def hear(tick: object) -> None:
        heard.append(tick)
        if len(heard) == 5:
            enough.set()

    source.on_tick(hear)
    task = asyncio.create_task(source.run())
    async with asyncio.timeout(10):
        await enough.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert driver.calls[-1] == "close"


async def test_a_new_source_is_starting(make_source) -> None:
    source = make_source(ScriptedDriver())
    assert source.state == Starting()
    assert source.problem() == "the GPUs have not been read yet"


async def test_with_the_fake_driver_through_reload_and_loss(make_fake: Callable, clock, one_card: str) -> None:
    fake = make_fake("A100-80GB", FakeGpu.of("T4", numa=1))
    fake.fail_init(NvmlReturn.LIB_RM_VERSION_MISMATCH)
    driver = NvmlDriver(Binding(str(fake.library)), PciBus(one_card))
    source = GpuSource(driver, clock=clock, pci=PciBus(one_card))
    heard = ticks(source)
    await source.step()
    assert "different versions" in (source.problem() or "")
    fake.fail_init(None)
    await source.step()
    assert isinstance(source.state, Serving)
    first, second = source.state.facts.gpus
    fake.lose(0)
    await source.step()
    assert isinstance(heard[-1].look.samples[first.id], NvmlCallError)
    assert isinstance(heard[-1].look.samples[second.id], GpuSample)
    assert [event.data for event in heard[-1].look.events] == [79]
    fake.return_gpu(0)
    await source.step()
    assert isinstance(heard[-1].look.samples[first.id], GpuSample)
    fake.set_driver("615.20")
    fake.fail("nvmlDeviceGetMemoryInfo_v2", NvmlReturn.UNINITIALIZED)
    await source.step()
    assert source.problem() is not None
    fake.heal()
    await source.step()
    assert isinstance(source.state, Serving)
    assert source.state.facts.driver == "615.20"
    await source.close()
