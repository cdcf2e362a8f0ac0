"""kube-scheduler's configuration and version, and the schedulers that pods name."""

import pytest
import yaml

from tessera.doctor.evidence import Look
from tessera.doctor.objects import Version
from tessera.model.names import names

N = names()


def scheduler(edit):
    """Change the scheduler's configuration in its ConfigMap."""

    def change(trees):
        tree = yaml.safe_load(trees[1]["data"]["scheduler.yaml"])
        edit(tree)
        return [trees[0], trees[1] | {"data": {"scheduler.yaml": yaml.safe_dump(tree)}}]

    return change


def _managed(tree):
    return tree["extenders"][0]["managedResources"]


@pytest.mark.parametrize(
    ("edit", "said", "severity"),
    [
        (lambda t: t.pop("percentageOfNodesToScore"), "percentageOfNodesToScore is not set", "warning"),
        (lambda t: t.update(percentageOfNodesToScore=0), "percentageOfNodesToScore is 0", "warning"),
        (lambda t: t["profiles"][0].update(percentageOfNodesToScore=5), "percentageOfNodesToScore is 5", "warning"),
        (lambda t: t["extenders"][0].update(ignorable=True), "ignorable is true", "error"),
        (lambda t: t["extenders"][0].pop("nodeCacheCapable"), "nodeCacheCapable is not true", "warning"),
        (lambda t: t["extenders"][0].pop("bindVerb"), "bindVerb is not set", "error"),
        (lambda t: _managed(t).pop(0), "managedResources lacks tessera.dev/gpu-memory.256Mi", "error"),
        (lambda t: _managed(t)[0].pop("ignoredByScheduler"), "ignoredByScheduler is not true", "error"),
        (lambda t: t.update(extenders=[]), "no extender manages a ticket", "error"),
        (lambda t: t.update(extenders="x"), "no extender manages a ticket", "error"),
    ],
)
def test_a_configuration_that_is_not_as_generated(only, edit, said, severity):
    found = only("scheduler-config", config_maps=scheduler(edit))
    assert said in found.seen
    assert found.severity == severity


def test_a_profile_that_nobody_asks_for(findings):
    told = findings(config_maps=scheduler(lambda t: t["profiles"][0].update(schedulerName="other")))
    assert "no profile is named tessera-scheduler" in told["scheduler-config"][0].seen


def test_mig_profiles_of_nodes_have_to_be_managed(only, cluster):
    mig = N.mig("9g.999gb+me")
    told = only("scheduler-config", nodes=lambda trees: [trees[0], cluster.node("n2", allocatable={mig: "2"})])
    assert f"managedResources lacks {mig}" in told.seen


EVERY_POD = "deviceInjection: cdi\nplacement: {cpuPods: score}\n"


def test_a_scheduler_that_sends_every_pod_is_as_generated(findings):
    assert "scheduler-config" not in findings(config=EVERY_POD)


@pytest.mark.parametrize(
    ("edit", "said", "severity"),
    [
        (lambda t: t["extenders"].pop(), "no extender is for every pod, though placement.cpuPods is score", "warning"),
        (lambda t: t["extenders"][1].update(ignorable=False), "not ignorable, or binds", "error"),
        (lambda t: t["extenders"][1].update(bindVerb="bind"), "not ignorable, or binds", "error"),
        (lambda t: t["extenders"].pop(0), "no extender manages a ticket", "error"),
    ],
)
def test_a_scheduler_that_is_to_send_every_pod_and_does_not_or_keeps_all_waiting(findings, edit, said, severity):
    told = findings(config=EVERY_POD, config_maps=scheduler(edit))
    assert [each.severity for each in told["scheduler-config"] if said in each.seen] == [severity]


@pytest.mark.parametrize("text", ["kind: KubeSchedulerConfiguration\n  bad: [", "KubeSchedulerConfiguration", "", "[]"])
def test_no_configuration_to_be_seen(findings, text):
    told = findings(config_maps=lambda trees: [trees[0], trees[1] | {"data": {"scheduler.yaml": text}}])
    assert list(told) == ["blind"]
    assert "KubeSchedulerConfiguration" in told["blind"]["scheduler-config"]


@pytest.mark.parametrize(
    ("image", "severity"),
    [
        ("registry:5000/kube-scheduler:v1.35.0", "error"),
        ("kube-scheduler-amd64:1.32.1", "warning"),
        ("kube-scheduler:v1.33.9@sha256:ab", None),
    ],
)
def test_versions(findings, cluster, image, severity):
    def change(trees):
        return [*trees[:2], cluster.pod("sched", namespace="kube-system", node="cp", image=image), *trees[3:]]

    told = findings(pods=change)
    assert [each.severity for each in told.get("scheduler-version", ())] == ([severity] if severity else [])


def test_no_version_to_be_seen(findings):
    assert list(findings(pods=lambda trees: trees[:2])["blind"]) == ["scheduler-version"]


def test_an_old_api_server(findings):
    told = findings(version=Look(Version(major="1", minor="33+", git_version="v1.33.4-gke.1")))
    assert told["api-version"][0].severity == "error"
    assert "v1.33.4-gke.1" in told["api-version"][0].seen


@pytest.mark.parametrize("minor", ["", "x", "999999999999"])
def test_a_version_that_names_nothing(findings, minor):
    assert "api-version" not in findings(version=Look(Version(major="1", minor=minor)))


@pytest.mark.parametrize("name", ["hami-scheduler", "default-scheduler", ""])
def test_pods_of_other_schedulers(findings, cluster, name):
    def change(trees):
        return [*trees, cluster.pod("other", {N.memory_units: "1"}, scheduler=name, age=5)]

    told = findings(pods=change)
    assert list(told) == ["scheduler-foreign"]
    assert (name or "default-scheduler") in told["scheduler-foreign"][0].seen
    assert "1 of them waiting" in told["scheduler-foreign"][0].seen
