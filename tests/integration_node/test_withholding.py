"""What one view has given away is missing in the other, and a sick GPU in all of them."""

from __future__ import annotations

import asyncio

from tessera.model.names import names
from tessera.testing.nvml import NvmlReturn

UNITS, PERCENT, COMPUTE = names().tickets


def allocatable(cluster):
    found = cluster.kubelet.capacity().allocatable
    return [found.get(resource, 0) for resource in (UNITS, PERCENT, COMPUTE)]


async def test_a_slice_in_units_withholds_percent_and_the_other_way_round(make_cluster):
    cluster = await make_cluster()
    assert allocatable(cluster) == [632, 200, 200]
    cluster.pod("units", {UNITS: 32, COMPUTE: 30}, plan={"main": [(0, 32, 30)]})
    await cluster.running_pod("units")
    # 32 of 316 units are 10.1 %, so 89 whole percents are left on that GPU. Its own units stay.
    await cluster.until(lambda: allocatable(cluster) == [632, 189, 200])
    cluster.pod("percent", {PERCENT: 50, COMPUTE: 50}, plan={"main": [(1, 158, 50)]})
    await cluster.running_pod("percent")
    await cluster.until(lambda: allocatable(cluster) == [632 - 158, 189, 200])


async def test_a_gpu_with_any_slice_is_not_given_whole(make_cluster):
    cluster = await make_cluster()
    cluster.pod("slice", {UNITS: 1}, plan={"main": [(0, 1, 0)]})
    await cluster.running_pod("slice")
    whole = cluster.pod("whole", {PERCENT: 100, COMPUTE: 100}, plan={"main": [(0, 316, 100)]})
    await cluster.running_pod("whole")
    assert cluster.given(whole)[PERCENT] == {cluster.gpu(1)}
    cluster.pod("another", {PERCENT: 100, COMPUTE: 100})
    message = await cluster.rejected("another")
    # Whoever notices first says so.
    assert "whole GPU" in message or "Available: 99" in message or "enough resource" in message


async def test_a_freed_slice_comes_back_in_every_view(make_cluster):
    cluster = await make_cluster()
    cluster.pod("p", {PERCENT: 100, COMPUTE: 100}, plan={"main": [(0, 316, 100)]})
    await cluster.running_pod("p")
    await cluster.until(lambda: allocatable(cluster) == [316, 200, 200])
    cluster.api.remove("pods", "p", "default")
    await cluster.until(lambda: allocatable(cluster) == [632, 200, 200])


async def test_all_ids_of_a_sick_gpu_are_out_at_once_and_come_back(make_cluster):
    cluster = await make_cluster(config="health: {recoverAfter: 0.3}")
    cluster.pod("p", {UNITS: 32}, plan={"main": [(0, 32, 0)]})
    await cluster.running_pod("p")
    cluster.nvml.mark_sick(0, 79)
    await cluster.until(lambda: allocatable(cluster) == [316, 100, 100])
    await cluster.until(lambda: cluster.inventory().gpus[0].health == "sick")
    other = cluster.pod("q", {UNITS: 32}, plan={"main": [(0, 32, 0)]})
    await cluster.running_pod("q")
    assert cluster.given(other)[UNITS] == {cluster.gpu(1)}
    assert cluster.phase("p") == "Running"
    cluster.nvml.recover(0)
    await cluster.until(lambda: cluster.inventory().gpus[0].health == "ok")
    # p and q hold 32 units each, on two GPUs.
    await cluster.until(lambda: allocatable(cluster) == [632, 178, 200])


async def test_a_lost_gpu_stays_in_the_inventory_and_keeps_its_slices(make_cluster):
    cluster = await make_cluster()
    cluster.pod("p", {UNITS: 32}, plan={"main": [(0, 32, 0)]})
    await cluster.running_pod("p")
    cluster.nvml.lose(0)
    await cluster.until(lambda: cluster.inventory().gpus[0].health == "lost")
    assert [gpu.id for gpu in cluster.inventory().gpus] == [cluster.gpu(0), cluster.gpu(1)]
    await cluster.until(lambda: allocatable(cluster)[0] == 316)
    assert cluster.agent.board.ledger.held(cluster.gpu(0)).units == 32


async def test_memory_in_foreign_use_is_withheld(make_cluster):
    cluster = await make_cluster()
    cluster.nvml.add_process(0, 4242, memory=10 << 30)
    folder = f"{cluster.kubelet.paths.proc}/4242"
    await asyncio.to_thread(_write_cgroup, folder)
    # A process has to be foreign for five seconds before it counts.
    await cluster.until(lambda: cluster.inventory().gpus[0].held == 40)
    await cluster.until(lambda: allocatable(cluster)[0] == 632 - 40)
    # An agent that starts knows it before it says a word.
    await cluster.stop_agent()
    cluster.agent = await cluster.make_agent()
    cluster.running = asyncio.create_task(cluster.agent.run(asyncio.Event()))
    await cluster.until(lambda: allocatable(cluster)[0])
    assert allocatable(cluster)[0] == 632 - 40
    assert cluster.inventory().gpus[0].held == 40


async def test_nobody_is_called_watched_on_a_gpu_whose_processes_are_not_told(make_cluster):
    cluster = await make_cluster()
    await cluster.until(lambda: cluster.inventory().gpus[0].guarantee.memory == "watched")
    for version in ("_v2", "_v3"):
        cluster.nvml.fail(f"nvmlDeviceGetComputeRunningProcesses{version}", NvmlReturn.NOT_SUPPORTED, gpu=0)
    await cluster.until(lambda: [gpu.guarantee.memory for gpu in cluster.inventory().gpus] == ["none", "watched"])
    cluster.nvml.heal()
    await cluster.until(lambda: [gpu.guarantee.memory for gpu in cluster.inventory().gpus] == ["watched", "watched"])


def _write_cgroup(folder):
    import os

    os.makedirs(folder)
    with open(f"{folder}/cgroup", "w", encoding="utf-8") as file:
        file.write("0::/system.slice/notebook.service\n")


async def test_mig_instances_are_tickets_of_their_own(make_cluster):
    cluster = await make_cluster("A100-80GB", agent=False)
    cluster.nvml.set_mig(0, ["3g.40gb", "1g.10gb", "1g.10gb"])
    await cluster.start_agent()
    small = "tessera.dev/mig-1g.10gb"
    assert set(cluster.kubelet.capacity().allocatable) == {small, "tessera.dev/mig-3g.40gb"}
    assert cluster.kubelet.capacity().allocatable[small] == 2
    instance = next(each for each in cluster.inventory().gpus[0].mig if each.profile == "1g.10gb")
    uid = cluster.pod("p", {small: 1})
    await cluster.running_pod("p")
    (device,) = cluster.kubelet.allocations()[uid]["main"][small]
    assert device.startswith(f"{cluster.gpu(0)}-g")
    assert cluster.env(uid)["TESSERA_GPU_IDS"].startswith("MIG-")
    await cluster.until(lambda: uid in cluster.drift())
    (piece,) = cluster.drift()[uid]["main"]
    assert (piece.mig, piece.instance) == ("1g.10gb", device.rpartition("-")[2])
    assert instance.id.startswith("g")


async def test_nvidias_own_plugin_on_our_gpus_is_noticed(make_cluster):
    from tessera.testing.kubelet import Plugin

    cluster = await make_cluster(agent=False)
    rival = Plugin(
        cluster.kubelet.paths.root,
        "nvidia.com/gpu",
        [f"{cluster.nvml.gpus()[1].uuid}::{n}" for n in range(4)],
        socket="nvidia-gpu.sock",
    )
    async with rival:
        await cluster.kubelet.wait_serving("nvidia.com/gpu", 4)
        await cluster.start_agent()
        await cluster.until(cluster.agent.checks["rivals"])
        assert cluster.gpu(1) in cluster.agent.checks["rivals"]()
        await cluster.until(lambda: allocatable(cluster) == [316, 100, 100])
        await cluster.until(lambda: cluster.inventory().gpus[1].held == 316)
