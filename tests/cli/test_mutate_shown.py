"""What `tessera mutate` writes: whole objects, diffs and patches; nothing that hurts a terminal or floods it."""

import json
import sys

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.cli.main import main

KEYS = ["kind", "name", "allowed", "message", "warnings", "patch", "request"]
SLICE = {"containers": [{"name": "main", "image": "x", "resources": {"limits": {"tessera.dev/gpu-memory": "8Gi"}}}]}
HALF = {"containers": [{"name": "main", "image": "x", "resources": {"limits": {"tessera.dev/gpu": "0.5"}}}]}
DENIED = {"kind": "Pod", "metadata": {"name": "no"}, "spec": HALF}
FINE = {"kind": "Pod", "metadata": {"name": "yes"}, "spec": SLICE}
PLAIN = {"kind": "ConfigMap", "metadata": {"name": "plain"}, "data": {"a": "b"}}


def _lines(out):
    return [json.loads(line) for line in out.splitlines()]


def test_yaml_shows_whole_objects_and_leaves_others_as_they_are(mutate):
    manifest = {"kind": "CronJob", "metadata": {"name": "c"}, "spec": {
        "schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": SLICE | {"odd": {"x": [1]}}}}}}}  # fmt: skip
    other = {"kind": "ConfigMap", "data": {"yes": "2026-01-01", "no": "0x1"}}
    _, out, _ = mutate("\n---\n".join(map(json.dumps, [manifest, other])), output="yaml")
    changed, same = yaml.safe_load_all(out)
    spec = changed["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert spec["odd"] == {"x": [1]}
    assert spec["containers"][0]["resources"]["requests"] == {"tessera.dev/gpu-memory.256Mi": "32"}
    assert same == other


def test_diff_and_patch(mutate):
    text = json.dumps({"kind": "Pod", "metadata": {"name": "p"}, "spec": SLICE})
    _, out, _ = mutate(text, output="diff")
    assert "-        tessera.dev/gpu-memory: 8Gi" in out
    assert "+        tessera.dev/gpu-memory.256Mi: '32'" in out
    assert "\x1b" not in out
    _, out, _ = mutate(text, output="patch")
    assert {op["op"] for op in json.loads(out)} <= {"add", "remove", "replace"}


def test_what_is_denied_is_not_piped_on(mutate):
    code, out, err = mutate("\n---\n".join(map(json.dumps, [PLAIN, DENIED, FINE])), output="yaml")
    assert code == 1
    assert [each["metadata"]["name"] for each in yaml.safe_load_all(out)] == ["plain", "yes"]
    assert err == (
        'Pod no: denied: container "main": tessera.dev/gpu: 0.5 is not a whole number; write whole GPUs; '
        "a share is tessera.dev/gpu-compute or tessera.dev/gpu-memory\n"
    )


def test_one_denied_template_keeps_the_object_back(mutate):
    tasks = [{"template": {"spec": each["spec"]}} for each in (FINE, DENIED)]
    volcano = {
        "apiVersion": "batch.volcano.sh/v1alpha1",
        "kind": "Job",
        "metadata": {"name": "v"},
        "spec": {"tasks": tasks},
    }
    code, out, err = mutate(json.dumps(volcano), output="yaml")
    assert (code, out) == (1, "")
    assert err.startswith("Job v spec.tasks[1].template: denied: ")


def test_what_is_written_needs_nothing_more(mutate):
    """The output of one pass is the input of a second, which finds nothing to do."""
    manifests = [
        FINE,
        PLAIN,
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "d"},
            "spec": {"template": {"spec": SLICE}},
        },
    ]
    _, out, _ = mutate("\n---\n".join(map(json.dumps, manifests)), output="yaml")
    code, again, _ = mutate(out, output="yaml")
    assert (code, again) == (0, out)
    code, shown, said = mutate(out, output="diff")
    assert (code, shown) == (0, "")
    assert "Deployment d spec.template: has its tickets already; left as it is" in said
    assert [line["patch"] for line in _lines(mutate(out)[1])] == [[], []]


def test_patches_come_one_after_the_other_in_the_order_of_templates(mutate):
    _, out, err = mutate("\n---\n".join(map(json.dumps, [FINE, PLAIN, DENIED, FINE])), output="patch")
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(out):
        patch, at = decoder.raw_decode(out, at)
        found.append(bool(patch))
        at += 1
    assert found == [True, False, True]
    assert "denied" in err


def test_a_diff_has_colours_on_a_terminal_only(mutate, monkeypatch):
    text = json.dumps(FINE)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout.__class__, "isatty", lambda _: True)
    assert "\x1b[32m+" in mutate(text, output="diff")[1]
    assert "\x1b" not in mutate(text, "--no-color", output="diff")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in mutate(text, output="diff")[1]


def test_what_a_manifest_holds_does_not_steer_the_terminal(mutate):
    evil = "\x1b]0;owned\x07\x9b31m\u202e\r\nfake line"
    manifest = {
        "kind": "Pod",
        "metadata": {"name": evil},
        "spec": {"containers": [{"name": evil, "resources": {"limits": {"tessera.dev/gpu": "x"}}}]},
    }
    for output in ("diff", "yaml", "patch", "json"):
        _, out, err = mutate(json.dumps(manifest), output=output)
        assert not set("\x1b\x07\x9b\u202e\r") & set(out + err)
        assert err.count("\n") == (output != "json")


def test_the_worst_is_the_exit_code_and_what_can_be_read_is_answered(mutate, tmp_path, capsys):
    text = json.dumps(FINE) + "\n---\nkind: Pod\nkind: Pod\n---\n" + json.dumps(DENIED)
    code, out, err = mutate(text)
    assert code == 2
    assert [line["name"] for line in _lines(out)] == ["yes", "no"]
    assert "document 2, line 4: the key 'kind' stands twice" in err
    good = tmp_path / "good.yaml"
    good.write_text(json.dumps(FINE))
    assert main(["mutate", "-o", "json", "-f", str(tmp_path / "absent"), str(good), "-f", str(good)]) == 2
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_standard_input_is_named_once(capsys):
    assert main(["mutate", "-f", "-", "-f", "-"]) == 2
    assert "can be read once" in capsys.readouterr().err


def test_a_file_of_many_objects_is_read_in_full(mutate):
    pods = "\n---\n".join(yaml.safe_dump(FINE | {"metadata": {"name": f"p{n}"}}) for n in range(1000))
    code, out, _ = mutate(pods)
    assert (code, out.count("\n")) == (0, 1000)


LONG = "x" * 5000
GREEDY = {"limits": {"tessera.dev/gpu": "0.5"}}


@pytest.mark.parametrize(
    "manifest",
    [
        {"kind": "Pod", "metadata": {"name": LONG}, "spec": HALF},
        {"kind": "Pod", "metadata": {"name": LONG}, "spec": {"containers": [{"name": "plain"}]}},
        {"kind": LONG, "spec": {"template": {"spec": HALF}}},
        {"kind": "Pod", "spec": {"containers": [{"name": LONG, "resources": GREEDY}]}},
        {"kind": "Pod", "spec": {"containers": [{"name": "x " * 2500, "resources": GREEDY}]}},
        {"kind": "Pod", "spec": {"containers": [{"name": "a", "resources": {"limits": {f"tessera.dev/{LONG}": 1}}}]}},
        {"kind": "Odd", "spec": {LONG: {LONG: {"template": {"spec": HALF}}}}},
        {"kind": "Deployment", "apiVersion": "apps/v1", "spec": {"template": LONG}},
    ],
)
def test_what_is_long_is_cut_with_a_mark(mutate, manifest):
    _, _, err = mutate(json.dumps(manifest), output="diff")
    assert "…" in err
    assert max(map(len, err.splitlines())) < 2200
    assert "x" * 400 not in err


def test_a_file_that_is_not_there_is_named_in_short(capsys):
    assert main(["mutate", "-f", LONG]) == 2
    err = capsys.readouterr().err
    assert len(err) < 400
    assert "… can't be read" in err


HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["8Gi", "x", "\x00\x1b", "Always", "1"]),
    lambda below: st.lists(below, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["spec", "metadata", "template", "templates", "containers", "initContainers", "container", "containerSet", "sidecars",
             "resources", "limits", "requests", "name", "annotations", "labels", "tessera.dev/gpu", "nodeSelector", "items", "env"]
        ),
        below,
        max_size=4,
    ),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["Pod", "Deployment", "CronJob", "List", "PodList", "Workflow", "X"]),
    version=st.sampled_from(["v1", "apps/v1", "argoproj.io/v1alpha1", None, 7]),
    body=st.dictionaries(st.sampled_from(["spec", "metadata", "items", "template"]), HOSTILE, max_size=4),
    output=st.sampled_from(["json", "yaml", "diff", "patch"]),
)
def test_whatever_an_object_holds_ends_in_a_code_and_never_in_a_traceback(mutate, kind, version, body, output):
    code, out, err = mutate(json.dumps({"apiVersion": version, "kind": kind} | body), output=output)
    assert code in (0, 1, 2), err
    assert "mistake" not in err
    if output == "json":
        assert all(list(line) == KEYS for line in _lines(out))
        assert all(line["allowed"] or line["message"] for line in _lines(out))
