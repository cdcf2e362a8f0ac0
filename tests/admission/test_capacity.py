"""A pod that no node could ever hold is told so, with the largest slice there is; and never more than told."""

import asyncio
import json
import ssl

import aiohttp
import pytest

from tessera.daemon.run import Signals
from tessera.kube.changes import Added, Deleted, Modified
from tessera.model.config import Config
from tessera.model.inventory import Gpu, Inventory, MigInstance, encode
from tessera.model.names import names
from tessera.testing.apiserver import FakeApiServer
from webhook.admission import main as program
from webhook.admission.capacity import MOST_KINDS, MOST_SHAPES, Capacity, GpuNode, _Meta
from webhook.admission.mutate import LONGEST_WARNING, Mutator

T = "tessera.dev/"
UNIT = 256 << 20
GI = 1 << 30
A100, T4 = "NVIDIA A100-SXM4-80GB", "Tesla T4"


def gpus(number, size, model=A100, **more):
    return tuple(
        Gpu(id=f"{at:012x}", uuid=f"GPU-{at}", index=at, model=model, memory=size, units=size // UNIT, **more)
        for at in range(number)
    )


def inventory(*found, unit=UNIT):
    return encode(Inventory(v=1, unit=unit, gpus=found))


def node(name, text):
    annotations = None if text is None else {T + "inventory": text}
    return GpuNode(metadata=_Meta(name=name, annotations=annotations))


def pod(limits, *, annotations=None, more=()):
    return {
        "metadata": {"name": "p", "annotations": annotations or {}},
        "spec": {"containers": [{"name": "main", "resources": {"limits": limits}}, *more]},
    }


class Nodes:
    """A cluster's nodes, as the watch cache tells of them."""

    def __init__(self, **inventories):
        self.synced = True
        self.capacity = Capacity(names(), synced=lambda: self.synced)
        self.there = {}
        for name, text in inventories.items():
            self.put(name, text)

    def put(self, name, text):
        new = node(name, text)
        self.capacity.changed(Modified(self.there[name], new) if name in self.there else Added(new))
        self.there[name] = new

    def drop(self, name):
        old = self.there.pop(name)
        self.capacity.changed(Deleted(old, old, seen_final=True))


@pytest.fixture
def told(manifest):
    """Admit a pod before these nodes; returns the one warning, or ""."""

    def run(nodes, given):
        outcome = Mutator(Config(), capacity=nodes.capacity.warning).mutate(manifest(given), namespace="team")
        assert outcome.request is not None
        assert all(len(warning) <= LONGEST_WARNING for warning in outcome.warnings)
        assert outcome.audit.get("fits", "") == "".join(outcome.warnings)
        return "".join(outcome.warnings)

    return run


BOTH = {"big": inventory(*gpus(8, 80 * GI)), "small": inventory(*gpus(2, 16 * GI, T4))}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (pod({T + "gpu-memory": "80Gi"}), ""),
        (
            pod({T + "gpu-memory": "81Gi"}),
            "fits no node, even empty: needs 81Gi on one GPU; largest slice 80Gi (NVIDIA A100-SXM4-80GB)",
        ),
        (pod({T + "gpu": 8}), ""),
        (
            pod({T + "gpu": 9}),
            "fits no node, even empty: needs 9 such GPUs, a node has 8; largest slice 80Gi (NVIDIA A100-SXM4-80GB)",
        ),
        (
            pod({T + "gpu": 2, T + "gpu-memory": "17Gi"}, annotations={T + "gpu-models": "t4"}),
            "needs 17Gi on one GPU; largest slice",
        ),
        (pod({T + "gpu-memory-percent": 50}, annotations={T + "gpu-models": "H200"}), "needs a GPU of model h200"),
        (
            pod({T + "gpu": 1}, annotations={T + "guarantee": "kernel"}),
            "needs the memory guarantee kernel or a firmer one; largest slice 80Gi (NVIDIA A100-SXM4-80GB)",
        ),
        (pod({T + "mig-1g.10gb": 1}), "needs 1 MIG instance of 1g.10gb, a node has 0"),
        (pod({T + "gpu-memory": "1Gi"}, annotations={T + "gpu-uuids": "GPU-none"}), ""),
    ],
    ids=str,
)
def test_what_is_told(told, given, said):
    found = told(Nodes(**BOTH), given)
    assert said in found if said else found == ""


@pytest.mark.parametrize(
    "busy",
    [
        inventory(*gpus(1, 80 * GI, health="sick")),
        inventory(*gpus(1, 80 * GI, held=300)),
        inventory(*gpus(1, 80 * GI, health="lost", held=320)),
    ],
)
def test_what_passes_is_not_told(told, busy):
    """A busy or sick GPU may be free and well tomorrow."""
    assert told(Nodes(n=busy), pod({T + "gpu-memory": "80Gi"})) == ""


def test_a_card_cut_by_mig_takes_no_slice(told):
    nodes = Nodes(n=inventory(*gpus(1, 80 * GI, mig=(MigInstance(id="g7", profile="1g.10gb"),))))
    assert told(nodes, pod({T + "mig-1g.10gb": 1})) == ""
    assert "no GPU" in told(nodes, pod({T + "gpu-memory": "1Gi"}))


@pytest.mark.parametrize(
    "nodes",
    [
        Nodes(),
        Nodes(n="nonsense"),
        Nodes(n=None),
        Nodes(n=inventory(*gpus(1, GI), unit=2 * UNIT)),
    ],
)
def test_where_nothing_is_known_nothing_is_told(told, nodes):
    assert told(nodes, pod({T + "gpu-memory": "81Gi"})) == ""


def test_before_all_nodes_are_known_nothing_is_told(told):
    nodes = Nodes(**BOTH)
    nodes.synced = False
    assert told(nodes, pod({T + "gpu-memory": "81Gi"})) == ""


def test_it_follows_the_nodes(told):
    nodes = Nodes(small=BOTH["small"])
    given = pod({T + "gpu-memory": "40Gi"})
    assert "largest slice 16Gi (Tesla T4)" in told(nodes, given)
    nodes.put("big", BOTH["big"])
    assert told(nodes, given) == ""
    nodes.put("twin", BOTH["big"])
    nodes.drop("big")
    assert told(nodes, given) == ""
    nodes.put("twin", None)
    assert told(nodes, given) != ""
    nodes.drop("twin")
    nodes.drop("small")
    assert told(nodes, given) == ""


def test_a_change_of_what_is_held_costs_nothing_that_is_known(told):
    nodes = Nodes(n=inventory(*gpus(1, 80 * GI)))
    told(nodes, pod({T + "gpu-memory": "81Gi"}))
    known = dict(nodes.capacity._known)
    nodes.put("n", inventory(*gpus(1, 80 * GI, held=5)))
    assert nodes.capacity._known == known != {}


def test_what_is_kept_is_bounded(told):
    nodes = Nodes(**BOTH)
    for mib in range(1, MOST_SHAPES + 20):
        told(nodes, pod({T + "gpu-memory": f"{mib}Mi"}))
    assert len(nodes.capacity._known) <= MOST_SHAPES


def test_with_more_kinds_of_nodes_than_can_be_looked_at_nothing_is_told(told):
    nodes = Nodes(**{f"n{at}": inventory(*gpus(1, (at + 1) * GI)) for at in range(MOST_KINDS)})
    assert told(nodes, pod({T + "gpu-memory": "200Gi"})) != ""
    nodes.put("more", inventory(*gpus(1, 100 * GI)))
    assert told(nodes, pod({T + "gpu-memory": "200Gi"})) == ""


def test_of_many_containers_nothing_is_told(told):
    more = [{"name": f"c{at}", "resources": {"limits": {T + "gpu-memory": "1Gi"}}} for at in range(70)]
    assert told(Nodes(**BOTH), pod({T + "gpu-memory": "81Gi"}, more=more)) == ""


async def test_the_program_keeps_the_nodes_beside_the_reviews_and_goes_on_without(
    tmp_path, clock, caplog, until, review
):
    caplog.set_level("INFO")
    async with FakeApiServer() as api:
        api.add_namespace("tessera-system")
        api.put(
            "nodes",
            {
                "metadata": {
                    "name": "n1",
                    "labels": {T + "sharing": "true"},
                    "annotations": {T + "inventory": BOTH["small"]},
                }
            },
        )
        options = program.flags({}).read(
            [
                *("--listen", "127.0.0.1:0", "--status-listen", "127.0.0.1:0", "--namespace", "tessera-system"),
                *("--kubeconfig", api.kubeconfig(tmp_path / "kubeconfig")),
            ]
        )
        signals = Signals()
        task = asyncio.create_task(program.serve(options, signals, clock=clock, environ={}))
        try:
            await until(lambda: task.done() or "listening on " in caplog.text)
            port = caplog.text.partition("listening on ")[2].partition(",")[0].rpartition(":")[2]
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=_trusting())) as http:

                async def warnings():
                    async with http.post(
                        f"https://localhost:{port}/mutate", json=review(pod({T + "gpu-memory": "40Gi"}))
                    ) as answer:
                        return (await answer.json())["response"].get("warnings", [])

                async with asyncio.timeout(20):
                    while not (found := await warnings()):  # noqa: ASYNC110  the watch has no event for us
                        await asyncio.sleep(0.01)
                assert "largest slice 16Gi (Tesla T4)" in found[0]
                await api.stop()
                assert await warnings() == found
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _trusting():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_an_inventory_is_what_it_is_written_as():
    assert json.loads(BOTH["small"])["gpus"][0]["model"] == T4
