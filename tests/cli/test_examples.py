"""The example manifests ask for what their comments say, and a demo node of eight 80 GB cards holds each of them."""

import json
from pathlib import Path

import pytest
import yaml

from tessera.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"
GI = 1 << 30

WANTED = {
    "aliyun.yaml": [("aliyun", {"main": {"gpus": 1, "memory": 3 * GI}})],
    "aliyun-two-cards.yaml": [("aliyun", {"main": {"gpus": 2, "memory": 4 * GI}})],
    "cronjob.yaml": [("tessera", {"report": {"gpus": 1, "memory": 2 * GI}})],
    "deployment.yaml": [("tessera", {"main": {"gpus": 1, "memoryPercent": 10, "compute": 10}})],
    "hami.yaml": [("hami", {"main": {"gpus": 1, "memory": 3000 << 20, "compute": 30}})],
    "hami-percent.yaml": [("hami", {"main": {"gpus": 1, "memoryPercent": 50}})],
    "native-annotations.yaml": [("tessera", {"worker": {"gpus": 1, "memory": 4 * GI}})],
    "native-init.yaml": [
        ("tessera", {"warm-up": {"gpus": 1, "memory": 6 * GI, "init": True}, "server": {"gpus": 1, "memory": 4 * GI}})
    ],
    "native-percent.yaml": [("tessera", {"main": {"gpus": 1, "memoryPercent": 25}})],
    "native-several-gpus.yaml": [("tessera", {"main": {"gpus": 2, "memory": 4 * GI, "compute": 20}})],
    "native-slice.yaml": [("tessera", {"main": {"gpus": 1, "memory": 8 * GI, "compute": 30}})],
    "native-two-containers.yaml": [
        ("tessera", {"cache": {"gpus": 1, "memory": 2 * GI}, "server": {"gpus": 1, "memory": 10 * GI, "compute": 20}})
    ],
    "native-whole.yaml": [("tessera", {"main": {"gpus": 1, "whole": True}})],
    "pytorchjob.yaml": [
        ("tessera", {"pytorch": {"gpus": 1, "whole": True}}),
        ("tessera", {"pytorch": {"gpus": 1, "memoryPercent": 50, "compute": 50}}),
    ],
}


def _lines(capsys, *arguments):
    code = main(["mutate", "-o", "json", *arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def test_every_example_asks_for_what_it_says(capsys):
    names = sorted(path.name for path in EXAMPLES.glob("*.yaml"))
    assert names == sorted(WANTED)
    found = _lines(capsys, "-f", *(str(EXAMPLES / name) for name in names))
    assert [(line["request"]["dialect"], line["request"]["containers"]) for line in found] == [
        each for name in names for each in WANTED[name]
    ]
    assert all(line["allowed"] and line["patch"] for line in found)


def test_the_folder_as_a_whole_is_the_same(capsys):
    assert len(_lines(capsys, "-f", str(EXAMPLES))) == sum(map(len, WANTED.values()))


def test_the_hybrid_example_with_its_config(capsys):
    config = str(EXAMPLES / "hybrid" / "config.yaml")
    (line,) = _lines(capsys, "-f", str(EXAMPLES / "hybrid" / "pod.yaml"), "--config", config)
    terms = next(op["value"] for op in line["patch"] if op["path"] == "/spec/affinity")
    order = terms["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [term["preference"]["matchExpressions"][0]["values"] for term in order] == [["idc"], ["cn-hangzhou"]]
    assert any(op["path"] == "/spec/tolerations" for op in line["patch"])


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.name)
def test_an_example_begins_with_what_it_is_for_and_can_run_in_the_demo(path):
    text = path.read_text()
    assert text.startswith("# ")
    for each in yaml.safe_load_all(text):
        if each.get("kind") == "Pod":
            assert each["spec"]["terminationGracePeriodSeconds"] <= 1
            assert each["metadata"]["name"].startswith("example-")
