"""Preemption beside pods that are deleted and don't go: finalizers, and kubelets that are away."""

from __future__ import annotations

import pytest

FINALIZER = "batch.kubernetes.io/job-tracking"


@pytest.fixture
async def full(rig):
    """Nodes n1 and n2, each filled by one pod; a pod of high priority waits."""
    for node, priority in (("n1", 0), ("n2", 5)):
        rig.put_node(node, 64)
        await rig.caught_up()
        made = rig.put_pod(f"on-{node}", units=64, spec={"priority": priority, "terminationGracePeriodSeconds": 30})
        assert await rig.bind(made, node) == ""
    high = rig.put_pod("high", units=64, spec={"priority": 100})
    await rig.caught_up()
    assert (await rig.filter(high))["NodeNames"] == []
    return rig


async def deleted(rig, name, when):
    """A pod was deleted, and a finalizer keeps its object."""
    made = rig.server.get("pods", name, "default")
    made["metadata"] |= {"deletionTimestamp": when, "finalizers": [FINALIZER]}
    rig.server.put("pods", made)
    await rig.caught_up()


async def ended_by_sweep(rig):
    before = {p["metadata"]["name"] for p in rig.server.objects("pods") if p["metadata"].get("deletionTimestamp")}
    await rig.soon(rig.preemptor.sweep())
    await rig.caught_up()
    return {
        p["metadata"]["name"] for p in rig.server.objects("pods") if p["metadata"].get("deletionTimestamp")
    } - before


async def test_who_is_stuck_in_ending_is_nobodys_victim(full):
    """To end it once more frees nothing: the pod would wait for it for ever, though another could go."""
    await deleted(full, "on-n1", "2020-01-01T00:00:00Z")
    assert await ended_by_sweep(full) == {"on-n2"}
    assert full.server.get("pods", "high", "default")["status"]["nominatedNodeName"] == "n2"


async def test_nobody_goes_for_a_pod_that_is_being_deleted(full):
    """kube-scheduler never tries it again, however long a finalizer keeps its object."""
    await deleted(full, "high", "2999-01-01T00:00:00Z")
    assert await ended_by_sweep(full) == set()
    assert len(full.waiting) == 0


async def test_nobody_makes_himself_untouchable_by_an_annotation(full):
    """Anybody may write the kubelet's annotation of a static pod; only the mirror's, which no kubelet runs, says what it is."""
    low = full.server.get("pods", "on-n1", "default")
    low["metadata"]["annotations"]["kubernetes.io/config.source"] = "file"
    full.server.put("pods", low)
    await full.caught_up()
    assert await ended_by_sweep(full) == {"on-n1"}
