"""Pods that wait, that nobody translated, that drifted; quotas on names that no longer count."""

import dataclasses

import pytest

from tessera.doctor.check import Check, Seen, examine
from tessera.doctor.checks import CHECKS
from tessera.doctor.evidence import Look
from tessera.doctor.finding import MOST_FINDINGS, Finding, Severity
from tessera.model.names import names

A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
M, P, C = names().tickets


def more(*pods):
    return lambda trees: [*trees, *pods]


def test_pods_that_wait_are_told_by_reason(only, cluster):
    big = [cluster.pod(f"big-{at}", {M: "88"}, age=600 + at) for at in range(7)]
    full = [cluster.pod(f"fill-{node}-{gpu}", {M: "80"}, {"main": (cluster.slice(gpu, 80),)}, node=node)
            for node in ("n1", "n2") for gpu in (A, B)]  # fmt: skip
    found = only("pod-waiting", pods=lambda trees: [*trees[:3], *big, *full])
    assert "7 pods (team/big-0, team/big-1, team/big-2, team/big-3, team/big-4 and 2 more) wait" in found.seen
    assert "2 nodes: needs 88 units (22 GiB), best GPU has 10 (2.5 GiB)" in found.seen
    assert found.object == "pod/team/big-6"


def test_a_pod_that_would_fit_shows_what_the_scheduler_says(only, cluster):
    said = [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available: 2 Insufficient cpu."}]
    found = only("pod-waiting", pods=more(cluster.pod("cpu", {M: "1"}, conditions=said)))
    assert (
        "room on 2 nodes by GPUs alone; the scheduler says: 0/2 nodes are available: 2 Insufficient cpu." in found.seen
    )


def test_a_pod_that_has_just_come_is_no_finding(findings, cluster):
    assert findings(pods=more(cluster.pod("new", {M: "9999"}, age=5))) == {}


def test_a_pod_that_was_made_by_nobody_knows_when_is_no_finding(findings, cluster):
    pod = cluster.pod("odd", {M: "9999"})
    pod["metadata"]["creationTimestamp"] = "yesterday"
    assert findings(pods=more(pod)) == {}


@pytest.mark.parametrize(
    ("limits", "dialect"),
    [({"nvidia.com/gpumem": "3000", "nvidia.com/gpu": "1"}, "hami"), ({"tessera.dev/gpu-memory": "8Gi"}, "tessera")],
)
def test_pods_that_admission_never_saw(findings, cluster, limits, dialect):
    told = findings(pods=more(cluster.pod("old", limits)))
    assert list(told) == ["pod-untranslated"]
    assert f"as {dialect} does" in told["pod-untranslated"][0].seen


def test_requests_that_nobody_can_mean_are_left_to_admission(findings, cluster):
    assert findings(pods=more(cluster.pod("odd", {"tessera.dev/gpu-memory": "-1"}))) == {}


def test_a_pod_with_other_gpus_than_planned(only, cluster):
    drift = cluster.drift({"uid-one": {"main": (cluster.slice(B),)}})
    found = only("pod-drift", nodes=lambda t: [cluster.node("n1", annotations={cluster.names.drift: drift}), t[1]])
    assert "main on bbbbbbbbbbbb instead of main on aaaaaaaaaaaa" in found.seen


def test_a_pod_without_a_plan(only, cluster):
    drift = cluster.drift({"uid-static": {"main": (cluster.slice(B),)}})
    found = only(
        "pod-drift",
        nodes=lambda t: [cluster.node("n1", annotations={cluster.names.drift: drift}), t[1]],
        pods=more(cluster.pod("static", {M: "10"}, node="n1")),
    )
    assert found.object == "pod/team/static"
    assert "has no plan" in found.seen


def test_a_pod_of_which_nobody_says_where_it_is(only, cluster):
    found = only("pod-drift", pods=more(cluster.pod("lost", {M: "10"}, node="n1")))
    assert "does not say where it is" in found.seen


@pytest.mark.parametrize("text", ["{", '{"v":9}', "\x1b[2J", '{"v":1,"node":"n2","guarantee":{},"containers":{}}'])
def test_forged_plans_count_as_none(only, cluster, text):
    pod = cluster.pod("forged", {M: "10"}, node="n1", annotations={cluster.names.plan: text})
    assert "without a plan of its own" in only("pod-drift", pods=more(pod)).seen


def test_drift_of_a_pod_that_is_gone(only, cluster):
    drift = cluster.drift({"uid-gone": {"main": (cluster.slice(B),)}})
    found = only("pod-drift", nodes=lambda t: [cluster.node("n1", annotations={cluster.names.drift: drift}), t[1]])
    assert "whose object is gone, uid-gone" in found.seen


@pytest.mark.parametrize(
    ("hard", "bounded"),
    [
        ({"requests.nvidia.com/gpumem": "9"}, True),
        ({"requests.aliyun.com/gpu-mem": "9"}, True),
        ({"limits.tessera.dev/gpu-memory": "9Gi"}, True),
        ({f"requests.{P}": "400", f"requests.{C}": "400", "pods": "9", "requests.cpu": "9"}, False),
        ({"requests.huawei.com/Ascend910": "1"}, False),
        ({"requests.nvidia.com/gpu": "1", "requests.nvidia.com/mig-1g.5gb": "1"}, False),
    ],
)
def test_quotas(findings, hard, bounded):
    told = findings(quotas=[{"metadata": {"name": "q", "namespace": "team"}, "spec": {"hard": hard}}])
    assert list(told) == (["quota-foreign"] if bounded else [])


@pytest.mark.parametrize(
    ("config", "resource", "bounded"),
    [
        ("nvidia: {whole: true}", "nvidia.com/gpu", True),
        ("nvidia: {mig: true}", "nvidia.com/mig-1g.5gb", True),
        ("nvidia: {mig: true}", "nvidia.com/gpu", False),
        ("nvidia: false", "nvidia.com/gpu", False),
        ("hami: false", "nvidia.com/gpumem", False),
    ],
)
def test_quotas_on_names_that_the_config_takes_over(findings, config, resource, bounded):
    quota = {"metadata": {"name": "q", "namespace": "team"}, "spec": {"hard": {f"requests.{resource}": "9"}}}
    told = findings(config=f"deviceInjection: cdi\ndialects: {{{config}}}\n", quotas=[quota])
    assert list(told) == (["quota-foreign"] if bounded else [])


def test_a_quota_on_plain_gpus_where_pods_speak_hami(findings, cluster):
    request = '{"containers":{"main":{"gpus":1,"memory":268435456}},"dialect":"hami","v":1}'
    pod = cluster.pod("hami", {M: "1"}, {"main": (cluster.slice(units=1),)}, node="n1",
                      annotations={"tessera.dev/request": request})  # fmt: skip
    quota = {"metadata": {"name": "q", "namespace": "team"}, "spec": {"hard": {"requests.nvidia.com/gpu": "9"}}}
    assert list(findings(pods=more(pod), quotas=[quota])) == ["quota-foreign"]
    elsewhere = quota | {"metadata": {"name": "q", "namespace": "default"}}
    assert findings(pods=more(pod), quotas=[elsewhere]) == {}


def test_a_check_that_fails_hides_no_other(healthy):
    def broken(_):
        raise KeyError("what nobody thought of")

    found = examine((Check("broken", "fails", broken), *CHECKS), healthy())
    assert found.checks[0].result == "blind"
    assert "KeyError" in found.checks[0].problem
    assert found.blind == 1
    assert found.errors == found.warnings == 0


def test_no_check_drowns_the_others(healthy):
    one = Finding(severity=Severity.WARNING, object="o", seen="s", why="w", mend="m")
    worst = Finding(severity=Severity.ERROR, object="worst", seen="s", why="w", mend="m")
    found = examine((Check("many", "many", lambda _: Seen([one] * 500 + [worst], "501")),), healthy())
    assert len(found.checks[0].findings) == MOST_FINDINGS
    assert found.checks[0].findings[0].object == "worst"
    assert (found.checks[0].errors, found.checks[0].warnings) == (1, 500)
    assert (found.errors, found.warnings) == (1, 500)


def test_exit_codes(healthy):
    def code(result, *, blind=False, strict=False):
        findings = [Finding(severity=Severity(result), object="o", seen="s", why="w", mend="m")] if result else []
        checks = [Check("one", "one", lambda _: Seen(findings, "")), Check("two", "two", lambda e: _look(e, blind))]
        return examine(checks, healthy()).code(strict=strict)

    def _look(evidence, blind):
        if blind:
            dataclasses.replace(evidence, nodes=Look(problem="403")).nodes.need()
        return Seen((), "")

    assert [code(None), code("warning"), code("error")] == [0, 1, 2]
    assert [code(None, blind=True), code(None, blind=True, strict=True), code("warning", blind=True)] == [0, 3, 1]
    blind = examine([Check("one", "one", lambda e: _look(e, True))], healthy())
    assert blind.code() == 3


def test_every_check_has_an_id_of_its_own():
    ids = [check.id for check in CHECKS]
    assert len(set(ids)) == len(ids)
