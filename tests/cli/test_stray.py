"""Slips of the pen under our domain, which the API server takes and no node ever has."""

import json

import pytest


def pod(limits=None, annotations=None, **more):
    container = {"name": "main", "resources": {"limits": limits or {}}}
    return {
        "kind": "Pod",
        "metadata": {"name": "p", "annotations": annotations or {}},
        "spec": {"containers": [container], **more},
    }


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"limits": {"tessera.dev/gpu-mem": "8Gi"}},
         "container \"main\": tessera.dev/gpu-mem is no resource of Tessera's; did you mean 'gpu-memory'?"),
        ({"limits": {"tessera.dev/gpu-memory.512Mi": "8"}}, "did you mean 'gpu-memory.256Mi'?"),
        ({"limits": {"tessera.dev/gpu-models": "1"}}, "tessera.dev/gpu-models is no resource of Tessera's"),
        ({"limits": {"tessera.dev/gpu": 1}, "annotations": {"tessera.dev/gpu-placment": "spread"}},
         "tessera.dev/gpu-placment is no annotation of Tessera's; did you mean 'gpu-placement'?"),
        ({"limits": {"tessera.dev/gpu": 1}, "annotations": {"tessera.dev/gpu-model": "A10"}},
         "tessera.dev/gpu-model is no annotation of Tessera's; did you mean 'gpu-models'?"),
        ({"limits": {}, "initContainers": [{"name": "i", "resources": {"requests": {"tessera.dev/gpus": 1}}}]},
         "container \"i\": tessera.dev/gpus is no resource of Tessera's; did you mean 'gpu'?"),
    ],
)  # fmt: skip
def test_a_slip_is_told_with_the_nearest_name(lines, written, said):
    (line,) = lines(pod(**written))
    if not line["allowed"]:
        assert "512Mi" in line["message"]
        return
    assert any(said in warning for warning in line["warnings"]), line["warnings"]


@pytest.mark.parametrize(
    "written",
    [
        {"limits": {"tessera.dev/gpu": 1, "tessera.dev/gpu-compute": 30, "cpu": 1}},
        {"limits": {"tessera.dev/gpu-memory.256Mi": 4, "tessera.dev/mig-1g.10gb": 1}},
        {"limits": {"tessera.device/gpu-mem": 1, "nvidia.com/gpumem": 300}},
        {
            "limits": {"tessera.dev/gpu": 1},
            "annotations": {"tessera.dev/gpu-topology": "any", "tessera.dev/gpu-avoid-class": "a", "x/y": "z"},
        },
    ],
)
def test_right_names_and_others_names_are_no_slip(lines, written):
    (line,) = lines(pod(**written))
    assert not any("of Tessera's" in warning for warning in line["warnings"])


def test_many_slips_and_long_ones_stay_readable(lines):
    (line,) = lines(pod({f"tessera.dev/{'x' * 5000}{n}": 1 for n in range(100)}))
    assert 1 <= len(line["warnings"]) <= 10
    assert all(len(warning) < 500 for warning in line["warnings"])


def test_what_is_left_alone_is_said_where_people_read(mutate):
    for limits, hint in (({"cpu": 1}, False), ({"nvidia.com/gpu": 1}, True)):
        code, out, err = mutate(json.dumps(pod(limits)), output="diff")
        assert (code, out) == (0, "")
        assert "Pod p: asks for no GPU of Tessera's; left as it is" in err
        assert ("dialects: {nvidia: {whole: true}}" in err) == hint
    for output in ("json", "patch", "yaml"):
        assert mutate(json.dumps(pod({"cpu": 1})), output=output)[2] == ""


def test_a_file_without_pods_says_so(mutate):
    code, out, err = mutate("kind: ConfigMap\nmetadata: {name: c}\n", output="diff")
    assert (code, out) == (0, "")
    assert err == "tessera mutate: no pod and no pod template in what was read\n"
