"""The judgement over a GPU, step by step."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from deviceplugin.health import FAILURES, Condition, HealthTable, Seen, Settings, advance
from deviceplugin.nvml.binding import Binding
from deviceplugin.nvml.driver import NvmlDriver
from deviceplugin.nvml.errors import NvmlCallError
from deviceplugin.nvml.facts import GpuEvent, GpuSample, RecoveryAction
from deviceplugin.nvml.pci import PciBus
from deviceplugin.nvml.source import GpuSource
from tessera.testing.nvml import RecoveryAction as FakeAction

QUIET = Seen()
RESET = Seen(recovery=RecoveryAction.GPU_RESET)
OLD = Seen(recovery=None)
LOST = Seen(answer="lost", recovery=None, error="GPU is lost")
FAILED = Seen(answer="failed", recovery=None, error="Unknown Error")


def xid(number: int, recovery: RecoveryAction | None = RecoveryAction.NONE) -> Seen:
    return Seen(xids=(number,), recovery=recovery)


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        pytest.param([(0, QUIET)], ["ok"], id="nothing happens"),
        pytest.param([(0, xid(94)), (1, QUIET), (59, QUIET), (60, QUIET)], ["sick", "recovering", "recovering", "ok"],
                     id="a transient XID comes back after a minute of quiet"),
        pytest.param([(0, xid(94)), (30, xid(94)), (60, QUIET), (90, QUIET)], ["sick", "sick", "recovering", "ok"],
                     id="every further XID starts the minute anew"),
        pytest.param([(0, xid(n)) for n in (13, 31, 43, 45, 68, 109)], ["ok"] * 6, id="a program's own faults"),
        pytest.param([(0, xid(74, RecoveryAction.GPU_RESET)), (200, RESET), (201, QUIET), (260, QUIET)],
                     ["sick", "sick", "recovering", "ok"], id="a pending reset keeps it out, however long"),
        pytest.param([(0, RESET), (1, QUIET), (60, QUIET)], ["sick", "recovering", "ok"], id="a recommendation alone"),
        pytest.param([(0, Seen(recovery=RecoveryAction.UNKNOWN))], ["sick"], id="one from the future"),
        pytest.param([(0, Seen(recovery=RecoveryAction.DRAIN_P2P))], ["sick"], id="peers can't be reached"),
        pytest.param([(0, Seen(ecc=True)), (1, QUIET), (61, QUIET)], ["sick", "recovering", "ok"],
                     id="double-bit error that the driver has dealt with"),
        pytest.param([(0, Seen(ecc=True, recovery=None)), (600, OLD)], ["sick", "sick"],
                     id="double-bit error with an old driver"),
        pytest.param([(0, xid(79, None)), (600, OLD)], ["sick", "sick"], id="an XID only a reset cures, old driver"),
        pytest.param([(0, xid(63, None)), (1, OLD), (61, OLD)], ["sick", "recovering", "ok"],
                     id="another XID, old driver"),
        pytest.param([(0, xid(79, None)), (5, LOST), (9, OLD), (70, OLD)], ["sick", "lost", "recovering", "ok"],
                     id="reset shows as lost and found"),
        pytest.param([(0, LOST), (600, LOST), (601, QUIET), (661, QUIET)], ["lost", "lost", "recovering", "ok"],
                     id="lost and found"),
        pytest.param([(0, Seen(unavailable=True)), (1, QUIET)], ["sick", "recovering"], id="unavailable"),
        pytest.param([(0, Seen(answer="reset", error="RESET_REQUIRED")), (1, QUIET)], ["sick", "recovering"],
                     id="every call answers RESET_REQUIRED"),
        pytest.param([(0, FAILED), (1, FAILED), (2, QUIET)], ["ok", "ok", "ok"], id="two failed looks are no illness"),
        pytest.param([(n, FAILED) for n in range(FAILURES)] + [(9, QUIET), (70, QUIET)],
                     ["ok"] * (FAILURES - 1) + ["sick", "recovering", "ok"], id="three in a row are"),
        pytest.param([(0, xid(94)), (1, FAILED), (2, FAILED), (3, QUIET)], ["sick", "sick", "sick", "recovering"],
                     id="a failed look is no recovery"),
    ],
)  # fmt: skip
def test_stories(story: list[tuple[float, Seen]], expected: list[str]) -> None:
    condition, found = Condition(), []
    for now, seen in story:
        condition = advance(condition, seen, now=now, settings=Settings())
        found.append(condition.health)
        assert bool(condition.reason) == (condition.health != "ok")
    assert found == expected


def test_config_adds_to_what_is_ignored_and_sets_the_quiet() -> None:
    settings = Settings(ignore_xids=frozenset({94}), recover_after=5)
    assert advance(Condition(), xid(94), now=0, settings=settings).health == "ok"
    assert advance(Condition(), xid(31), now=0, settings=settings).health == "ok"
    sick = advance(Condition(), xid(63), now=0, settings=settings)
    assert advance(sick, QUIET, now=5, settings=settings).health == "ok"


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (xid(48, RecoveryAction.GPU_RESET), ("a GPU reset", "XID 48", "double-bit ECC")),
        (xid(777), ("XID 777",)),
        (LOST, ("lost", "GPU is lost")),
        (Seen(recovery=RecoveryAction.NODE_REBOOT), ("a reboot of the node",)),
    ],
)
def test_reasons_are_for_people(seen: Seen, words: tuple[str, ...]) -> None:
    reason = advance(Condition(), seen, now=0, settings=Settings()).reason
    for word in words:
        assert word in reason


def test_a_sick_gpu_leaves_the_others_and_changes_are_told_once(facts_of, tick_of) -> None:
    one, two = facts_of(0), facts_of(1)
    registry = CollectorRegistry()
    table = HealthTable(registry=registry)
    heard: list = []
    table.subscribe(heard.append)
    table.feed(tick_of(0, one, two))
    assert heard == []
    assert table.health == {one.id: "ok", two.id: "ok"}
    struck = tick_of(1, one, two, events=(GpuEvent(gpu=one.id, kind="xid", data=94),))
    assert [(change.gpu, change.health) for change in table.feed(struck)] == [(one.id, "sick")]
    assert table.health == {one.id: "sick", two.id: "ok"}
    assert len(heard) == 1
    table.feed(tick_of(2, one, two))
    table.feed(tick_of(3, one, two))
    assert [change.health for changes in heard for change in changes] == ["sick", "recovering"]
    assert registry.get_sample_value("tessera_gpu_healthy", {"gpu": one.id}) == 0
    assert registry.get_sample_value("tessera_gpu_healthy", {"gpu": two.id}) == 1
    assert registry.get_sample_value("tessera_gpu_xids_total", {"gpu": one.id, "xid": "94"}) == 1


def test_a_gpu_that_fails_or_is_missing_in_a_look_says_nothing_about_the_others(facts_of, tick_of) -> None:
    one, two, three = facts_of(0), facts_of(1), facts_of(2)
    table = HealthTable()
    lost = NvmlCallError("nvmlDeviceGetMemoryInfo", 15, "GPU is lost", gpu=one.uuid)
    table.feed(tick_of(0, one, two, three, gpu0=lost, gpu1=None))
    assert table.health == {one.id: "lost", two.id: "lost", three.id: "ok"}
    assert one.uuid in table.conditions[one.id].reason


def test_without_a_driver_every_gpu_is_lost_and_comes_back(facts_of, tick_of) -> None:
    one, two = facts_of(0), facts_of(1)
    table = HealthTable()
    table.configure(ignore_xids=(), recover_after=10)
    table.feed(tick_of(0, one, two))
    table.feed(tick_of(1, one, two, failure="the driver hangs"))
    assert set(table.health.values()) == {"lost"}
    assert "the driver hangs" in table.conditions[one.id].reason
    table.feed(tick_of(2, one, two))
    assert set(table.health.values()) == {"recovering"}
    table.feed(tick_of(11, one, two))
    assert set(table.health.values()) == {"ok"}


def test_hostile_xids_make_no_endless_labels(facts_of, tick_of) -> None:
    registry = CollectorRegistry()
    table = HealthTable(registry=registry)
    gpu = facts_of()
    events = tuple(GpuEvent(gpu=gpu.id, kind="xid", data=2**40 + n) for n in range(50))
    table.feed(tick_of(0, gpu, events=events))
    series = [
        sample for metric in registry.collect() for sample in metric.samples if sample.name.endswith("xids_total")
    ]
    assert len(series) == 1


async def test_a_whole_illness_with_the_fake_driver(make_fake, clock, one_card) -> None:
    fake = make_fake("A100-80GB", "A100-80GB")
    pci = PciBus(one_card)
    source = GpuSource(NvmlDriver(Binding(str(fake.library)), pci), clock=clock, pci=pci)
    table = HealthTable()
    source.on_tick(table.feed)
    await source.step()
    await source.step()
    assert list(table.health.values()) == ["ok", "ok"]
    fake.mark_sick(0, 95, FakeAction.GPU_RESET)
    await source.step()
    assert list(table.health.values()) == ["sick", "ok"]
    fake.recover(0)
    clock.now += 1
    await source.step()
    assert list(table.health.values()) == ["recovering", "ok"]
    clock.now += 60
    await source.step()
    assert list(table.health.values()) == ["ok", "ok"]
    fake.lose(1)
    await source.step()
    assert list(table.health.values()) == ["ok", "lost"]
    await source.close()


def test_seen_defaults_are_a_healthy_look() -> None:
    assert advance(Condition(), Seen(), now=0, settings=Settings()) == Condition()
    assert GpuSample(processes=(), used=0, recovery=None).recovery is None
