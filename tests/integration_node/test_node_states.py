"""What the node says of itself: labels, readiness, and the ways in which it can have no GPUs to give."""

from __future__ import annotations

import asyncio

from tessera.model.names import names
from tessera.testing.nvml import NvmlReturn

UNITS, PERCENT, COMPUTE = names().tickets


async def test_labels_and_inventory(make_cluster):
    cluster = await make_cluster("A100-80GB", "A100-80GB")
    await cluster.until(cluster.inventory)
    labels = cluster.api.get("nodes", "n1")["metadata"]["labels"]
    assert {name: value for name, value in labels.items() if name.startswith("tessera.dev/")} == {
        "tessera.dev/gpu-model": "NVIDIA-A100-SXM4-80GB",
        "tessera.dev/gpu-count": "2",
        "tessera.dev/gpu-memory-mib": "81920",
        "tessera.dev/sharing": "true",
    }
    await cluster.until(lambda: cluster.inventory().state == "serving")
    inventory = cluster.inventory()
    assert [gpu.units for gpu in inventory.gpus] == [316, 316]
    assert {name: check() for name, check in cluster.agent.checks.items() if check()} == {}


async def test_a_node_without_gpus_is_ready_and_idle(make_cluster):
    cluster = await make_cluster(agent=False)
    cluster.nvml.fail_init(NvmlReturn.DRIVER_NOT_LOADED)
    cluster.agent = await cluster.make_agent()
    cluster.running = asyncio.create_task(cluster.agent.run(cluster.stop))
    await cluster.until(lambda: cluster.agent.checks["lock"]() is None)
    assert {name: check() for name, check in cluster.agent.checks.items() if check()} == {}
    assert cluster.kubelet.capacity().capacity == {}
    assert cluster.inventory() is None


async def test_a_card_without_a_driver_is_not_ready_and_says_why_until_it_has_one(make_cluster, folder):
    cluster = await make_cluster(agent=False)
    await asyncio.to_thread(_card, folder)
    cluster.nvml.fail_init(NvmlReturn.DRIVER_NOT_LOADED)
    cluster.agent = await cluster.make_agent()
    cluster.running = asyncio.create_task(cluster.agent.run(cluster.stop))
    await cluster.until(lambda: "driver is not loaded" in (cluster.agent.checks["gpus"]() or ""))
    cluster.nvml.fail_init(None)
    await cluster.serving()
    assert cluster.agent.checks["gpus"]() is None


def _card(folder):
    import os

    card = f"{folder}/sys/bus/pci/devices/0000:17:00.0"
    os.makedirs(card)
    for name, value in (("vendor", "0x10de"), ("class", "0x030200")):
        with open(f"{card}/{name}", "w", encoding="ascii") as file:
            file.write(value)


async def test_with_the_api_away_at_start_the_node_serves_all_the_same(make_cluster):
    cluster = await make_cluster()
    uid = cluster.pod("p", {UNITS: 16}, plan={"main": [(1, 16, 0)]})
    await cluster.running_pod("p")
    before = cluster.kubelet.allocations()[uid]
    await cluster.kill_agent()
    await cluster.api.stop()
    cluster.agent = await cluster.make_agent()
    cluster.running = asyncio.create_task(cluster.agent.run(cluster.stop))
    await cluster.until(lambda: len(cluster.agent.board.ledger))
    await cluster.until(lambda: cluster.agent.registrar.problem is None)
    await cluster.until(lambda: cluster.kubelet.capacity().allocatable.get(UNITS) == 632)
    assert [(grant.uid, grant.name, grant.planned) for grant in cluster.agent.board.ledger] == [(uid, "p", True)]
    assert "could not be read" in cluster.agent.checks["pods"]()
    # A container restarts without the API.
    cluster.kubelet.restart_container(uid, "main")
    await cluster.until(lambda: cluster.kubelet.containers(uid)[0].restart_count == 1)
    assert before == cluster.kubelet.allocations()[uid]


async def test_a_kubelet_that_limits_pod_resources_is_asked_again(make_cluster):
    cluster = await make_cluster(list_rate=100.0, list_burst=10)
    lister = cluster.agent._lister
    await asyncio.gather(*(lister.list() for _ in range(30)))
    assert lister.limited > 0
    uid = cluster.pod("p", {UNITS: 16}, plan={"main": [(1, 16, 0)]})
    await cluster.running_pod("p")
    assert cluster.given(uid)[UNITS] == {cluster.gpu(1)}
