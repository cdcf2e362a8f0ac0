"""Policies: there, bound, current; exempt namespaces without GPU pods."""

import copy

import pytest

from tessera.doctor.evidence import Look


def changed(edit):
    """Change the first object of a list."""

    def change(trees):
        first = copy.deepcopy(trees[0])
        edit(first)
        return [first, *trees[1:]]

    return change


def test_what_the_api_server_adds_is_no_difference(findings):
    def add(policy):
        policy["spec"]["variables"] = policy["spec"].get("variables", [])
        policy["spec"]["matchConstraints"]["matchPolicy"] = "Equivalent"
        policy["spec"]["matchConstraints"].setdefault("objectSelector", {})

    assert findings(policies=changed(add)) == {}


def test_an_expression_that_was_changed(only):
    def weaken(policy):
        policy["spec"]["validations"][0]["expression"] = "true"

    found = only("policies-in-force", policies=changed(weaken))
    assert "spec.validations[0].expression differs" in found.seen
    assert found.severity == "error"


def test_a_validation_that_was_taken_away(only):
    assert (
        "spec.validations differs"
        in only("policies-in-force", policies=changed(lambda p: p["spec"]["validations"].clear())).seen
    )


def test_missing_policies_are_told_in_one_finding(findings):
    told = findings(policies=[], bindings=[])
    assert len(told["policies-in-force"]) == 1
    assert "missing" in told["policies-in-force"][0].seen


@pytest.mark.parametrize("actions", [["Audit"], ["Warn"], [], "Deny"])
def test_a_binding_that_does_not_deny(findings, actions):
    told = findings(bindings=changed(lambda b: b["spec"].update(validationActions=actions)))
    assert any("does not deny" in each.seen for each in told["policies-in-force"])


WARN = "deviceInjection: cdi\nguard: {actions: warn}\n"


def test_a_soft_start_is_a_warning(only):
    found = only("policies-in-force", config=WARN)
    assert found.severity == "warning"
    assert "warns only, as guard.actions: warn says" in found.seen
    assert "tessera-host-paths" in found.seen


def test_a_soft_start_leaves_what_guards_our_own_names_strict(findings):
    def soften(bindings):
        return [{**each, "spec": {**each["spec"], "validationActions": ["Warn", "Audit"]}} for each in bindings]

    told = findings(config=WARN, bindings=soften)["policies-in-force"]
    errors = {each.object.rpartition("/")[2] for each in told if each.severity == "error"}
    assert errors == {"tessera-pod-annotations", "tessera-bindings", "tessera-nodes", "tessera-agents"}


def test_a_soft_start_needs_bindings_too(findings):
    told = findings(config=WARN, bindings=[])["policies-in-force"]
    assert any(each.severity == "error" and "missing" in each.seen for each in told)
    assert any(each.severity == "error" and each.seen == "no binding" for each in told)


def test_a_policy_that_fails_open(findings):
    told = findings(policies=changed(lambda p: p["spec"].update(failurePolicy="Ignore")))
    assert any(each.seen == "failurePolicy is Ignore" for each in told["policies-in-force"])


def test_what_the_api_server_warns_of(only):
    warning = {"fieldRef": "spec.validations[0].expression", "warning": "undefined field 'foo'"}
    found = only(
        "policies-in-force",
        policies=changed(lambda p: p.update(status={"typeChecking": {"expressionWarnings": [warning]}})),
    )
    assert "undefined field 'foo'" in found.seen


def test_gpu_pods_where_policies_do_not_look(only, cluster):
    pods = [cluster.agent("n1"), cluster.agent("n2"),
            cluster.pod("sched", namespace="tessera-system", node="cp", image="kube-scheduler:v1.34.4"),
            cluster.pod("evil", {cluster.names.memory_units: "10"}, {"main": (cluster.slice(),)}, node="n1",
                        namespace="kube-system")]  # fmt: skip
    found = only("policies-bypassed", pods=pods)
    assert found.object == "namespace/kube-system"
    assert "evil" in found.seen


@pytest.mark.parametrize(
    "spec", [{}, {"validations": "x", "matchConstraints": []}, {"matchConstraints": {"namespaceSelector": 7}}]
)
def test_objects_of_another_form_end_in_findings(findings, spec):
    told = findings(policies=changed(lambda p: p.update(spec=spec)))
    assert "blind" not in told
    assert told["policies-in-force"]


def test_what_can_not_be_looked_at_is_said(findings):
    told = findings(policies=Look(problem="validatingadmissionpolicies: not there (404)"))
    assert told == {"blind": {"policies-in-force": "validatingadmissionpolicies: not there (404)"}}
