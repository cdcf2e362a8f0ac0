"""`tessera mutate` shows what admission would do, for every kind that holds pods, and never a traceback."""

import io
import json
import subprocess
import sys

import jsonpatch
import pytest
import yaml

from tessera.cli.main import main
from tessera.cli.manifests import read
from tessera.cli.mutate import Admission
from tessera.cli.templates import templates
from tessera.model.config import Config
from tessera.model.errors import RequestError
from webhook.admission.mutate import Mutator
from webhook.admission.validate import Validator

KEYS = ["kind", "name", "allowed", "message", "warnings", "patch", "request"]


def _lines(out):
    return [json.loads(line) for line in out.splitlines()]


def _pod_spec(limits):
    return {"containers": [{"name": "main", "image": "x", "resources": {"limits": limits}}]}


SLICE = _pod_spec({"tessera.dev/gpu-memory": "8Gi"})
WANTED = {"containers": {"main": {"gpus": 1, "memory": 8 << 30}}, "dialect": "tessera", "v": 1}


@pytest.mark.parametrize(
    ("kind", "manifest"),
    [
        ("Pod", {"spec": SLICE}),
        ("Deployment", {"spec": {"template": {"spec": SLICE}}}),
        ("StatefulSet", {"spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": SLICE}}}),
        ("DaemonSet", {"spec": {"template": {"spec": SLICE}}}),
        ("ReplicationController", {"spec": {"template": {"spec": SLICE}}}),
        ("Job", {"spec": {"template": {"spec": SLICE}}}),
        ("CronJob", {"spec": {"jobTemplate": {"spec": {"template": {"spec": SLICE}}}}}),
        ("PodTemplate", {"template": {"spec": SLICE}}),
        ("PyTorchJob", {"spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 3, "template": {"spec": SLICE}}}}}),
        ("Rollout", {"spec": {"template": {"spec": SLICE}}}),
        ("RayCluster", {"spec": {"headGroupSpec": {"template": {"spec": SLICE}}}}),
        ("Service", {"spec": {"template": {"spec": SLICE | {"containerConcurrency": 3}}}}),
    ],
)
def test_every_kind_with_a_pod_template(kind, manifest, mutate):
    code, out, _ = mutate(json.dumps({"apiVersion": "x/v1", "kind": kind, "metadata": {"name": "n"}} | manifest))
    (line,) = _lines(out)
    assert list(line) == KEYS
    assert (code, line["kind"], line["name"], line["allowed"], line["request"]) == (0, kind, "n", True, WANTED)


def test_several_templates_of_one_object_come_in_order(mutate):
    tasks = [
        {"name": name, "template": {"spec": _pod_spec({"tessera.dev/gpu": n})}} for n, name in ((1, "a"), (2, "b"))
    ]
    _, out, _ = mutate(json.dumps({"kind": "Job", "metadata": {"name": "v"}, "spec": {"tasks": tasks}}))
    assert [line["request"]["containers"]["main"]["gpus"] for line in _lines(out)] == [1, 2]


def test_documents_and_lists_come_in_order_and_plain_pods_too(mutate):
    plain = {"kind": "Pod", "metadata": {"name": "plain"}, "spec": {"containers": [{"name": "a"}]}}
    asking = {"kind": "Pod", "metadata": {"generateName": "asking-"}, "spec": SLICE}
    service = {"kind": "Service", "metadata": {"name": "no-pod"}, "spec": {"ports": []}}
    text = "\n---\n".join(map(json.dumps, [{"kind": "List", "items": [plain, asking]}, service, plain]))
    code, out, _ = mutate(text)
    lines = _lines(out)
    assert code == 0
    assert [(line["name"], line["request"] is not None, bool(line["patch"])) for line in lines] == [
        ("plain", False, False),
        ("asking-", True, True),
        ("plain", False, False),
    ]


def test_the_patch_applies_to_the_template_as_it_stands_in_the_file(mutate):
    manifest = {
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {"template": {"metadata": None, "spec": SLICE}},
    }
    _, out, _ = mutate(json.dumps(manifest))
    (line,) = _lines(out)
    (template,) = templates(manifest)
    pod = jsonpatch.apply_patch(template.pod, line["patch"])
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"tessera.dev/gpu-memory.256Mi": "32"}
    assert json.loads(pod["metadata"]["annotations"]["tessera.dev/request"]) == WANTED


def test_a_denial_is_code_1_and_says_container_value_and_fix(mutate):
    text = json.dumps({"kind": "Pod", "metadata": {"name": "p"}, "spec": _pod_spec({"tessera.dev/gpu-compute": 150})})
    code, out, _ = mutate(text)
    (line,) = _lines(out)
    assert (code, line["allowed"], line["patch"], line["request"]) == (1, False, [], None)
    assert all(part in line["message"] for part in ('container "main"', "150", "write 1 to 100"))
    _, _, err = mutate(text, output="yaml")
    assert "denied" in err


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metadata", {"name": "p", "annotations": {"a": 1}}),
        ("spec", {"containers": [{"name": "a", "resources": {"limits": {"x": {}}}}]}),
        ("spec", {"containers": [{"name": "a", "resources": []}]}),
        ("spec", {"containers": [{"name": 7}]}),
        ("spec", {"containers": "none"}),
        ("spec", []),
        ("spec", None),
    ],
)
def test_wrong_types_are_denied_with_their_place_not_a_traceback(mutate, field, value):
    code, out, err = mutate(json.dumps({"kind": "Pod", "metadata": {"name": "p"}, "spec": SLICE} | {field: value}))
    assert code in (0, 1)
    assert "Traceback" not in out + err
    if code == 1:
        assert "can't be read" in _lines(out)[0]["message"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("- 1\n- 2", "document 1 (line 1) is a list"),
        ("just text", "document 1 (line 1) is a single value"),
        ("kind: Pod\nkind: Pod", "document 1, line 2: the key 'kind' stands twice"),
        ("a: &a [*a]", "line 1: *'a' is not defined before it is used"),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)), "more than 500000"),
        ("x: " + "[" * 400 + "]" * 400, "nested"),
        ("1: a", "document 1 (line 1) has no kind"),
        ("kind: [Pod]", "has no kind"),
        ("a: !!python/object/apply:os.system [id]", "has no kind"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("\tkind: Pod", "not YAML"),
    ],
)
def test_what_is_no_manifest_is_code_2_and_one_line(mutate, text, message):
    code, out, err = mutate(text)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_odd_but_right_files(mutate):
    body = "kind: Pod\r\nmetadata: {name: p, creationTimestamp: 2026-01-01T00:00:00Z}\r\nspec: {containers: [{name: a}]}\r\n"
    code, out, _ = mutate(b"\xef\xbb\xbf" + body.encode())
    assert (code, _lines(out)[0]["name"]) == (0, "p")
    assert mutate("") == (0, "", "")
    assert mutate("# nothing\n---\n")[0] == 0


def test_missing_files_and_bad_configs_are_code_2(mutate, capsys, tmp_path):
    assert main(["mutate", "-f", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml can't be read" in capsys.readouterr().err
    config = tmp_path / "config.yaml"
    config.write_text("dialects: {hamy: true}")
    code, _, err = mutate("kind: Pod", "--config", str(config))
    assert code == 2
    assert "did you mean 'hami'" in err


def test_the_config_decides(mutate, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("dialects: {aliyun: {memoryUnit: MiB}}\nlimits: {team: {memory: 1Gi}}")
    text = json.dumps({"kind": "Pod", "metadata": {"name": "p"}, "spec": _pod_spec({"aliyun.com/gpu-mem": "512"})})
    _, out, _ = mutate(text, "--config", str(config))
    assert _lines(out)[0]["request"]["containers"]["main"]["memory"] == 512 << 20
    big = json.dumps({"kind": "Pod", "metadata": {"name": "p"}, "spec": SLICE})
    code, out, _ = mutate(big, "--config", str(config), "--namespace", "team")
    assert code == 1
    assert "allows 1Gi" in _lines(out)[0]["message"]


def test_standard_input(monkeypatch, capsys):
    body = json.dumps({"kind": "Pod", "metadata": {"name": "p"}, "spec": SLICE}).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(body)))
    assert main(["mutate", "-f", "-", "-o", "json"]) == 0
    assert _lines(capsys.readouterr().out)[0]["request"] == WANTED


def test_mutate_loads_no_client_and_no_server():
    program = "import sys; from tessera.cli.main import main; main(['mutate', '-f', '/dev/null']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "webhook.admission.mutate" in loaded
    assert not loaded & {"kubernetes", "aiohttp", "numpy", "grpc", "rich"}


def test_help_and_mistakes(capsys):
    for arguments, code in ((["--help"], 0), (["mutate", "--help"], 0), (["nothing"], 2), ([], 2), (["mutate"], 2)):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == code
    assert "inspect" in capsys.readouterr().out


# What a cluster would see, and what it would then say.


def test_every_template_of_the_wrong_shape_has_its_line(lines):
    found = lines(
        {"kind": "Deployment", "metadata": {"name": "a"}, "spec": {}},
        {
            "kind": "Deployment",
            "metadata": {"name": "b"},
            "spec": {"template": {"spec": {"containers": {"name": "x"}}}},
        },
        {"kind": "Deployment", "metadata": {"name": "c"}, "spec": {"template": {"spec": _pod_spec({}) | {"x": None}}}},
    )
    assert [(line["name"], line["allowed"]) for line in found] == [("a", False), ("b", False), ("c", True)]
    assert "spec.template is missing" in found[0]["message"]
    assert "spec.containers is a mapping, where a list belongs" in found[1]["message"]


def test_numbers_as_texts_and_texts_as_numbers(mutate):
    text = """
kind: Pod
metadata: {name: p}
spec:
  containers:
  - name: a
    resources: {limits: {tessera.dev/gpu: "1", tessera.dev/gpu-memory: 8589934592, tessera.dev/gpu-compute: 1_0}}
"""
    code, out, _ = mutate(text)
    assert code == 0
    assert _lines(out)[0]["request"]["containers"] == {"a": {"gpus": 1, "memory": 8 << 30, "compute": 10}}


@pytest.mark.parametrize("value", ["8", "true", "y", "1e3", "1.5", "0x10", "on"])
def test_an_annotation_that_yaml_takes_for_something_else_is_what_the_api_server_refuses(mutate, value):
    code, out, _ = mutate(
        f"kind: Pod\nmetadata: {{name: p, annotations: {{tessera.dev/gpu: {value}}}}}\nspec: {{containers: []}}"
    )
    (line,) = _lines(out)
    assert (code, line["allowed"]) == (1, False)
    assert "metadata.annotations[tessera.dev/gpu] is" in line["message"]
    assert "put it in quotes" in line["message"]


@pytest.mark.parametrize("value", ["~", "'8'", "8Gi", "12:30", "2026-01-01", '"y"'])
def test_one_that_it_takes_for_a_text_is_fine(mutate, value):
    code, out, _ = mutate(
        f"kind: Pod\nmetadata: {{name: p, annotations: {{example.com/a: {value}}}}}\nspec: {{containers: []}}"
    )
    assert (code, _lines(out)[0]["patch"]) == (0, [])


def test_anchors_share_nothing_once_they_are_read(mutate):
    text = """
kind: Pod
metadata: {name: p}
spec:
  containers:
  - name: a
    resources: &r {limits: {tessera.dev/gpu-compute: 10}}
  - name: b
    resources: *r
  - name: c
    resources:
      <<: *r
      requests: {cpu: 1}
"""
    code, out, _ = mutate(text, output="yaml")
    assert code == 0
    tickets = {"tessera.dev/gpu-memory.percent": "10", "tessera.dev/gpu-compute.percent": "10"}
    found = [each["resources"] for each in yaml.safe_load(out)["spec"]["containers"]]
    assert found == [
        *[{"limits": tickets, "requests": tickets}] * 2,
        {"limits": tickets, "requests": {"cpu": 1} | tickets},
    ]


def test_a_daemon_sets_pod_is_repaired_as_its_controllers_would_be(lines):
    spec = {"hostNetwork": True, "containers": [{"name": "a"}]}
    spec["volumes"] = [{"name": "bin", "hostPath": {"path": "/opt/cni/bin", "type": "Directory"}}]
    template = {"metadata": {"labels": {"app": "terway"}}, "spec": spec}
    both = [
        {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "terway", "namespace": "kube-system"}, "spec": {"template": template}}
        for kind in ("DaemonSet", "Deployment")
    ]  # fmt: skip
    mended, other = lines(*both)
    assert mended["patch"] == [{"op": "replace", "path": "/spec/volumes/0/hostPath/type", "value": "DirectoryOrCreate"}]
    assert other["patch"] == []


def test_the_namespace_of_the_object_comes_before_the_flags(lines, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("limits: {team: {gpus: 0}}")
    pods = [{"kind": "Pod", "metadata": {"name": "p", **more}, "spec": SLICE} for more in ({}, {"namespace": "free"})]
    found = lines(*pods, config=("--config", str(config), "-n", "team"))
    assert [line["allowed"] for line in found] == [False, True]


def test_annotations_of_the_workload_itself_ask_for_nothing(lines):
    annotated = {"name": "d", "annotations": {"tessera.dev/gpu-memory": "8Gi", "other": "x"}}
    template = {"spec": {"containers": [{"name": "a"}]}}
    (line,) = lines(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": annotated, "spec": {"template": template}}
    )
    assert (line["allowed"], line["patch"], line["request"]) == (True, [], None)
    assert line["warnings"] == [
        "annotation tessera.dev/gpu-memory of the Deployment itself asks for nothing; write it on the pod template"
    ]
    template["metadata"] = {"annotations": annotated["annotations"]}
    (line,) = lines(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": annotated, "spec": {"template": template}}
    )
    assert (line["request"], line["warnings"]) == ({**WANTED, "containers": {"a": {"gpus": 1, "memory": 8 << 30}}}, [])


def test_an_argo_workflow(mutate):
    steps = [{"name": "t", "container": {"image": "x", "resources": {"limits": {"tessera.dev/gpu-memory": "8Gi"}}}}]
    manifest = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "w-"},
        "spec": {"templates": steps},
    }
    _, out, _ = mutate(json.dumps(manifest))
    assert _lines(out)[0]["request"] == WANTED
    _, out, _ = mutate(json.dumps(manifest), output="yaml")
    (template,) = yaml.safe_load(out)["spec"]["templates"]
    assert template["container"]["resources"]["limits"] == {"tessera.dev/gpu-memory.256Mi": "32"}
    assert template["schedulerName"] == "tessera-scheduler"
    assert json.loads(template["metadata"]["annotations"]["tessera.dev/request"]) == WANTED


def test_validation_has_the_last_word(tmp_path):
    class Refusing(Validator):
        def validate(self, pod):
            raise RequestError(f"{len(pod.metadata.annotations)} annotations are too many", fix="write fewer")

    path = tmp_path / "m.json"
    path.write_text(json.dumps({"kind": "Pod", "metadata": {"name": "p"}, "spec": SLICE}))
    (manifest,) = read(str(path), stdin=io.BytesIO())
    (template,) = templates(manifest.value)
    config = Config()
    admission = Admission(Mutator(config), Refusing(config), config.names)
    verdict = admission.judge(template, manifest, namespace="team")
    assert (verdict.allowed, verdict.message, verdict.patch) == (False, "1 annotations are too many; write fewer", [])
