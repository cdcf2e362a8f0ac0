"""Judging nodes that look alike together says what judging each alone says."""

import random

import msgspec
import pytest

from tessera.doctor.capacity import Capacity, tolerates_cordon
from tessera.doctor.objects import LookedNode, LookedPod
from tessera.model.config import Config
from tessera.model.guarantee import Guarantees
from tessera.model.inventory import MigInstance
from tessera.model.names import names
from tessera.model.pod import Toleration

N = names()
M, P, C = N.tickets


def read(trees, kind):
    return [msgspec.convert(tree, kind) for tree in trees]


@pytest.mark.parametrize("seed", range(5))
def test_alike_or_alone(cluster, seed):
    rng = random.Random(seed)
    nodes, pods = [], []
    for at in range(30):
        gpus = [cluster.gpu(f"{at:010x}{g:02x}", g, model=rng.choice(["A10", "T4"]), health=rng.choice(["ok", "ok", "sick"]))
                for g in range(2)]  # fmt: skip
        nodes.append(cluster.node(f"n{at}", text=cluster.inventory(*gpus), unschedulable=rng.random() < 0.2))
        held = rng.choice([0, 40, 90])
        if held:
            piece = cluster.slice(gpus[0].id, held)
            pods.append(cluster.pod(f"p{at}", {M: str(held)}, {"main": (piece,)}, node=f"n{at}"))
    decoded = read(nodes, LookedNode)
    together = Capacity(decoded, read(pods, LookedPod), Config())
    limits = rng.choice([{M: "50"}, {P: "60"}, {P: "100", C: "100"}, {C: "30", M: "1"}])
    models = {N.gpu_models: rng.choice(["A10", "-T4", ""])}
    asking = read([cluster.pod("asks", limits, annotations=models)], LookedPod)[0]
    verdict = together.judge(asking)
    alone = {}
    for node in decoded:
        mine = [p for p in read(pods, LookedPod) if p.spec.node_name == node.metadata.name]
        one = Capacity([node], mine, Config()).judge(asking)
        alone[node.metadata.name] = "" if one.fits else next(iter(one.rejected))
    assert set(verdict.fits) == {name for name, why in alone.items() if not why}
    assert {n: why for why, where in verdict.rejected.items() for n in where} == {n: w for n, w in alone.items() if w}


def test_a_wish_for_one_gpu_tells_alike_nodes_apart(cluster):
    nodes = [cluster.node(f"n{at}", text=cluster.inventory(cluster.gpu(f"{at:012x}"))) for at in range(3)]
    capacity = Capacity(read(nodes, LookedNode), [], Config())
    wish = {N.gpu_uuids: f"GPU-{1:012x}"}
    verdict = capacity.judge(read([cluster.pod("asks", {M: "1"}, annotations=wish)], LookedPod)[0])
    assert verdict.fits == ("n1",)
    assert next(iter(verdict.rejected.values())) == ("n0", "n2")


def test_mig_instances_are_counted(cluster):
    mig = (MigInstance(id="g1", profile="1g.5gb"), MigInstance(id="g2", profile="1g.5gb"))
    gpu = cluster.gpu("a" * 12, mig=mig, guarantee=Guarantees())
    nodes = read([cluster.node(text=cluster.inventory(gpu))], LookedNode)
    taken = {"main": (cluster.slice("a" * 12, None, None, mig="1g.5gb", instance="g1"),)}
    pods = read([cluster.pod("one", {N.mig("1g.5gb"): "1"}, taken, node="n1")], LookedPod)
    asking = read([cluster.pod("asks", {N.mig("1g.5gb"): "2"})], LookedPod)[0]
    assert Capacity(nodes, [], Config()).judge(asking).fits == ("n1",)
    verdict = Capacity(nodes, pods, Config()).judge(asking)
    assert "needs 2 MIG instances of 1g.5gb, 1 is free" in verdict.rejected


def test_what_makes_no_sense_is_a_problem(cluster):
    asking = read([cluster.pod("asks", {M: "7", P: "7"})], LookedPod)[0]
    assert Capacity([], [], Config()).judge(asking).problem


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}, True),
        ({"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
def test_cordons(toleration, tolerated):
    assert tolerates_cordon([msgspec.convert(toleration, Toleration)]) is tolerated
