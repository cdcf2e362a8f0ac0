"""The view shows what the objects say: who holds what, what drifted, what can't be read."""

import json
import xml.etree.ElementTree as ET

import msgspec
import pytest

from tessera.model import inventory, plan
from tessera.model.guarantee import Guarantees
from tessera.model.inventory import Gpu, Inventory
from tessera.model.names import names
from tessera.model.node import Node
from tessera.model.plan import Plan, PlannedSlice
from tessera.model.pod import Pod
from tessera.report.cluster import view
from tessera.report.mosaic import mosaic, summary

N = names()
M, P, C = N.tickets
A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"


@pytest.fixture
def node():
    def make(name="n1", *, ready="True", annotations=None, labels=None):
        gpus = tuple(
            Gpu(id=gpu, uuid=f"GPU-{gpu}", index=at, model="NVIDIA A10", memory=24 * 1024**3, units=90)
            for at, gpu in enumerate((A, B))
        )
        text = inventory.encode(Inventory(v=1, unit=N.memory_unit, gpus=gpus))
        return msgspec.convert(
            {
                "metadata": {
                    "name": name,
                    "labels": labels or {},
                    "annotations": {N.inventory: text} | (annotations or {}),
                },
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            },
            Node,
        )

    return make


@pytest.fixture
def pod():
    def make(name, limits, slices=None, *, node="n1", phase="Running", init=None, plan_node=None):
        annotations = {}
        if slices:
            made = Plan(v=1, node=plan_node or node, guarantee=Guarantees(), containers=slices)
            annotations[N.plan] = plan.encode(made)
        return msgspec.convert(
            {
                "metadata": {"name": name, "namespace": "ns", "uid": f"uid-{name}", "annotations": annotations},
                "spec": {
                    "nodeName": node,
                    "containers": [{"name": "main", "resources": {"limits": limits}}],
                    "initContainers": [{"name": "init", "resources": {"limits": init}}] if init else [],
                },
                "status": {"phase": phase},
            },
            Pod,
        )

    return make


def test_slices_stand_on_their_gpu(node, pod):
    one = pod("one", {M: "10", C: "30"}, {"main": (PlannedSlice(gpu=A, units=10, compute=30),)})
    two = pod("two", {P: "100", C: "100"}, {"main": (PlannedSlice(gpu=B, units=90, compute=100, whole=True),)})
    found = view([node()], [one, two], N)
    first, second = found.nodes[0].gpus
    assert (first.held_units, first.held_compute, [s.pod for s in first.slices]) == (10, 30, ["ns/one"])
    assert (second.held_units, second.held_compute, second.slices[0].whole) == (90, 100, True)


def test_an_init_container_reuses_what_comes_after_it(node, pod):
    piece = (PlannedSlice(gpu=A, units=10, compute=0),)
    found = view([node()], [pod("p", {M: "10"}, {"main": piece, "init": piece}, init={M: "10"})], N)
    assert found.nodes[0].gpus[0].held_units == 10


def test_drift_wins_over_the_plan(node, pod):
    drift = plan.encode_drift({"uid-p": {"main": (PlannedSlice(gpu=B, units=10, compute=0),)}})
    planned = pod("p", {M: "10"}, {"main": (PlannedSlice(gpu=A, units=10, compute=0),)})
    first, second = view([node(annotations={N.drift: drift})], [planned], N).nodes[0].gpus
    assert (first.held_units, second.held_units) == (0, 10)
    assert second.slices[0].drift


@pytest.mark.parametrize("ended", ["Succeeded", "Failed"])
def test_ended_pods_hold_nothing(node, pod, ended):
    done = pod("p", {M: "10"}, {"main": (PlannedSlice(gpu=A, units=10, compute=0),)}, phase=ended)
    assert view([node()], [done], N).nodes[0].gpus[0].slices == ()


def test_a_plan_for_another_node_is_not_shown(node, pod):
    copied = pod("p", {M: "10"}, {"main": (PlannedSlice(gpu=A, units=10, compute=0),)}, plan_node="n2")
    assert view([node()], [copied], N).nodes[0].gpus[0].slices == ()


def test_waiting_pods_say_what_they_ask(node, pod):
    found = view([node()], [pod("w", {M: "32"}, node="", phase="Pending"), pod("cpu", {"cpu": "1"}, node="")], N)
    assert [(w.pod, w.asks) for w in found.waiting] == [("ns/w", "main: 1 GPU, 8Gi of memory")]


def test_what_cant_be_read_is_shown_with_its_problem(node):
    found = view([node(annotations={N.inventory: "{"}), node("n2", ready="False")], [], N)
    assert "inventory annotation" in found.nodes[0].problem
    assert found.nodes[1].state == "not ready"


def test_a_node_without_inventory_is_no_gpu_node(node):
    plain = msgspec.convert({"metadata": {"name": "cpu-only"}}, Node)
    assert [n.name for n in view([plain, node()], [], N).nodes] == ["n1"]


def test_the_view_is_plain_json(node, pod):
    found = view([node()], [pod("p", {M: "10"}, {"main": (PlannedSlice(gpu=A, units=10, compute=0),)})], N)
    shown = json.loads(msgspec.json.encode(found))
    assert shown["nodes"][0]["gpus"][0]["heldUnits"] == 10


def test_the_mosaic_is_wellformed_and_escapes_names(node, pod):
    evil = pod('<script>"&', {M: "45"}, {"main": (PlannedSlice(gpu=A, units=45, compute=50),)})
    found = view([node(labels={"topology.kubernetes.io/region": "<r&>"}), node("n2", annotations={N.inventory: "["})],
                 [evil], N)  # fmt: skip
    root = ET.fromstring(mosaic(found, title="A & B <x>"))  # noqa: S314 - our own text
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "script" not in {element.tag.rpartition("}")[2] for element in root.iter()}
    texts = " ".join(element.text or "" for element in root.iter())
    assert "ns/<script>" in texts
    assert "50%" in texts


def test_the_summary_counts(node, pod):
    half = pod("p", {M: "45", C: "50"}, {"main": (PlannedSlice(gpu=A, units=45, compute=50),)})
    text = summary(view([node()], [half], N))
    assert text == "2 GPUs on 1 node, 1 in use by 1 pod; memory 25% and compute 25% allocated; 0 waiting"
