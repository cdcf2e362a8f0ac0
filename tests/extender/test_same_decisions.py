"""Over HTTP, with watch caches and binds between, pods get what the benchmark's figures were measured with.

`bench.cluster` calls ledger, scores and `fit.place` itself; that its figures are the extender's holds only while filter and
bind come to the same nodes and GPUs.
"""

from __future__ import annotations

from random import Random

import pytest

from bench.cluster import UNITS, Cluster
from bench.trace import Host, Task
from tessera.model.config import Config, Placement

PODS = 150
MODELS = ("T4", "G2", "V100M32")


@pytest.fixture
def hosts():
    """20 nodes of one to eight GPUs of three products, with more or less CPU beside them."""
    rng = Random(7)
    sizes = [1, 2, 4, 8] * 5
    return [
        Host(f"n{number:05}", 1000 * size * rng.choice((6, 12, 16)) + 8000, 0, size, rng.choice(MODELS))
        for number, size in enumerate(sizes)
    ]


def mixed(seed, *, cpu_only):
    """Shares, whole GPUs, several, and some that name their cards, each with CPU; more than the cluster has room for."""
    rng = Random(seed)
    asked = [(1, 10 * share) for share in (5, 10, 25, 37, 50, 63, 80, 100, 100)] + [
        (2, 500),
        (2, 1000),
        (4, 1000),
        (8, 1000),
    ]
    if cpu_only:
        asked += [(0, 0)] * 4
    kinds = [
        Task(
            1000 * rng.choice((1, 2, 4, 8, 11)) * max(1, gpus),
            0,
            gpus,
            share,
            tuple(rng.sample(MODELS, rng.choice((1, 2)))) if rng.random() < 0.3 else (),
            0,
            0,
        )
        for gpus, share in rng.choices(asked, weights=[4] * 9 + [1] * 4 + [4] * (len(asked) - 13), k=40)
    ]
    return [rng.choice(kinds) for _ in range(PODS)]


def in_process(hosts, tasks, policy):
    """Where the benchmark puts each task: its node, and its GPUs in order; None where it fits nowhere."""
    cluster = Cluster(hosts, policy)
    count, late = cluster.workload.saw, []
    # The benchmark counts a pod without a GPU before its own decision, the extender once it runs beside GPUs.
    cluster.workload.saw = lambda demand: count(demand) if demand.gpus else late.append(demand)
    left = {host.name: host.cpu for host in hosts}
    found = []
    for number, task in enumerate(tasks):
        if not cluster.put(f"p{number}", task):
            found.append(None)
            late.clear()
            continue
        while late:
            count(late.pop())
        (node,) = (name for name, cpu in left.items() if cluster.ledger.cpu_left(name) != cpu)
        left[node] -= task.cpu
        booked = cluster.ledger.booked(f"p{number}")
        found.append((node, [place.gpu for place in booked[1].places["main"]] if booked is not None else []))
    return found


async def over_http(rig, hosts, tasks, pod):
    """The same with filter and bind, kube-scheduler's own filter by CPU before them."""
    for number, host in enumerate(hosts):
        cpu = {"cpu": f"{host.cpu}m", "tessera.dev/gpu-memory": "1"}
        rig.put_node(host.name, *[UNITS] * host.gpus, first=16 * number, model=host.model, allocatable=cpu)
    await rig.caught_up()
    left = {host.name: host.cpu for host in hosts}
    found = []
    for number, task in enumerate(tasks):
        share = task.share // 10
        notes = {"tessera.dev/gpu-models": ",".join(task.models)} if task.models else {}
        amounts = {"whole": True} if share == 100 else {"percent": share, "compute": share}
        made = pod(f"p{number}", gpus=task.gpus, annotations=notes, **(amounts if task.gpus else {}))
        resources = made["spec"]["containers"][0].setdefault("resources", {})
        resources.setdefault("requests", {})["cpu"] = f"{task.cpu}m"
        made = rig.server.put("pods", made)
        await rig.caught_up()
        names = [name for name, cpu in left.items() if cpu >= task.cpu]
        chosen = (await rig.filter(made, *names))["NodeNames"] if names else []
        if not chosen:
            found.append(None)
            continue
        assert len(chosen) == 1
        assert await rig.bind(made, chosen[0]) == ""
        await rig.caught_up()
        left[chosen[0]] -= task.cpu
        slices = rig.plan(f"p{number}")["containers"]["main"] if task.gpus else []
        found.append((chosen[0], [each["gpu"] for each in slices]))
    return found


@pytest.mark.parametrize("policy", ["priced", "pack"])
async def test_filter_and_bind_decide_as_the_benchmark_does(new_rig, hosts, pod, policy):
    tasks = mixed(3, cpu_only=False)
    rig = await new_rig(config=Config(placement=Placement(policy=policy)))
    wanted = in_process(hosts, tasks, policy)
    assert None in wanted
    assert await over_http(rig, hosts, tasks, pod) == wanted


async def test_pods_without_a_gpu_go_where_the_benchmark_puts_them(new_rig, hosts, pod):
    tasks = mixed(4, cpu_only=True)
    rig = await new_rig(config=Config(placement=Placement(cpu_pods="score")))
    wanted = in_process(hosts, tasks, "priced")
    assert await over_http(rig, hosts, tasks, pod) == wanted
