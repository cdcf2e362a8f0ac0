"""Kubernetes PR 137534 on a real kubelet.

There nobody sees the end of a pod while an Allocate is in flight: the one loop that would is waiting for that Allocate. Only
a pod whose end had begun before can come to it meanwhile, so this can't be told in the words of the fake's test.
"""

from __future__ import annotations

import asyncio

from contract.real_kubelet import PODS

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api

GPU = "example.com/gpu"


async def test_a_list_during_an_allocate_loses_the_reservation(kubelet, make_plugin, make_pod, pod_resources):
    """Why the agent never calls List inside Allocate: one ID goes to two pods that both run."""
    given = []
    purge = []

    async def allocate(ids):
        given.extend(ids)
        if purge:
            name = purge.pop()
            for _ in range(50):
                if name not in await pod_resources.held():
                    break
                await asyncio.sleep(0.2)
        return api.ContainerAllocateResponse()

    async def prefer(available, _must, size):
        return sorted(available)[:size]

    await make_plugin(GPU, ["d0", "d1", "d2"], prefer=prefer, allocate=allocate)
    assert (await kubelet.admit(make_pod("first"), stubborn=True)).admitted
    await kubelet.settled("uid-first")
    await asyncio.to_thread(kubelet.cluster.api.delete, f"{PODS}/first", gracePeriodSeconds=2)
    await asyncio.sleep(0.5)
    purge.append("first")

    for name in ("second", "third", "fourth"):
        assert (await kubelet.admit(make_pod(name))).admitted

    assert given == ["d0", "d1", "d0", "d1"]
    held = await pod_resources.held()
    assert held["second"] == held["fourth"] == {"main": {GPU: ["d1"]}}
