"""Only the extender beside the kube-scheduler that leads acts, and it knows which that is by the Lease."""

from __future__ import annotations

import pytest

from tessera.kube.clock import rfc3339
from tessera.model.config import Lease
from tessera.testing.apiserver import StatusError, on
from webhook.extender.leading import Leadership


@pytest.fixture
def hold(rig):
    """Write kube-scheduler's Lease."""

    def write(holder, *, ago=0.0, name="kube-scheduler"):
        renewed = rfc3339(rig.clock.wall() - ago, micro=True)
        rig.server.put(
            "leases",
            {
                "metadata": {"name": name, "namespace": "kube-system"},
                "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": renewed},
            },
        )

    return write


@pytest.fixture
def leadership(rig):
    def make(identity="host-a", lease=None):
        chosen = lease or Lease()
        return Leadership(rig.client, lease=lambda: chosen, identity=identity, clock=rig.clock)

    return make


@pytest.mark.parametrize(
    ("holder", "leads"),
    [
        ("host-a_1f0b9c1e-0000", True),
        ("host-a", True),
        ("host-b_1f0b9c1e-0000", False),
        ("host-ab_1f0b9c1e-0000", False),
        ("host", False),
        ("", False),
    ],
)
async def test_the_holder_is_known_by_its_host_name(leadership, hold, holder, leads):
    hold(holder)
    ours = leadership()
    assert not ours.leading, "nothing is known before the first look"
    await ours.look()
    assert ours.leading is leads


async def test_without_a_lease_nobody_leads(leadership):
    ours = leadership()
    await ours.look()
    assert not ours.leading


async def test_without_an_election_it_always_leads(leadership):
    assert leadership(lease=Lease(name="")).leading


async def test_another_schedulers_lease_is_another(leadership, hold):
    hold("host-a_1", name="tessera-scheduler")
    ours, other = leadership(lease=Lease(name="tessera-scheduler")), leadership()
    await ours.look()
    await other.look()
    assert (ours.leading, other.leading) == (True, False)


async def test_it_runs_out_by_itself(rig, leadership, hold, clock):
    hold("host-a_1")
    ours = leadership()
    await ours.look()
    rig.server.faults.add(on("get", "leases"), StatusError(500, "InternalError", "no"), times=None)
    await clock.advance(14)
    await ours.look()
    assert ours.leading
    await clock.advance(2)
    await ours.look()
    assert not ours.leading


async def test_an_old_lease_is_not_believed(leadership, hold):
    hold("host-a_1", ago=60)
    ours = leadership()
    await ours.look()
    assert not ours.leading


async def test_it_changes_hands(leadership, hold):
    hold("host-a_1")
    ours, other = leadership(), leadership("host-b")
    for each in (ours, other):
        await each.look()
    assert (ours.leading, other.leading) == (True, False)
    hold("host-b_2")
    for each in (ours, other):
        await each.look()
    assert (ours.leading, other.leading) == (False, True)
