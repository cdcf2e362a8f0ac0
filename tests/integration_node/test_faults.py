"""What breaks around an agent while it serves: cards, files, clocks, the kubelet. Nothing is given twice, and it heals."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest

from deviceplugin import leaving, ledgerfile, settle
from deviceplugin.errors import KubeletError
from deviceplugin.ledgerfile import read
from deviceplugin.nvml import source
from tessera.kube.clock import SystemClock
from tessera.model.names import names
from tessera.testing.nvml import NvmlReturn

UNITS, PERCENT, COMPUTE = names().tickets


def allocatable(cluster):
    found = cluster.kubelet.capacity().allocatable
    return [found.get(name) for name in (UNITS, PERCENT, COMPUTE)]


def device_ids(cluster):
    """Every ID that the kubelet has recorded or our ledger has given, each by its container."""
    recorded = {
        (device, uid)
        for uid, containers in cluster.kubelet.allocations().items()
        for held in containers.values()
        for ids in held.values()
        for device in ids
    }
    given = {
        (device, grant.uid) for grant in cluster.agent.board.ledger for ids in grant.devices.values() for device in ids
    }
    return recorded | given


def health(cluster, index):
    return next(gpu.health for gpu in cluster.inventory().gpus if gpu.id == cluster.gpu(index))


def nothing_twice(cluster):
    found = device_ids(cluster)
    return len({device for device, _ in found}) == len(found)


# Cards.


async def test_a_sick_gpu_that_is_full_leaves_the_free_one_beside_it_usable(make_cluster):
    cluster = await make_cluster(config="health: {recoverAfter: 0.3}")
    full = cluster.pod("full", {UNITS: 316, COMPUTE: 60}, plan={"main": [(0, 316, 60)]})
    await cluster.running_pod("full")
    cluster.nvml.mark_sick(0, 79)
    await cluster.until(lambda: allocatable(cluster) == [316, 100, 100])
    # By the Node's numbers nothing is free: 316 of 316 units are given.
    slice_ = cluster.pod("slice", {UNITS: 158}, plan={"main": [(1, 158, 0)]})
    await cluster.running_pod("slice")
    assert cluster.given(slice_)[UNITS] == {cluster.gpu(1)}
    await cluster.until(lambda: allocatable(cluster) == [316, 50, 100])
    cluster.api.remove("pods", "slice", "default")
    await cluster.until(lambda: cluster.agent.board.ledger.pods == {full})
    # The kubelet hears of it a moment later, and rejects a pod that comes in between.
    await cluster.until(lambda: allocatable(cluster) == [316, 100, 100])
    whole = cluster.pod("whole", {PERCENT: 100, COMPUTE: 100}, plan={"main": [(1, 316, 100)]})
    await cluster.running_pod("whole")
    assert cluster.given(whole)[PERCENT] == {cluster.gpu(1)}
    cluster.kubelet.restart_container(full, "main")
    await cluster.until(lambda: cluster.kubelet.containers(full)[0].restart_count == 1)
    cluster.nvml.recover(0)
    # What is held stays so, and percent is withheld on both.
    await cluster.until(lambda: allocatable(cluster) == [316, 100, 200])
    assert cluster.drift() == {}


async def test_a_gpu_that_vanishes_takes_nothing_with_it_and_may_come_back(make_cluster, monkeypatch):
    monkeypatch.setattr(source, "REREAD", 0.2)
    cluster = await make_cluster(config="health: {recoverAfter: 0.1}")
    uid = cluster.pod("p", {UNITS: 32}, plan={"main": [(0, 32, 0)]})
    await cluster.running_pod("p")
    cluster.nvml.lose(0)
    await cluster.until(lambda: health(cluster, 0) == "lost")
    # Planned before the extender had heard of it.
    late = cluster.pod("late", {UNITS: 32}, plan={"main": [(0, 32, 0)]})
    await cluster.running_pod("late")
    assert cluster.given(late)[UNITS] == {cluster.gpu(1)}
    await cluster.until(lambda: set(cluster.drift()) == {late})
    await cluster.kill_agent()
    cluster.agent = await cluster.make_agent()
    cluster.running = asyncio.create_task(cluster.agent.run(cluster.stop))
    # An agent that never saw the card knows what was given of it.
    await cluster.until(lambda: {grant.uid for grant in cluster.agent.board.ledger} == {uid, late})
    cluster.nvml.return_gpu(0)
    await cluster.until(lambda: allocatable(cluster)[0] == 632)
    assert cluster.agent.board.ledger.held(cluster.gpu(0)).units == 32
    assert cluster.phase("p") == "Running"


async def test_a_driver_that_stops_answering_and_comes_back(make_cluster):
    cluster = await make_cluster(config="health: {recoverAfter: 0.1}")
    cluster.pod("p", {UNITS: 32}, plan={"main": [(0, 32, 0)]})
    await cluster.running_pod("p")
    cluster.nvml.fail_init(NvmlReturn.DRIVER_NOT_LOADED)
    for index in (0, 1):
        cluster.nvml.lose(index, xid=None)
    await cluster.until(lambda: allocatable(cluster) == [0, 0, 0])
    await cluster.until(lambda: {gpu.health for gpu in cluster.inventory().gpus} == {"lost"})
    cluster.nvml.fail_init(None)
    for index in (0, 1):
        cluster.nvml.return_gpu(index)
    await cluster.until(lambda: allocatable(cluster)[0] == 632)
    assert cluster.agent.board.ledger.held(cluster.gpu(0)).units == 32


# The kubelet's files and moods.


async def test_a_kubelet_that_has_lost_its_checkpoint_gives_nothing_twice(make_cluster):
    cluster = await make_cluster("A100-80GB")
    old = [cluster.pod(f"old{n}", {UNITS: 64, COMPUTE: 10}, plan={"main": [(0, 64, 10)]}) for n in range(2)]
    for number in range(2):
        await cluster.running_pod(f"old{number}")
    await cluster.node.stop()
    os.unlink(cluster.kubelet.paths.checkpoint)
    await cluster.node.start()
    await cluster.serving()
    assert cluster.kubelet.allocations().keys().isdisjoint(old), "the kubelet has forgotten them"
    new = [cluster.pod(f"new{n}", {UNITS: 64, COMPUTE: 10}, plan={"main": [(0, 64, 10)]}) for n in range(2)]
    for number in range(2):
        await cluster.running_pod(f"new{number}")
    assert nothing_twice(cluster)
    await cluster.stop_agent()
    await cluster.start_agent()
    assert {grant.uid for grant in cluster.agent.board.ledger} == {*old, *new}
    cluster.pod("more", {UNITS: 64, COMPUTE: 10})
    # The kubelet believes in 188 free units; there are 60.
    assert "no GPU of this node" in await cluster.rejected("more")


async def test_a_kubelet_that_restarts_in_the_middle_of_a_burst(make_cluster):
    cluster = await make_cluster()
    uids = [cluster.pod(f"p{n}", {UNITS: 16, COMPUTE: 5}, plan={"main": [(n % 2, 16, 5)]}) for n in range(12)]
    await cluster.until(lambda: len(cluster.agent.board.ledger) >= 3)
    await cluster.node.restart()
    for number, uid in enumerate(uids):
        await cluster.until(lambda number=number: cluster.phase(f"p{number}") in {"Running", "Failed"})
        if cluster.phase(f"p{number}") == "Running":
            gpus = cluster.given(uid)
            assert gpus[UNITS] == gpus[COMPUTE] == {cluster.gpu(number % 2)}
    assert nothing_twice(cluster)
    running = [number for number in range(12) if cluster.phase(f"p{number}") == "Running"]
    # The one in admission as the kubelet stopped may be lost with it.
    assert len(running) >= 11, [cluster.message(f"p{number}") for number in range(12)]


async def test_pods_that_could_not_be_told_in_admission_are_told_later(make_cluster, monkeypatch):
    cluster = await make_cluster()
    lister, answer = cluster.agent._lister, cluster.agent._lister.list

    async def refuse():
        raise KubeletError("kubelet did not answer List: rejected by rate limit")

    monkeypatch.setattr(lister, "list", refuse)
    uid = cluster.pod("p", {UNITS: 16, COMPUTE: 10}, plan={"main": [(1, 16, 10)]})
    await cluster.until(lambda: cluster.phase("p") == "Running")
    assert all(grant.uid.startswith("?") for grant in cluster.agent.board.ledger)
    monkeypatch.setattr(lister, "list", answer)
    await cluster.until(lambda: {grant.uid for grant in cluster.agent.board.ledger} == {uid})
    (grant,) = cluster.agent.board.ledger
    assert (set(grant.devices), grant.name) == ({UNITS, COMPUTE}, "p")
    # Without being told the plan is not known, and the first GPU is as good as the other.
    await cluster.until(lambda: set(cluster.drift()) == {uid})
    assert nothing_twice(cluster)


# Our own file.


async def test_what_was_given_after_the_last_write_is_known_after_a_kill(make_cluster):
    cluster = await make_cluster()
    path = Path(cluster.folder) / "state" / "ledger.json"
    first = cluster.pod("first", {UNITS: 16}, plan={"main": [(0, 16, 0)]})
    await cluster.running_pod("first")
    await cluster.until(lambda: path.exists() and read(str(path)))
    draft = path.with_suffix(".json.new")
    draft.mkdir()
    second = cluster.pod("second", {UNITS: 16, COMPUTE: 7}, plan={"main": [(1, 16, 7)]})
    await cluster.running_pod("second")
    await cluster.kill_agent()
    assert [grant.uid for grant in read(str(path))] == [first]
    draft.rmdir()
    # What a write in progress leaves behind.
    draft.write_bytes(b'{"v":1,"gra')
    await cluster.start_agent()
    assert {(grant.uid, grant.planned) for grant in cluster.agent.board.ledger} == {(first, True), (second, True)}
    await cluster.until(lambda: {grant.uid for grant in read(str(path))} == {first, second})


@pytest.mark.parametrize("trouble", ["full", "read-only"])
async def test_a_disk_that_takes_nothing_stops_no_agent_from_starting(make_cluster, monkeypatch, trouble):

    code = {"full": errno.ENOSPC, "read-only": errno.EROFS}[trouble]
    cluster = await make_cluster()
    await cluster.stop_agent()
    opened, written = os.open, ledgerfile.write

    def broken(path, flags, *rest, **more):
        if str(path).startswith(cluster.folder + "/state") and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(code, os.strerror(code), path)
        return opened(path, flags, *rest, **more)

    def refuse(path, _):
        raise ledgerfile.LedgerFileError(f"{path} can't be written: {os.strerror(code)}")

    monkeypatch.setattr(os, "open", broken)
    monkeypatch.setattr(ledgerfile, "write", refuse)
    monkeypatch.setattr(ledgerfile, "FIRST_WAIT", 0.05)
    await cluster.start_agent()
    uid = cluster.pod("p", {UNITS: 16}, plan={"main": [(0, 16, 0)]})
    await cluster.running_pod("p")
    await cluster.until(cluster.agent.checks["ledger"])
    assert os.strerror(code) in cluster.agent.checks["ledger"]()
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(ledgerfile, "write", written)
    await cluster.until(lambda: cluster.agent.checks["ledger"]() is None)
    assert [grant.uid for grant in read(f"{cluster.folder}/state/ledger.json")] == [uid]


# Time, and company.


@pytest.mark.parametrize("hours", [-7, 7])
async def test_a_clock_that_jumps_by_hours_changes_nothing(make_cluster, monkeypatch, hours):
    cluster = await make_cluster()
    uids = [cluster.pod("before", {UNITS: 16}, plan={"main": [(0, 16, 0)]})]
    await cluster.running_pod("before")
    # Not time.time: gRPC makes its deadlines of it here and compares them with the kernel's clock.
    monkeypatch.setattr(SystemClock, "wall", lambda _: time.time() + 3600 * hours)
    uids.append(cluster.pod("after", {UNITS: 16}, plan={"main": [(1, 16, 0)]}))
    await cluster.running_pod("after")
    await cluster.node.restart()
    await cluster.serving()
    assert {grant.uid for grant in cluster.agent.board.ledger} == set(uids)
    cluster.api.remove("pods", "before", "default")
    await cluster.until(lambda: {grant.uid for grant in cluster.agent.board.ledger} == {uids[1]})
    await cluster.stop_agent()
    await cluster.start_agent()
    await cluster.until(lambda: cluster.inventory().state == "serving")


async def test_of_two_newcomers_one_serves_and_the_other_waits_on(make_cluster, monkeypatch):
    monkeypatch.setattr(leaving, "QUIET", 0.0)
    cluster = await make_cluster()
    newcomers = [await cluster.make_agent(driver=cluster.same_gpus()) for _ in range(2)]
    stops = [asyncio.Event(), asyncio.Event()]
    running = [asyncio.create_task(each.run(stop)) for each, stop in zip(newcomers, stops, strict=True)]
    await cluster.until(lambda: all(each.notes["lock"]() for each in newcomers))
    await cluster.stop_agent()
    await cluster.until(lambda: any(each.registrar.problem is None for each in newcomers))
    serving = next(each for each in newcomers if each.registrar.problem is None)
    waiting = next(each for each in newcomers if each is not serving)
    assert waiting.notes["lock"]()
    cluster.agent = serving
    await cluster.serving()
    uid = cluster.pod("p", {UNITS: 16}, plan={"main": [(0, 16, 0)]})
    await cluster.running_pod("p")
    assert ([grant.uid for grant in serving.board.ledger], list(waiting.board.ledger)) == ([uid], [])
    for stop in stops:
        stop.set()
    await asyncio.gather(*running)


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(settle, "UNKNOWN_AFTER", 1.0)
