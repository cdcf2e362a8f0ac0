"""The looking commands on a real cluster: doctor finds nothing broken in what the manifests install, top sees what agents
measure through the API server, explain tells a running and a waiting pod.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from product import pods

TESSERA = Path(sys.executable).with_name("tessera")


def tessera(cluster, *arguments):
    """Run a command as the administrator; its exit code and what it printed."""
    environment = {**os.environ, "NO_COLOR": "1"}
    command = [str(TESSERA), *arguments, "--kubeconfig", str(cluster.settings.kubeconfig("admin"))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def test_doctor_finds_no_error_in_what_the_manifests_install(cluster, space):
    space.run(pods.pod("one", {"gpu-memory": "8Gi"}))
    _, out = tessera(cluster, "doctor", "-o", "json")
    checks = {each["check"]: each for each in json.loads(out)["checks"]}
    told = {name: [f["seen"] for f in each["findings"]] for name, each in checks.items() if each["result"] == "error"}
    assert told == {}
    blind = {name: each["problem"] for name, each in checks.items() if each["result"] == "blind"}
    assert blind.keys() <= {"scheduler-version"}, blind
    well = ("webhook-answers", "certificate-trust", "certificate-in-force", "policies-in-force", "scheduler-config")
    for check in (*well, "config-units", "config-in-force", "part-ready"):
        assert checks[check]["result"] == "ok", checks[check]
    assert "came back with 1 x tessera.dev/gpu-memory.256Mi" in checks["webhook-answers"]["looked"]
    assert checks["node-agent"]["looked"].endswith(" 1 agent")


def test_top_shows_what_agents_measure(cluster, space):
    space.run(pods.pod("one", {"gpu-memory": "8Gi"}))
    code, out = tessera(cluster, "top", "-o", "json")
    found = json.loads(out)
    assert code == 0
    assert [node["unmeasured"] for node in found["nodes"]] == [""]
    slices = {each["pod"]: each for gpu in found["nodes"][0]["gpus"] for each in gpu["slices"]}
    assert slices[f"{space.name}/one"]["booked"] == 8 << 30
    assert slices[f"{space.name}/one"]["used"] is not None


def test_explain_tells_a_running_and_a_waiting_pod(cluster, space):
    space.run(pods.pod("runs", {"gpu-memory": "8Gi"}))
    space.create(pods.pod("never", {"gpu": 8}))
    space.waiting("never")
    code, out = tessera(cluster, "explain", f"{space.name}/runs")
    assert code == 0
    assert "asked    main: 1 GPU, 8Gi of memory (dialect tessera)" in out
    assert "given    as planned" in out
    assert "SliceGranted" in out
    _, out = tessera(cluster, "explain", "never", "-n", space.name)
    assert "needs 8 such GPUs, node has 4" in out
    assert "No node will ever do" in out
    command = [
        str(TESSERA),
        "explain",
        "nevr",
        "-n",
        space.name,
        "--kubeconfig",
        str(cluster.settings.kubeconfig("admin")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"did you mean {space.name}/never?" in done.stderr
