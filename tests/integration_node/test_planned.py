"""Pods with a plan get exactly the planned GPU, whatever order things come in."""

from __future__ import annotations

from tessera.model.names import names

UNITS, PERCENT, COMPUTE = names().tickets


async def test_a_pod_gets_its_planned_gpu_and_is_told_its_slice(make_cluster):
    cluster = await make_cluster()
    uid = cluster.pod("p", {UNITS: 32, COMPUTE: 30}, plan={"main": [(1, 32, 30)]})
    await cluster.running_pod("p")
    assert {UNITS: {cluster.gpu(1)}, COMPUTE: {cluster.gpu(1)}} == cluster.given(uid)
    env = cluster.env(uid)
    assert cluster.nvml.gpus()[1].uuid == env["TESSERA_GPU_IDS"] == env["NVIDIA_VISIBLE_DEVICES"]
    assert str(8 << 30) == env["TESSERA_GPU_MEMORY_BYTES"]
    assert env["TESSERA_GPU_COMPUTE"] == "30"
    assert cluster.drift() == {}
    await cluster.until(lambda: cluster.events("SliceGranted"))
    assert "8 GiB and 30 % of compute" in cluster.events("SliceGranted")[0]


async def test_twenty_equal_pods_bound_at_once_get_twenty_right_gpus(make_cluster):
    cluster = await make_cluster("A100-80GB", "A100-80GB", "A100-80GB", "A100-80GB")
    planned = {f"p{n}": (n * 7) % 4 for n in range(20)}
    uids = {
        name: cluster.pod(name, {UNITS: 16, COMPUTE: 5}, plan={"main": [(gpu, 16, 5)]}) for name, gpu in planned.items()
    }
    for name, gpu in planned.items():
        await cluster.running_pod(name)
        assert {UNITS: {cluster.gpu(gpu)}, COMPUTE: {cluster.gpu(gpu)}} == cluster.given(uids[name])
    assert cluster.drift() == {}


async def test_several_gpus_in_the_plans_order(make_cluster):
    cluster = await make_cluster("A100-80GB", "A100-80GB", "A100-80GB")
    # The number of GPUs stands in the request annotation; without it 64 units are read as one GPU's.
    request = '{"v":1,"dialect":"tessera","containers":{"main":{"gpus":2,"memory":8589934592,"compute":30}}}'
    uid = cluster.pod(
        "q",
        {UNITS: 64, COMPUTE: 60},
        plan={"main": [(2, 32, 30), (0, 32, 30)]},
        annotations={names().request: request},
    )
    await cluster.running_pod("q")
    uuids = [cluster.nvml.gpus()[index].uuid for index in (2, 0)]
    assert ",".join(uuids) == cluster.env(uid)["TESSERA_GPU_IDS"]
    assert f"{8 << 30},{8 << 30}" == cluster.env(uid)["TESSERA_GPU_MEMORY_BYTES"]
    assert {cluster.gpu(0), cluster.gpu(2)} == cluster.given(uid)[UNITS]
