"""Nodes that the extender leaves alone because their kubelet refused pods: told while it lasts, by its own Event."""

import json

import msgspec
import pytest

from tessera.doctor.evidence import Look
from tessera.doctor.objects import Event
from tessera.kube.clock import rfc3339

SAID = (
    "its kubelet refused 3 pods (UnexpectedAdmissionError); pods of namespace team are kept from it until 11:59:58 UTC"
)


@pytest.fixture
def event(cluster):
    def make(node="n1", *, ago=10.0, message=SAID, **more):
        tree = {
            "involvedObject": {"kind": "Node", "name": node},
            "reason": "KubeletRefuses",
            "message": message,
            "count": 3,
            "lastTimestamp": rfc3339(cluster.now.timestamp() - ago),
        }
        return msgspec.json.decode(json.dumps(tree | more), type=Event)

    return make


def test_a_node_that_refused_a_moment_ago(only, event):
    found = only("node-refusing", refusals=Look((event(),)))
    assert (found.object, found.severity) == ("node/n1", "warning")
    assert found.seen == f"{SAID} (told 10 s ago)"
    assert "agent" in found.mend


def test_of_several_the_last_word_counts(only, event):
    events = (event(ago=40, message="older"), event(ago=5, message="newest"), event(ago=20, message="old"))
    assert only("node-refusing", refusals=Look(events)).seen == "newest (told 5 s ago)"


def test_what_is_over_is_no_finding(findings, event):
    assert findings(refusals=Look((event(ago=91),))) == {}
    assert findings(refusals=Look((event(lastTimestamp="yesterday"),))) == {}
    assert findings(refusals=Look((event(lastTimestamp=None),))) == {}


def test_without_the_right_to_read_events_the_check_is_blind(findings):
    problem = "events default: not permitted (403)"
    assert findings(refusals=Look(problem=problem)) == {"blind": {"node-refusing": problem}}
