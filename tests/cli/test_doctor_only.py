"""`tessera doctor --only`: it asks the API server for what the chosen checks need, and for nothing else."""

import json

import pytest

from tessera.cli.main import main
from tessera.doctor.checks import CHECKS
from tessera.testing.apiserver import status
from tessera.testing.apiserver.faults import on

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


async def test_that_the_config_could_not_be_read_is_said_where_it_matters(cluster):
    cluster.node()
    cluster.api.faults.add(on(plural="configmaps"), status.forbidden("", "configmaps", "", "no"), times=None)
    code, out, err = await cluster.run("doctor", "--only", "gpu-health", "-o", "json")
    assert (code, json.loads(out)["checks"][0]["result"]) == (0, "ok")
    assert err.startswith("tessera doctor: configmaps tessera-system: not permitted (403)")
    assert "judged by the default config" in err
    assert (await cluster.run("doctor", "--only", "api-version"))[2] == ""
    assert (await cluster.run("doctor", "--only", "config-readable,gpu-health"))[2] == ""


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "1e9", "x", "9" * 5000])
def test_a_timeout_is_a_number_of_seconds(given, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", f"--timeout={given}"])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert "is no number of seconds up to 3600" in err
    assert len(err) < 1500


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
