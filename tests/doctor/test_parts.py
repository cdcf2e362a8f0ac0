"""What parts say of themselves: the config and the certificate that are in force, and why one is not ready."""

import pytest
from prometheus_client import CollectorRegistry

from tessera.daemon.configfile import ConfigFile
from tessera.doctor import parts
from tessera.doctor.evidence import Look, PartSaid
from tessera.model.config import parse
from webhook.admission.metrics import Metrics

WEBHOOK = "tessera-system/webhook"
DAY = 86_400


@pytest.fixture
def said(healthy):
    """What one webhook says, with some of its gauges changed."""
    evidence = healthy()

    def build(**changes):
        names = {"config": parts.CONFIG_TAKEN, "certificate": parts.CERTIFICATE_TAKEN, "bundle": parts.BUNDLE_KEPT}
        gauges = dict(evidence.said.need()[WEBHOOK].gauges)
        if "days" in changes:
            gauges[parts.EXPIRY] = evidence.now + changes.pop("days") * DAY
        gauges |= {names[key]: value for key, value in changes.items()}
        return Look({WEBHOOK: PartSaid(gauges)})

    return build


def test_gauges_have_the_names_that_the_parts_give_them():
    registry = CollectorRegistry()
    Metrics(registry)
    ConfigFile(None, parse, registry=registry)
    there = {sample.name for family in registry.collect() for sample in family.samples}
    assert set(parts.GAUGES) <= there


def test_a_part_that_runs_by_an_older_config(only, said):
    found = only("config-in-force", said=said(config=0.0))
    assert (found.severity, found.object) == ("error", f"pod/{WEBHOOK}")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"days": 6}, ("warning", "ends in 6.0 days")),
        ({"days": 2}, ("error", "ends in 2.0 days")),
        ({"days": -1}, ("error", "has ended")),
        ({"certificate": 0.0}, ("warning", "can't use the newest certificate")),
        ({"bundle": 0.0}, ("warning", "can't write its authority")),
    ],
)
def test_a_certificate_in_trouble(only, said, changes, told):
    found = only("certificate-in-force", said=said(**changes))
    assert found.severity == told[0]
    assert told[1] in found.seen


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (Look({}), "no part that tells it runs as a pod here"),
        (Look({WEBHOOK: PartSaid(problem="pods/proxy: not permitted (403)")}), "pods/proxy: not permitted (403)"),
        (Look(problem="pods: not permitted (403)"), "pods: not permitted (403)"),
    ],
)
def test_parts_that_can_not_be_asked(findings, said, problem):
    told = findings(said=said)
    assert told == {"blind": {"certificate-in-force": problem, "config-in-force": problem}}


def test_why_an_agent_is_not_ready_is_in_its_own_words(only, cluster, healthy):
    conditions = [{"type": "Ready", "status": "False"}]
    said = healthy().said.need() | {"tessera-system/tessera-node-n2": PartSaid(unready="gpus: NVML is missing")}
    found = only(
        "node-agent",
        pods=lambda trees: [trees[0], cluster.agent("n2", conditions=conditions), *trees[2:]],
        said=Look(said),
    )
    assert "not ready (gpus: NVML is missing)" in found.seen
