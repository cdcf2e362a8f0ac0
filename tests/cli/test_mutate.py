"""`tessera mutate` shows what admission would do, for every kind that holds pods, and never a traceback."""

import io
import json
import subprocess
import sys
from pathlib import Path

import jsonpatch
import pytest
import yaml

from tessera.cli.main import main
from tessera.cli.templates import templates

EXAMPLES = Path(__file__).parents[2] / "examples"
KEYS = ["kind", "name", "allowed", "message", "warnings", "patch", "request"]


@pytest.fixture
def mutate(tmp_path, capsys):
    """Run the command on a text; returns exit code, standard output, standard error."""

    def call(text, *more, output="json"):
        path = tmp_path / "manifest.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        code = main(["mutate", "-f", str(path), "-o", output, *more])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def _lines(out):
    return [json.loads(line) for line in out.splitlines()]


def _pod_spec(limits):
    return {"containers": [{"name": "main", "image": "x", "resources": {"limits": limits}}]}


SLICE = _pod_spec({"tessera.dev/gpu-memory": "8Gi"})
WANTED = {"containers": {"main": {"gpus": 1, "memory": 8 << 30}}, "dialect": "tessera", "v": 1}


@pytest.mark.parametrize(
    ("example", "requests"),
    [
        ("native-slice", {"main": {"gpus": 1, "memory": 8 << 30, "compute": 30}}),
        ("native-whole", {"main": {"gpus": 1, "whole": True}}),
        ("native-percent", {"main": {"gpus": 1, "memoryPercent": 25}}),
        (
            "native-two-containers",
            {"cache": {"gpus": 1, "memory": 2 << 30}, "server": {"gpus": 1, "memory": 10 << 30, "compute": 20}},
        ),
        ("native-annotations", {"worker": {"gpus": 1, "memory": 4 << 30}}),
        ("hami", {"main": {"gpus": 1, "memory": 3000 << 20, "compute": 30}}),
        ("aliyun", {"main": {"gpus": 1, "memory": 3 << 30}}),
        ("deployment", {"main": {"gpus": 1, "memoryPercent": 10, "compute": 10}}),
    ],
)
def test_the_examples_ask_for_what_they_say(example, requests, mutate):
    code, out, _ = mutate((EXAMPLES / f"{example}.yaml").read_text())
    (line,) = _lines(out)
    assert code == 0
    assert list(line) == KEYS
    assert line["allowed"]
    assert line["request"]["containers"] == requests


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
    assert (code, line["kind"], line["name"], line["request"]) == (0, kind, "n", WANTED)


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
    for arguments, code in ((["--help"], 0), (["mutate", "--help"], 0), (["nothing"], 2), ([], 2)):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == code
    assert "inspect" in capsys.readouterr().out
