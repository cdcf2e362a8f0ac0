"""What it costs, measured on the real thing: written to numbers.json and shown at the end of the run.

Speed is compared with the same cluster without Tessera, in the same minutes. None of it is asserted: how many milliseconds
something takes says as much of the machine as of the product. The run shows each figure against what it should be.
"""

from __future__ import annotations

from product import measure, pods
from product.installed import EXTENDER, NODE, SCHEDULER, WEBHOOK
from product.nodes import FakeNode, FakeNodes, elsewhere
from product.schedulers import one_with_extender, one_without_extender
from product.space import is_planned, is_running, is_unschedulable
from product.watching import Watching

PODS, AT_ONCE, SINGLE = 100, 10, 20
NODES, BINDS = 50, 600
ANNOTATIONS = ("tessera.dev/request", "tessera.dev/plan")


def test_from_creation_to_running_with_and_without(space, product):
    """Ten at a time, one kind after the other, 100 of each."""
    audit = measure.Audit(space.cluster.settings.audit_log)
    before = {part: measure.Usage.of(product.processes(part)) for part in (NODE, EXTENDER, SCHEDULER, WEBHOOK)}
    calls = measure.histograms(product.metrics(NODE), "tessera_node_kubelet_call_seconds", "method")
    took = {"with": [], "without": []}
    with Watching(space.api, space.path) as watching:
        for start in range(0, PODS, AT_ONCE):
            for kind, limits in (("with", {"gpu-memory": "1Gi", "gpu-compute": 2}), ("without", {})):
                names = [f"{kind}{number}" for number in range(start, start + AT_ONCE)]
                began = {name: measure.now() for name in names}
                space.create_at_once(*(pods.pod(name, limits) for name in names))
                took[kind] += [watching.moment(name, is_running, seconds=60) - began[name] for name in names]
                if kind == "with" and start == 0:
                    sizes = {
                        name: len(space.get(names[0])["metadata"]["annotations"][name].encode()) for name in ANNOTATIONS
                    }
                space.delete_at_once(*names[1:])
    usage = {part: measure.Usage.of(product.processes(part)).since(found) for part, found in before.items()}
    node = space.cluster.node()["metadata"]["annotations"]

    measure.keep(
        space.cluster,
        create_to_running={
            **{kind: measure.percentiles(found) for kind, found in took.items()},
            "ratio_p50": measure.median(took["with"]) / measure.median(took["without"]),
        },
        api_requests_per_pod={user: count / PODS for user, count in audit.counts().items()},
        processes=usage,
        bytes_of_annotations={**sizes, "inventory of 4 GPUs": len(node["tessera.dev/inventory"].encode())},
        node_calls_ten_at_a_time=measure.since(
            measure.histograms(product.metrics(NODE), "tessera_node_kubelet_call_seconds", "method"), calls
        ),
        kubelet_allocate={
            resource: measure.at_most(counts)
            for resource, counts in measure.histograms(
                [space.cluster.kubelet_api.text("/metrics")],
                "kubelet_device_plugin_alloc_duration_seconds",
                "resource_name",
            ).items()
        },
    )
    assert len(took["with"]) == len(took["without"]) == PODS


def test_calls_of_the_kubelet_when_nothing_else_happens(space, product):
    """One pod after the other."""
    before = measure.histograms(product.metrics(NODE), "tessera_node_kubelet_call_seconds", "method")
    for number in range(SINGLE):
        space.run(pods.pod(f"p{number}", {"gpu-memory": "1Gi", "gpu-compute": 2}))

    after = measure.histograms(product.metrics(NODE), "tessera_node_kubelet_call_seconds", "method")
    measure.keep(space.cluster, node_calls_idle=measure.since(after, before))
    space.just(least=3 * SINGLE)


def test_calls_of_the_kubelet_in_a_burst(space, product):
    before = measure.histograms(product.metrics(NODE), "tessera_node_kubelet_call_seconds", "method")
    names = [f"p{number}" for number in range(40)]
    space.create_at_once(*(pods.pod(name, {"gpu-memory": "1Gi", "gpu-compute": 2}) for name in names))
    space.running(*names, seconds=90)

    after = measure.histograms(product.metrics(NODE), "tessera_node_kubelet_call_seconds", "method")
    measure.keep(space.cluster, node_calls_in_a_burst_of_40=measure.since(after, before))
    space.just(least=120)


def test_pods_bound_per_second_with_the_extender_and_without(space, product):
    """The same 600 pods on the same 50 nodes of 4 GPUs, which open when all of them wait."""
    rates = {}
    with FakeNodes(space.cluster, [FakeNode(f"f{number:02}") for number in range(NODES)]) as nodes:
        with one_with_extender(product):
            rates["with"] = bound_per_second(space, nodes, "with")
            assert all(is_planned(each) for each in space.all())
            cleared(space)
        with one_without_extender(product):
            rates["without"] = bound_per_second(space, nodes, "without")
            cleared(space)
    ratio = rates["with"] / rates["without"]
    measure.keep(space.cluster, bound_per_second={**rates, "ratio": ratio, "nodes": NODES, "pods": BINDS})


def bound_per_second(space, nodes, prefix):
    names = [f"{prefix}{number}" for number in range(BINDS)]
    nodes.cordon(True)
    with Watching(space.api, space.path) as watching:
        space.create_at_once(*(elsewhere(name, {"gpu-memory": "4Gi", "gpu-compute": 5}) for name in names))
        for name in names:
            watching.moment(name, is_unschedulable, seconds=60)
        opened = measure.now()
        nodes.cordon(False)
        last = max(watching.moment(name, is_bound, seconds=120) for name in names)
    return BINDS / (last - opened)


def cleared(space):
    names = [each["metadata"]["name"] for each in space.all()]
    space.api.delete(space.path, gracePeriodSeconds=0)
    space.gone(*names)


def is_bound(pod):
    return bool(pod["spec"].get("nodeName"))
