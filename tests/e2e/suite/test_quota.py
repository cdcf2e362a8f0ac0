"""Kubernetes' own accounting on our tickets: they are plain extended resources."""

from __future__ import annotations

import json

from product import pods
from product.names import PERCENT, UNITS


def test_a_resource_quota_counts_tickets(space):
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "q", "namespace": space.name},
        "spec": {"hard": {f"requests.{UNITS}": "64", f"requests.{PERCENT}": "100"}},
    }
    path = f"/api/v1/namespaces/{space.name}/resourcequotas/q"
    space.api.apply(quota)
    space.api.wait(path, lambda each: "used" in each.get("status", {}), what="is counted")

    space.run(pods.pod("a", {"gpu-memory": "8Gi"}), pods.pod("b", {"gpu-memory": "8Gi"}), pods.pod("c", {"gpu": 1}))
    status, body = space.api.raw("POST", space.path, pods.pod("d", {"gpu-memory": "1Gi"}))

    assert status == 403
    assert "exceeded quota" in json.loads(body)["message"]
    used = space.api.get(path)["status"]["used"]
    assert (used[f"requests.{UNITS}"], used[f"requests.{PERCENT}"]) == ("64", "100")
    space.delete("a")
    space.gone("a")
    space.api.wait(path, lambda each: each["status"]["used"][f"requests.{UNITS}"] == "32", what="is counted anew")
    space.run(pods.pod("d", {"gpu-memory": "1Gi"}))
    space.just()


def test_a_limit_range_bounds_tickets_and_its_defaults_leave_slices_alone(space):
    space.api.apply(
        {
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": {"name": "l", "namespace": space.name},
            "spec": {"limits": [{"type": "Container", "max": {UNITS: "32"}, "default": {UNITS: "0", "cpu": "500m"}}]},
        }
    )

    (pod,) = space.run(pods.pod("fits", {"gpu-memory": "8Gi"}))
    status, body = space.api.raw("POST", space.path, pods.pod("large", {"gpu-memory": "9Gi"}))

    assert status == 403
    assert "maximum" in json.loads(body)["message"]
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    assert (limits[UNITS], limits["cpu"]) == ("32", "500m")
    space.just()
