"""`tessera explain`: one pod from its request to what helps it on; a pod that isn't there; rights that lack."""

import json

import pytest

from tessera.model.names import names
from tessera.testing.apiserver import status
from tessera.testing.apiserver.faults import on

N = names()
A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
REQUEST = '{"containers":{"main":{"gpus":1,"memory":2684354560}},"dialect":"hami","v":1}'
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil"


async def test_a_running_pod(cluster):
    cluster.node()
    cluster.pod("train", 10, node="n1", annotations={N.request: REQUEST, N.gpu_models: "A10"})
    cluster.event("train", "SliceGranted", "has 2.5 GiB", kind="Normal")
    for reason in ("Pulled", "Created", "Started", "Killing", "Pulling"):
        cluster.event("train", reason, "of every container", kind="Normal", ago=5)
    cluster.event("train", "OlderPod", "of its name", uid="other")
    code, out, err = await cluster.run("explain", "train")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("pod      default/train: Running, made 10 min ago, on n1")
    assert "asked    main: 1 GPU, 2560Mi of memory (dialect hami)" in out
    assert "wishes   tessera.dev/gpu-models=A10" in out
    assert "written  main: 10 x tessera.dev/gpu-memory.256Mi (scheduler tessera-scheduler)" in out
    assert "plan     main: 2560Mi of memory on GPU aaaaaaaaaaaa (NVIDIA A10)" in out
    assert "given    as planned" in out
    assert "held by  memory watched, compute none" in out
    assert "x3: SliceGranted: has 2.5 GiB" in out
    assert "OlderPod" not in out
    assert all(line == line.rstrip() for line in out.splitlines())


async def test_the_unit_of_its_profile(cluster):
    cluster.node()
    cluster.pod("cloud", 10, node="n1", labels={N.unit: "cloud", N.region: "cn-hangzhou"})
    _, out, _ = await cluster.run("explain", "cloud")
    assert "on n1 (unit cloud/cn-hangzhou)" in out


async def test_a_pod_that_waits_for_room(cluster):
    cluster.node()
    for gpu in (A, B):
        cluster.pod(f"fill-{gpu}", 80, node="n1", gpu=gpu)
    said = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 needs 20 units."}
    cluster.pod("big", 20, conditions=[said])
    _, out, _ = await cluster.run("explain", "default/big")
    assert "why      needs 20 units (5 GiB), best GPU has 10 (2.5 GiB): n1" in out
    assert "kube-scheduler says: 0/1 nodes are available: 1 needs 20 units." in out
    assert "next     The most that is free on one GPU now is 2.5 GiB (largest GPU: 22.5 GiB)" in out


async def test_a_pod_that_no_node_will_ever_take(cluster):
    cluster.node()
    cluster.pod("huge", 500, conditions=[{"type": "PodScheduled", "status": "False", "message": "no"}])
    code, out, _ = await cluster.run("explain", "huge", "-o", "json")
    found = json.loads(out)
    assert code == 0
    assert found["whyNot"] == [
        {"reason": "needs 500 units (125 GiB), largest GPU has 90 (22.5 GiB)", "nodes": ["n1"], "never": True}
    ]
    assert found["next"] == ["No node will ever do, whoever leaves: change what it asks, or add such GPUs."]


async def test_a_pod_that_fits_and_is_held_back_elsewhere(cluster):
    cluster.node()
    cluster.pod("cpu", 5, conditions=[{"type": "PodScheduled", "status": "False", "message": "Insufficient cpu"}])
    _, out, _ = await cluster.run("explain", "cpu")
    assert "room by GPUs alone: n1" in out
    assert "look at its CPU and memory, node selectors, taints" in out


async def test_closed_nodes_are_told(cluster):
    cluster.node("n1", state="draining")
    cluster.pod("waits", 5)
    _, out, _ = await cluster.run("explain", "waits")
    assert "node's agent is draining: n1" in out
    assert "No scheduler has tried it yet" in out
    assert "No open node has a healthy GPU now" in out


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({N.memory_units: "5"}, "No GPU has memory left (largest GPU: 22.5 GiB)"),
        ({N.memory_percent: "100", N.compute_percent: "100"}, "no slice would fit now either"),
    ],
)
async def test_a_full_cluster_has_nothing_to_offer(cluster, limits, said):
    cluster.node()
    for gpu in (A, B):
        cluster.pod(f"fill-{gpu}", 90, node="n1", gpu=gpu)
    cluster.pod("late", limits=limits)
    _, out, _ = await cluster.run("explain", "late")
    assert said in " ".join(out.split())


async def test_gates_hold_a_pod(cluster):
    cluster.node()
    cluster.pod("gated", 5, conditions=[{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}])
    _, out, _ = await cluster.run("explain", "gated")
    assert "held by its scheduling gates" in out
    assert "Kueue" in out


async def test_a_foreign_scheduler(cluster):
    cluster.node()
    cluster.pod("foreign", 5, scheduler="hami-scheduler")
    _, out, _ = await cluster.run("explain", "foreign")
    assert "Its scheduler is hami-scheduler; tessera-scheduler asks Tessera." in out


async def test_drift(cluster):
    cluster.node(annotations={N.drift: cluster.drift({"uid-moved": {"main": (cluster.slice(B),)}})})
    cluster.pod("moved", 10, node="n1")
    _, out, _ = await cluster.run("explain", "moved")
    assert "plan     main: 2560Mi of memory on GPU aaaaaaaaaaaa" in out
    assert "given    main: 2560Mi of memory on GPU bbbbbbbbbbbb (NVIDIA A10) (not as planned)" in out
    assert "It has other GPUs than planned" in out


async def test_a_pod_without_a_plan(cluster):
    cluster.node()
    cluster.pod("static", 10, node="n1", gpu="")
    _, out, _ = await cluster.run("explain", "static")
    assert "plan     none" in out
    assert "its slice is withheld on every GPU there" in out


async def test_a_pod_that_its_node_packed(cluster):
    cluster.node(annotations={N.drift: cluster.drift({"uid-static": {"main": (cluster.slice(B),)}})})
    cluster.pod("static", 10, node="n1", gpu="")
    _, out, _ = await cluster.run("explain", "static")
    assert "on GPU bbbbbbbbbbbb (NVIDIA A10) (by its node, without a plan)" in out
    assert "the node packed it" in out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "plan annotation"),
        ('{"v":1,"node":"n7","guarantee":{},"containers":{}}', "it was made for node n7, the pod is on n1"),
        ('{"v":1,"node":"n1","guarantee":{},"containers":{}}', "it does not say what the pod's tickets say"),
    ],
)
async def test_a_plan_that_is_not_believed(cluster, text, said):
    cluster.node()
    cluster.pod("forged", 10, node="n1", annotations={N.plan: text})
    _, out, _ = await cluster.run("explain", "forged")
    assert "written and not believed: " in out
    assert said in out


async def test_a_pod_that_failed_on_its_node(cluster):
    cluster.node()
    cluster.pod("failed", 10, node="n1", phase="Failed", reason="UnexpectedAdmissionError", message="units are taken")
    _, out, _ = await cluster.run("explain", "failed")
    assert "Failed (UnexpectedAdmissionError)" in out
    assert "It has failed: units are taken." in out
    assert "delete it, so that its owner makes it anew" in out


async def test_a_pod_that_admission_never_saw(cluster):
    cluster.node()
    cluster.pod("old", limits={"nvidia.com/gpu": "1", "nvidia.com/gpumem": "3000"})
    _, out, _ = await cluster.run("explain", "old")
    assert "(dialect hami)" in out
    assert "admission never translated it" in out


async def test_a_pod_that_asks_for_nothing(cluster):
    cluster.pod("web", limits={"cpu": "1"})
    _, out, _ = await cluster.run("explain", "web")
    assert "asked    no GPU of Tessera's" in out


async def test_lower_priorities_may_be_preempted(cluster):
    cluster.node()
    for gpu in (A, B):
        cluster.pod(f"fill-{gpu}", 80, node="n1", gpu=gpu)
    cluster.pod("urgent", 20)
    urgent = cluster.api.get("pods", "urgent", "default")
    urgent["spec"]["priority"] = 1000
    cluster.api.put("pods", urgent)
    _, out, _ = await cluster.run("explain", "urgent")
    assert "2 running pods with GPUs have a lower priority and may be preempted." in out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("trian", "no pod default/trian; did you mean default/train?"),
        ("other/train", "no pod other/train; did you mean default/train?"),
        ("zzzzz", "no pod default/zzzzz; namespace default has train"),
        ("kube-system/zzzzz", "no pod kube-system/zzzzz; namespace kube-system has no pods"),
        (f"default/{HOSTILE}", "no pod default/"),
        ("", "no pod default/; namespace default has train"),
    ],
)
async def test_a_pod_that_does_not_exist(cluster, asked, said):
    cluster.pod("train", 10)
    code, out, err = await cluster.run("explain", asked)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


async def test_with_rights_to_one_namespace_only(cluster):
    cluster.pod("train", 10)
    for plural in ("nodes", "pods", "configmaps"):
        cluster.api.faults.add(on("list", plural), status.forbidden("", plural, "", "no"), times=None)
    code, out, _ = await cluster.run("explain", "train")
    assert code == 0
    assert "why it finds no GPU can't be told" in out
    code, _, err = await cluster.run("explain", "nobody")
    assert code == 2
    assert "no name is near" in err


async def test_without_any_right(cluster):
    cluster.api.faults.add(lambda _: True, status.forbidden("", "x", "", "no"), times=None)
    code, out, err = await cluster.run("explain", "train")
    assert (code, out) == (3, "")
    assert err.startswith("tessera explain: could not look: pods default/train: not permitted (403)")


async def test_hostile_objects_do_nothing_to_a_terminal(cluster):
    cluster.node(model=HOSTILE, annotations={N.drift: HOSTILE})
    cluster.node("n2", annotations={N.inventory: HOSTILE})
    notes = {N.request: HOSTILE, N.plan: HOSTILE, N.gpu_models: HOSTILE, N.gpu_topology: HOSTILE}
    cluster.pod("evil", 10, annotations=notes, scheduler=HOSTILE, message=HOSTILE,
                conditions=[{"type": "PodScheduled", "status": "False", "message": HOSTILE}])  # fmt: skip
    cluster.event("evil", HOSTILE, HOSTILE)
    cluster.pod("evil-too", 10, node="n1", annotations=notes, phase="Failed", reason=HOSTILE, message=HOSTILE)
    for pod in ("evil", "evil-too"):
        for output in ("table", "wide", "json"):
            assert (await cluster.run("explain", pod, "-o", output))[0] == 0


async def test_a_pod_that_waits_for_a_node_that_refuses(cluster):
    cluster.node()
    cluster.pod("waits", 10)
    cluster.pod("runs", 10, node="n1")
    said = "its kubelet refused 3 pods (UnexpectedAdmissionError); pods of namespace default are kept from it until 12:00:00 UTC"
    cluster.refuses("n1", f"{said} {HOSTILE}", ago=5)
    cluster.refuses("n2", "long over", ago=300)
    _, out, _ = await cluster.run("explain", "waits")
    shown = " ".join(out.split())
    assert "look at the agent on n1" in shown
    assert "CPU and memory" not in shown
    assert f"n1: {said}" in shown
    assert "long over" not in shown
    _, out, _ = await cluster.run("explain", "waits", "-o", "json")
    assert list(json.loads(out)["refusing"]) == ["n1"]
    _, out, _ = await cluster.run("explain", "runs")
    assert "refused" not in out


async def test_doctor_reads_who_refuses(cluster):
    cluster.node()
    cluster.refuses("n1", "its kubelet refused 3 pods", ago=5)
    cluster.event("some", "KubeletRefuses", "of a pod", ago=5)
    code, out, _ = await cluster.run("doctor", "--only", "node-refusing")
    assert code == 1
    assert "its kubelet refused 3 pods (told" in out
    assert "of a pod" not in out
