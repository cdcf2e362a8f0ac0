"""Admission as a real API server does it: dry run, server-side apply, what users may not write."""

from __future__ import annotations

import json

from product import pods
from product.programs import PLAN, REQUEST, UNITS


def test_kubectl_dry_run_shows_the_tickets_and_keeps_nothing(space):
    pod = pods.pod("p", {"gpu-memory": "8Gi"})

    shown = space.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(pod))

    assert json.loads(shown)["spec"]["containers"][0]["resources"]["limits"] == {UNITS: "32"}
    assert space.all() == []


def test_server_side_apply_creates_a_pod(space):
    space.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(pods.pod("p", {"gpu-memory": "8Gi"})))

    space.running("p")
    space.just()


def test_forged_annotations_are_stripped_with_a_warning(space):
    forged = {PLAN: '{"v":1,"node":"n1","containers":{"main":[{"gpu":"0","units":1,"compute":0}]}}', REQUEST: "{}"}
    pod = pods.pod("p", {"gpu-memory": "8Gi"}, annotations=forged)

    told = space.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(pod), check=False)

    assert "Warning:" in told
    (made,) = space.run(pod)
    assert json.loads(made["metadata"]["annotations"][REQUEST])["containers"]["main"]["memory"] == 8 << 30
    assert made["metadata"]["annotations"][PLAN] != forged[PLAN]
    space.just()


def test_a_deployment_of_unequal_replicas_rolls(space):
    """Pods of a ReplicaSet have a generateName: the API server's review has no name."""
    template = {"metadata": {"labels": {"app": "d"}}, "spec": pods.pod("", {"gpu-memory": "4Gi"})["spec"]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": space.name},
        "spec": {"replicas": 5, "selector": {"matchLabels": {"app": "d"}}, "template": template},
    }
    path = f"/apis/apps/v1/namespaces/{space.name}/deployments/d"
    space.api.apply(deployment)
    space.api.wait(path, lambda each: each["status"].get("readyReplicas") == 5, what="has five ready pods")

    template["spec"]["containers"][0]["resources"]["limits"] = {"tessera.dev/gpu-memory": "6Gi"}
    space.api.apply(deployment)
    space.api.wait(
        path,
        lambda each: (
            each["status"].get("observedGeneration") == each["metadata"]["generation"]
            and each["status"].get("updatedReplicas") == each["status"].get("availableReplicas") == 5
            and each["status"].get("replicas") == 5
        ),
        seconds=60,
        what="has rolled",
    )

    space.just()
    space.api.delete(path, propagationPolicy="Foreground")
    space.api.wait_gone(path, seconds=60)
