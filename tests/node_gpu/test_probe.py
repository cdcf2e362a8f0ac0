"""Which guarantee a GPU gets: only what was seen to hold is claimed."""

from __future__ import annotations

import msgspec
import pytest

from deviceplugin.isolation import kernel
from deviceplugin.isolation.cdi import CdiDevices
from deviceplugin.isolation.environment import Environment
from deviceplugin.isolation.probe import choose_mode, probe
from deviceplugin.isolation.toolkit import Toolkit
from deviceplugin.nvml.facts import MigFacts, NodeFacts
from tessera.model.guarantee import Guarantee, Guarantees

KERNEL, PROCESS, WATCHED, NONE = Guarantee
EVERY = tuple(Guarantee)
MIG = (MigFacts(id="g7", uuid="MIG-1", profile="1g.10gb", memory=1),)


@pytest.fixture
def node(facts_of) -> NodeFacts:
    return NodeFacts(driver="615.10", memory_limits=True, gpus=(facts_of(0),))


@pytest.fixture
def best(node) -> Environment:
    uuid = node.gpus[0].uuid
    return Environment(
        cgroup_v2=True,
        cdi=CdiDevices(names=frozenset({uuid}), limited=frozenset({uuid})),
        runtime_cdi=True,
        toolkit=Toolkit(version=(1, 20, 1)),
    )


def claimed(node, environment, mode="cdi", order=EVERY) -> Guarantee:
    verdict = probe(node, environment, order=order, mode=mode)[node.gpus[0].id]
    assert verdict.guarantees.compute is NONE, "compute needs MPS"
    return verdict.guarantees.memory


@pytest.mark.parametrize("mode", ["cdi", "envvar", "volume-mounts"])
def test_with_everything_in_place_the_driver_holds_the_slice(node, best, mode) -> None:
    assert claimed(node, best, mode) is KERNEL


@pytest.mark.parametrize(
    ("facts", "surroundings", "mode"),
    [
        pytest.param({"driver": "614.99"}, {}, "cdi", id="driver too old"),
        pytest.param({"driver": "garbage"}, {}, "cdi", id="driver unknown"),
        pytest.param({"memory_limits": False}, {}, "cdi", id="no such symbol"),
        pytest.param({}, {"cgroup_v2": False}, "cdi", id="cgroup v1"),
        pytest.param({}, {"cdi": CdiDevices()}, "cdi", id="no hook in the CDI spec"),
        pytest.param({}, {"toolkit": Toolkit()}, "envvar", id="toolkit not known"),
        pytest.param({}, {"toolkit": Toolkit(version=(1, 20, 0))}, "envvar", id="toolkit too old"),
        pytest.param({}, {"toolkit": Toolkit(version=(1, 20, 1), mode="legacy")}, "volume-mounts", id="legacy mode"),
    ],
)
def test_what_misses_one_condition_is_watched_and_says_why(node, best, facts, surroundings, mode) -> None:
    node = msgspec.structs.replace(node, **facts)
    environment = msgspec.structs.replace(best, **surroundings)
    assert claimed(node, environment, mode) is WATCHED
    verdict = probe(node, environment, order=EVERY, mode=mode)[node.gpus[0].id]
    assert len(verdict.against[KERNEL]) > 20


def test_each_gpu_is_judged_for_itself(best, facts_of) -> None:
    whole, cut, mute = facts_of(0), facts_of(1, mig_mode=True, mig=MIG), facts_of(2, accounting=False)
    node = NodeFacts(driver="615.10", memory_limits=True, gpus=(whole, cut, mute))
    found = probe(node, best, order=EVERY, mode="cdi")
    assert {gpu: verdict.guarantees.memory for gpu, verdict in found.items()} == {
        whole.id: KERNEL,
        cut.id: WATCHED,
        mute.id: NONE,
    }
    assert "MIG" in found[cut.id].against[KERNEL]


def test_processes_that_cannot_be_told_apart_are_not_watched(node, best) -> None:
    blind = msgspec.structs.replace(best, cgroup_v2=False, process_problem="its pod needs hostPID: true")
    assert claimed(node, blind) is NONE
    assert "hostPID" in probe(node, blind, order=EVERY, mode="cdi")[node.gpus[0].id].against[WATCHED]


def test_a_gpu_that_turned_out_blind_is_not_watched(facts_of) -> None:
    node = NodeFacts(driver="580.1", gpus=(facts_of(0), facts_of(1)))
    found = probe(node, Environment(), order=EVERY, mode="envvar", blind={node.gpus[0].id})
    assert [verdict.guarantees.memory for verdict in found.values()] == [NONE, WATCHED]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ((WATCHED, KERNEL), WATCHED),
        ((KERNEL,), KERNEL),
        ((PROCESS,), NONE),
        ((PROCESS, WATCHED), WATCHED),
        ((NONE, KERNEL), NONE),
        ((), NONE),
    ],
)
def test_the_configured_order_is_honoured(node, best, order, expected) -> None:
    assert claimed(node, best, order=order) is expected


def test_auto_takes_cdi_only_where_it_was_seen_to_work(node, best) -> None:
    assert choose_mode("auto", node.gpus, best) == "cdi"
    for surroundings in ({"runtime_cdi": None}, {"runtime_cdi": False}, {"cdi": CdiDevices(names=frozenset({"0"}))}):
        assert choose_mode("auto", node.gpus, msgspec.structs.replace(best, **surroundings)) == "envvar"
    assert choose_mode("auto", (), best) == "envvar"


def test_auto_wants_a_name_for_every_mig_instance(best, facts_of) -> None:
    cut = facts_of(0, mig_mode=True, mig=MIG)
    assert choose_mode("auto", (cut,), best) == "envvar"
    named = msgspec.structs.replace(best, cdi=CdiDevices(names=frozenset({"MIG-1"})))
    assert choose_mode("auto", (cut,), named) == "cdi"


@pytest.mark.parametrize("mode", ["cdi", "envvar", "volume-mounts"])
def test_what_config_says_is_done(node, mode) -> None:
    assert choose_mode(mode, node.gpus, Environment()) == mode


def test_the_limit_is_in_whole_mebibytes_and_the_smallest_of_several() -> None:
    gib = 1 << 30
    assert kernel.variables([8 * gib]) == {"NVIDIA_GPU_MEMORY_REQUEST": "8192", "NVIDIA_GPU_MEMORY_LIMIT": "8192"}
    assert set(kernel.variables([8 * gib, 4 * gib]).values()) == {"4096"}


def test_no_gpu_no_verdict(best) -> None:
    assert probe(NodeFacts(driver="615.10"), best, order=EVERY, mode="cdi") == {}
    assert Guarantees() == Guarantees(memory=NONE, compute=NONE)
