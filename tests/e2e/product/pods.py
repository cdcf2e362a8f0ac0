"""Pods that tests create."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.image import TEST

from product.names import DOMAIN

# Says what it was given, and ends at once when told to: the first process of a container ignores SIGTERM otherwise.
STAYS = ["sh", "-c", "trap 'exit 0' TERM; env; sleep 100000 & wait"]
ENDS = ["sh", "-c", "env"]

Limits = Mapping[str, object]


def container(
    name: str, limits: Limits | None = None, *, command: Sequence[str] = STAYS, **more: Any
) -> dict[str, Any]:
    """A container whose limits are named without our domain: {"gpu-memory": "8Gi"}."""
    wanted = {key if "/" in key else f"{DOMAIN}{key}": str(value) for key, value in (limits or {}).items()}
    return {
        "name": name,
        "image": TEST,
        "imagePullPolicy": "Never",
        "command": list(command),
        "resources": {"limits": wanted},
        **more,
    }


def init(name: str, limits: Limits | None = None) -> dict[str, Any]:
    """An init container that ends."""
    return container(name, limits, command=ENDS)


def sidecar(name: str, limits: Limits | None = None) -> dict[str, Any]:
    """An init container that stays."""
    return container(name, limits, restartPolicy="Always")


def pod(
    name: str,
    limits: Limits | None = None,
    *,
    containers: Sequence[dict[str, Any]] = (),
    init: Sequence[dict[str, Any]] = (),
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A pod, with one container named main unless others are given."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": dict(annotations or {})},
        "spec": {
            "containers": list(containers) or [container("main", limits)],
            "initContainers": list(init),
            "terminationGracePeriodSeconds": 5,
            "dnsPolicy": "Default",
            "enableServiceLinks": False,
            **spec,
        },
    }


def deployment(namespace: str, name: str, replicas: int, limits: Limits) -> dict[str, Any]:
    """A Deployment of pods of one container; their label app is its name."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod("", limits)["spec"]},
        },
    }


def ready(replicas: int) -> Callable[[Mapping[str, Any]], bool]:
    """A check of a Deployment: so many pods, all of them ready."""
    return lambda each: each["status"].get("readyReplicas") == each["status"].get("replicas") == replicas
