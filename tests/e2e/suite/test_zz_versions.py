"""Upgrade from the release before, and uninstall: running pods with GPUs notice neither. The last tests of a run."""

from __future__ import annotations

import functools

from cluster.processes import until
from product import pods, truth
from product.installed import NODE, OVERLAY, PODS, PREVIOUS, SCHEDULER, WEBHOOK


def test_an_upgrade_from_the_release_before(space, product):
    """Back to what was released last, and from there to what is here: every part is replaced, and pods come meanwhile."""
    for number, release in enumerate((PREVIOUS, OVERLAY)):
        before = uids(product)
        space.run(*(pods.pod(f"old{number}-{each}", {"gpu-memory": "8Gi", "gpu-compute": 10}) for each in range(4)))
        held = devices(space)
        with space.undisturbed():
            product.apply(release)
            names = [f"new{number}-{each}" for each in range(20)]
            for name in names:
                space.create(pods.pod(name, {"gpu-memory": "2Gi"}))
            product.wait_installed()
            space.running(*names)
            until("the old ones have left", functools.partial(_left, product, before), seconds=60)
            found = devices(space)
            assert {name: found[name] for name in held} == held
            space.just(least=60)
    space.nobody_was_refused()


def uids(product):
    return {each["metadata"]["uid"] for part in (NODE, SCHEDULER, WEBHOOK) for each in product.pods(part)}


def _left(product, before):
    return before.isdisjoint(uids(product))


def devices(space):
    """Device IDs by pod, in no order: the kubelet keeps them in Go's maps."""
    held = truth.pod_resources(space.cluster)
    return {name: sorted(sorted(ids) for ids in found["main"].values()) for name, found in held.items()}


def test_uninstalling_leaves_running_pods_and_nothing_else(space, product):
    space.run(pods.pod("slice", {"gpu-memory": "8Gi"}), pods.pod("whole", {"gpu": 1}))
    api = product.cluster.api
    try:
        with space.undisturbed():
            product.uninstall()
            space.running("slice", "whole")
            status, _ = api.raw("POST", space.path, pods.pod("plain"))
            assert status == 201
        assert not api.exists(f"{PODS.rpartition('/')[0]}")
        assert orphans(api) == []
    finally:
        product.apply()
        product.wait_installed()
    # Who comes back finds what ran on meanwhile.
    space.run(pods.pod("next", {"gpu": 2}))
    space.just(least=9)


def orphans(api):
    """Objects of ours outside our namespace."""
    kinds = {
        "/apis/admissionregistration.k8s.io/v1": (
            "mutatingwebhookconfigurations",
            "validatingwebhookconfigurations",
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
        ),
        "/apis/rbac.authorization.k8s.io/v1": ("clusterroles", "clusterrolebindings", "roles", "rolebindings"),
        "/apis/policy/v1": ("poddisruptionbudgets",),
    }
    return [
        f"{kind}/{each['metadata']['name']}"
        for root, plurals in kinds.items()
        for kind in plurals
        for each in api.get(f"{root}/{kind}")["items"]
        if "tessera" in each["metadata"]["name"]
    ]
