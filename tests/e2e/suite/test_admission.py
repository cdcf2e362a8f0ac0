"""Admission as a real API server does it: dry run, server-side apply, what users may not write."""

from __future__ import annotations

import json

import pytest
from cluster.api import MERGE
from cluster.processes import until
from product import pods
from product.names import PLAN, REQUEST, UNITS
from product.secondhook import second_webhook


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


def test_a_pod_that_another_webhook_changes_is_looked_at_again(*, space, tmp_path):
    """Ours is called first, the other one adds a container that asks for a slice, and ours is called once more."""
    with second_webhook(space.cluster, space.name, tmp_path):
        until(
            "the second webhook is called",
            lambda: len(_containers(space, pods.pod("dry"), dryRun="All")) == 2,
            seconds=15,
        )
        (pod,) = space.run(pods.pod("p", {"gpu-memory": "8Gi"}))

    tickets = {each["name"]: each["resources"]["limits"] for each in pod["spec"]["containers"]}
    assert tickets == {"main": {UNITS: "32"}, "added": {UNITS: "4"}}
    request = json.loads(pod["metadata"]["annotations"][REQUEST])["containers"]
    assert {name: each["memory"] for name, each in request.items()} == {"main": 8 << 30, "added": 1 << 30}
    space.just(least=6)


@pytest.mark.parametrize("how", [["--server-side"], []], ids=["server-side", "client-side"])
def test_the_same_pod_is_applied_twice(*, space, how):
    manifest = json.dumps(pods.pod("p", {"gpu-memory": "8Gi", "gpu-compute": 10}))
    space.kubectl("apply", *how, "-f", "-", stdin=manifest)
    (before,) = space.running("p")

    told = space.kubectl("apply", *how, "-f", "-", stdin=manifest, check=False)

    assert "pod/p" in told
    assert "rror" not in told, told
    assert space.get("p")["spec"] == before["spec"]
    space.just()


def test_what_is_written_for_others_can_not_be_changed_later(space):
    """Forged annotations are stripped at creation, and refused afterwards whichever way they come."""
    space.run(pods.pod("p", {"gpu-memory": "8Gi"}))
    plan = space.get("p")["metadata"]["annotations"][PLAN]
    forged = {"metadata": {"annotations": {PLAN: plan.replace('"units":32', '"units":1')}}}

    for path in (f"{space.path}/p", f"{space.path}/p/status"):
        status, body = space.api.raw("PATCH", path, forged, kind=MERGE)
        assert 400 <= status < 500, path
        assert b"tessera.dev/plan" in body, body

    assert space.get("p")["metadata"]["annotations"][PLAN] == plan


def _containers(space, pod, **query):
    return space.api.post(space.path, pod, **query)["spec"]["containers"]
