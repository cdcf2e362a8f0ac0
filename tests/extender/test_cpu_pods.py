"""Pods that ask for no GPU: left alone, kept off nodes with GPUs, or sent where they cost least."""

from __future__ import annotations

import pytest

from tessera.model.config import Config, Placement


@pytest.fixture
def with_cpu(pod):
    def make(cpu="4", **more):
        made = pod("plain", **more)
        made["spec"]["containers"][0]["resources"] = {"requests": {"cpu": cpu}}
        return made

    return make


@pytest.fixture
async def cluster(rig, pod):
    """Two nodes with a GPU each, one of them held by a pod with CPU of its own, and one without."""
    rig.put_node("empty", 64)
    rig.put_node("full", 64)
    rig.put_node("plain")
    await rig.caught_up()
    holder = pod("holder", whole=True)
    holder["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "4"
    assert await rig.bind(rig.server.put("pods", holder), "full") == ""
    await rig.caught_up()
    return rig


def mode(rig, cpu_pods):
    rig.config = Config(placement=Placement(cpu_pods=cpu_pods))


async def test_left_alone_by_default(cluster, with_cpu):
    assert (await cluster.filter(with_cpu()))["NodeNames"] == ["empty", "full", "plain"]


@pytest.mark.parametrize("how", ["score", "avoid"])
async def test_nodes_without_gpus_come_first(cluster, with_cpu, how):
    mode(cluster, how)
    cluster.put_node("plain-2")
    await cluster.caught_up()
    answer = await cluster.filter(with_cpu(), "empty", "plain", "full", "plain-2", "unknown")
    assert answer["NodeNames"] == ["plain", "plain-2", "unknown"], "kube-scheduler chooses among them"
    assert (await cluster.filter(with_cpu(), "plain", "plain-2"))["NodeNames"] == ["plain", "plain-2"]


async def test_avoid_leaves_the_rest_to_kube_scheduler(cluster, with_cpu):
    mode(cluster, "avoid")
    assert (await cluster.filter(with_cpu(), "empty", "full"))["NodeNames"] == ["empty", "full"]


async def test_score_takes_cpu_from_beside_no_free_gpu(cluster, with_cpu):
    mode(cluster, "score")
    for _ in range(3):
        assert (await cluster.filter(with_cpu("28"), "empty", "full"))["NodeNames"] == ["full"]


async def test_score_honours_what_the_pod_prefers(cluster, with_cpu):
    mode(cluster, "score")
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["empty"]}]}
    preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5, "preference": term}]}
    pod = with_cpu("28", spec={"affinity": {"nodeAffinity": preferred}})
    assert (await cluster.filter(pod, "empty", "full"))["NodeNames"] == ["empty"]


async def test_score_names_nothing_where_it_knows_nothing(cluster, with_cpu):
    mode(cluster, "score")
    assert (await cluster.filter(with_cpu("0"), "empty", "full"))["NodeNames"] == ["empty", "full"], "no CPU asked"
    for name in ("empty", "full"):
        cluster.put_node(name, 64, ready=False)
    await cluster.caught_up()
    assert (await cluster.filter(with_cpu(), "empty", "full"))["NodeNames"] == ["empty", "full"], (
        "nodes closed to slices"
    )
    assert (await cluster.filter(with_cpu(), "x"))["NodeNames"] == ["x"]


async def test_they_are_counted_once_where_they_take_cpu_from_gpus(cluster, with_cpu):
    before = cluster.cluster.workload.total
    made, elsewhere = cluster.server.put("pods", with_cpu()), with_cpu()
    elsewhere["metadata"] |= {"name": "elsewhere", "uid": "uid-elsewhere"}
    elsewhere = cluster.server.put("pods", elsewhere)
    await cluster.caught_up()
    assert cluster.cluster.workload.total == before, "nobody knows yet where it goes"
    assert await cluster.bind(made, "full") == await cluster.bind(elsewhere, "plain") == ""
    await cluster.caught_up()
    assert cluster.cluster.workload.total == pytest.approx(before + 1, rel=0.001)
    made = cluster.server.get("pods", "plain", "default")
    made["metadata"]["labels"] = {"changed": "yes"}
    cluster.server.put("pods", made)
    await cluster.caught_up()
    assert cluster.cluster.workload.total == pytest.approx(before + 1, rel=0.001)


async def test_a_pod_that_asks_for_mig_instances_is_none_of_them(cluster, pod):
    before = cluster.cluster.workload.total
    cluster.server.put("pods", pod("m", mig="1g.10gb"))
    await cluster.caught_up()
    assert cluster.cluster.workload.total == pytest.approx(before + 1, rel=0.001), (
        "seen before anybody knows where it goes"
    )


async def test_they_are_bound_without_a_plan(cluster, with_cpu):
    mode(cluster, "score")
    made = cluster.server.put("pods", with_cpu("28"))
    assert await cluster.bind(made, "full") == ""
    there = cluster.server.get("pods", "plain", "default")
    assert there["spec"]["nodeName"] == "full"
    assert not any(name.endswith("/plan") for name in there["metadata"].get("annotations") or {})


async def test_whole_nodes_are_answered_in_kind(cluster, with_cpu, node):
    mode(cluster, "avoid")
    items = [node("empty", 64), node("plain")]
    answer = await cluster.post("/filter", {"Pod": with_cpu(), "Nodes": {"items": items}})
    assert [each["metadata"]["name"] for each in answer["Nodes"]["items"]] == ["plain"]
