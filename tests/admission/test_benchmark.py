"""The benchmark measures: a program that nobody runs in between would not run when it is needed."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_it_prints_its_figures():
    done = subprocess.run(
        [sys.executable, "-m", "bench.webhook", "0.2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    figures = json.loads(done.stdout)
    assert figures["reviews_per_second"] > 0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]
    assert figures["connections"] == 8
    assert 0 < figures["mutation_us"] < figures["handler_us"]
    assert 5500 < figures["pure_bytes"] < 6500
