"""The demo's input: pods drawn from the shapes of a real cluster's tasks, each written in one of several dialects.

The shapes are those of Alibaba's GPU trace (shapes.csv beside this file tells where from); what a share means in bytes
is ours, since the trace holds no device memory. Pods are written as their authors would: our own names, HAMi's or
Aliyun's, so that everything that follows has to come out of admission.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from random import Random
from typing import Any, Final

Json = dict[str, Any]

CARD: Final = 24
"""GiB of the card that a share in bytes is taken of."""
MOST_GPUS: Final = 4
"""The largest demo node has eight GPUs; tasks that want more are left out, they would only wait."""
DIALECTS: Final = ("tessera", "hami", "aliyun")
_SLOW: Final = {"cpu": 4, "memory": 8}
"""Host resources are scaled down by these, so that GPUs and not CPUs fill first on a handful of nodes."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of tasks: cores in thousandths, MiB, GPUs, share of each GPU in thousandths, and how many had it."""

    cpu: int
    memory: int
    gpus: int
    share: int
    tasks: int


def shapes() -> list[Shape]:
    """The trace's shapes that fit on a demo node."""
    text = (files("tessera.demo") / "shapes.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    found = [
        Shape(int(r["cpu_milli"]), int(r["memory_mib"]), int(r["gpus"]), int(r["gpu_milli"]), int(r["tasks"]))
        for r in rows
    ]
    return [shape for shape in found if shape.gpus <= MOST_GPUS]


def draw(count: int, *, rng: Random, prefix: str) -> Iterator[Json]:
    """Draw pods, by how many tasks of the trace had their shape.

    Args:
        count: how many.
        rng: decides; the same seed draws the same pods.
        prefix: of the pods' names.
    """
    there = shapes()
    weights = [shape.tasks for shape in there]
    for number, shape in enumerate(rng.choices(there, weights, k=count)):
        limits = _limits(shape, rng) if shape.gpus else {}
        requests = {
            "cpu": f"{shape.cpu // _SLOW['cpu']}m",
            "memory": f"{shape.memory // _SLOW['memory']}Mi",
        }
        yield pod(f"{prefix}-{number:03d}", requests | limits, limits)


def pod(name: str, requests: Json, limits: Json, *, annotations: Json | None = None) -> Json:
    """A pod of one container, as a user would write it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": annotations or {}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {"name": "main", "image": "demo", "resources": {"requests": requests, "limits": limits}},
            ],
        },
    }


def mistakes() -> list[Json]:
    """Pods that admission has to refuse, each for a reason of its own."""
    wrong: list[Json] = [
        {"tessera.dev/gpu-memory": "8Gi", "tessera.dev/gpu-memory-percent": "50"},
        {"tessera.dev/gpu-compute": "150"},
        {"tessera.dev/gpu": "0.5"},
        {"nvidia.com/gpu": "1", "nvidia.com/gpumem-percentage": "130"},
    ]
    return [pod(f"mistake-{number}", {"cpu": "1"}, limits) for number, limits in enumerate(wrong)]


def _limits(shape: Shape, rng: Random) -> Json:
    """One shape in one of the dialects that can say it."""
    if shape.gpus > 1 or shape.share >= 1000:
        return _whole(shape.gpus, rng)
    percent = max(1, shape.share // 10)
    memory = max(1, percent * CARD // 100)
    match rng.choice(DIALECTS):
        case "hami":
            if rng.random() < 0.5:
                return {
                    "nvidia.com/gpu": "1",
                    "nvidia.com/gpumem": str(memory * 1024),
                    "nvidia.com/gpucores": str(percent),
                }
            return {
                "nvidia.com/gpu": "1",
                "nvidia.com/gpumem-percentage": str(percent),
                "nvidia.com/gpucores": str(percent),
            }
        case "aliyun":
            return {"aliyun.com/gpu-mem": str(memory)}
        case _:
            if rng.random() < 0.5:
                return {"tessera.dev/gpu-memory": f"{memory}Gi", "tessera.dev/gpu-compute": str(percent)}
            return {"tessera.dev/gpu-compute": str(percent)}


def _whole(gpus: int, rng: Random) -> Json:
    if rng.random() < 0.5:
        return {"nvidia.com/gpu": str(gpus), "nvidia.com/gpumem-percentage": "100", "nvidia.com/gpucores": "100"}
    return {"tessera.dev/gpu": str(gpus)}
