"""`tessera doctor --only`: it asks the API server for what the chosen checks need, and for nothing else."""

import json

import pytest

from tessera.doctor.checks import CHECKS
from tessera.testing.apiserver import status

CONFIG = {("list", "configmaps")}
WEBHOOKS = {("list", "mutatingwebhookconfigurations"), ("list", "validatingwebhookconfigurations")}


def _asked(cluster):
    """Verb and plural of each request since the last time; /version and others that are no objects are left out."""
    found = {(each.seen.verb, each.seen.plural) for each in cluster.api.requests if each.seen.plural}
    cluster.api.forget_requests()
    return found


@pytest.mark.parametrize(
    ("only", "asked"),
    [
        ("api-version", set()),
        ("gpu-health", {("list", "nodes"), *CONFIG}),
        ("guard-recreation", {("list", "pods"), *CONFIG}),
        ("runtime-class,api-version", {("list", "runtimeclasses"), *CONFIG}),
        ("webhook-registered", {*WEBHOOKS, *CONFIG}),
        ("webhook-endpoints", {*WEBHOOKS, *CONFIG}),
        ("certificate-life", {*WEBHOOKS, *CONFIG, ("get", "secrets")}),
        ("webhook-answers", {("create", "pods"), *CONFIG}),
    ],
)
async def test_nothing_else_is_asked_for(cluster, only, asked):
    cluster.node()
    cluster.api.forget_requests()
    await cluster.run("doctor", "--only", only, "-o", "json")
    assert _asked(cluster) == asked


@pytest.mark.parametrize(
    ("only", "rights"),
    [
        ("gpu-health", {"nodes"}),
        ("pod-drift,node-agent", {"nodes", "pods"}),
        ("quota-foreign", {"resourcequotas", "pods"}),
    ],
)
async def test_rights_for_that_part_are_enough(cluster, only, rights, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("memoryUnit: 256Mi\n")
    cluster.node()
    cluster.agent("n1")
    refused = cluster.api.faults.add(
        lambda seen: bool(seen.plural) and seen.plural not in rights, status.forbidden("", "x", "", "no"), times=None
    )
    code, out, _ = await cluster.run("doctor", "--only", only, "-o", "json", "--config", str(config))
    assert (code, refused.hits) == (0, 0)
    assert {each["result"] for each in json.loads(out)["checks"]} == {"ok"}


async def test_each_check_says_alone_what_it_says_among_all(cluster):
    cluster.node("n1", health="sick")
    cluster.node("n2", annotations={"tessera.dev/drift": "{"})
    cluster.agent("n1")
    cluster.pod("one", 10, node="n1")
    cluster.pod("two", 999)
    cluster.pod("three", 10, scheduler="other")
    cluster.api.put("nodes", {"metadata": {"name": "odd", "annotations": {"x": 7}}})
    _, out, _ = await cluster.run("doctor", "-o", "json")
    among = {each["check"]: each for each in json.loads(out)["checks"]}
    for check in CHECKS:
        _, out, _ = await cluster.run("doctor", "-o", "json", "--only", check.id)
        assert json.loads(out)["checks"] == [among[check.id]]
