"""Config and units: what is installed reads, and everybody counts in it."""

import pytest

from tessera.doctor.evidence import Look
from tessera.model.inventory import Inventory, encode


def test_a_config_with_a_mistake(findings):
    told = findings(config_maps=lambda trees: [trees[0] | {"data": {"config.yaml": "memoryunit: 1Gi"}}, trees[1]])
    (found,) = told["config-readable"]
    assert "memoryUnit" in found.seen
    assert found.object == "configmap/tessera-system/tessera-config (config.yaml)"


@pytest.mark.parametrize("text", ["[1, 2]", "a: &a [*a]", "\x00", "domain: .", "x" * 100_000])
def test_configs_that_are_none(findings, text):
    told = findings(config_maps=lambda trees: [trees[0] | {"data": {"config.yaml": text}}, trees[1]])
    assert told["config-readable"][0].severity == "error"


def test_config_maps_that_can_not_be_read(findings):
    told = findings(config_maps=Look(problem="configmaps: not permitted (403)"))
    assert set(told["blind"]) == {"scheduler-config"}


def test_agents_of_two_units(findings, cluster):
    nodes = [cluster.node("n1"), cluster.node("n2", text=cluster.inventory(unit=1 << 30))]
    told = findings(nodes=nodes)
    (found,) = told["config-units"]
    assert "1Gi on n2" in found.seen
    assert "256Mi" in found.seen


def test_agents_of_another_domain(only, cluster):
    other = cluster.node("n2", text="", allocatable={}, annotations={"gpu.example/inventory": cluster.inventory()})
    odd = cluster.node("n3", text="", allocatable={}, annotations={"x/inventory": "{}", "y/inventory": "\x1b"})
    found = only("config-units", nodes=lambda trees: [trees[0], other, odd])
    assert "inventories of another domain than tessera.dev" in found.seen
    assert found.object == "node/n2"


def test_tickets_of_another_unit(only, cluster):
    there = {"tessera.dev/gpu-memory.1Gi": "24", "tessera.dev/gpu-memory.percent": "100"}
    assert "1Gi on n2" in only("config-units", nodes=[cluster.node("n1"), cluster.node("n2", allocatable=there)]).seen


@pytest.mark.parametrize("raw", ["0", "-1", "x", "", "1e99999"])
def test_tickets_that_a_kubelet_remembers_do_not_count(findings, cluster, raw):
    there = {"tessera.dev/gpu-memory.1Gi": raw, "tessera.dev/gpu-memory.x\x1b[2J": "3"}
    nodes = [cluster.node("n1"), cluster.node("n2", allocatable=there | {cluster.names.memory_units: "180"})]
    assert findings(nodes=nodes) == {}


def test_pods_that_wait_for_tickets_of_another_unit(findings, cluster):
    told = findings(pods=lambda trees: [*trees, cluster.pod("old", {"tessera.dev/gpu-memory.1Gi": "8"})])
    (found,) = told["pod-other-unit"]
    assert "team/old asks for tessera.dev/gpu-memory.1Gi" in found.seen


def test_objects_that_could_not_be_decoded_are_counted(only):
    assert "3 objects could not be decoded" in only("objects-readable", unreadable={"pods": 3}).seen


def test_an_inventory_of_no_unit_does_not_count(findings, cluster):
    broken = encode(Inventory(v=1, unit=0, gpus=()))
    assert "config-units" not in findings(nodes=[cluster.node("n1"), cluster.node("n2", text=broken)])
