"""A pod's status as a kubelet writes it into the API server.

Only what other programs read is filled: phase, reason, message, conditions, addresses and one status per container.
Reasons and texts are the real one's (kubelet_pods.go, kuberuntime, status/generate.go of k8s.io/kubernetes v1.34.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tessera.model.pod import TERMINAL
from tessera.testing.kubelet.containers import ContainerRecord
from tessera.testing.kubelet.pods import Container
from tessera.testing.kubelet.workers import CONFIG_ERROR, PodState

_OURS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a pod is: its node's address and its own."""

    host: str
    pod: str


def pod_status(
    state: PodState, records: Iterable[ContainerRecord], *, addresses: Addresses, now: str
) -> dict[str, object]:
    """Write the status, for a merge patch.

    Args:
        state: the pod.
        records: its containers that were started.
        addresses: of the pod.
        now: RFC 3339, for conditions that change and containers that end.
    """
    if state.reason:
        return {"phase": state.phase, "reason": state.reason, "message": state.message, "startTime": now}
    started = {record.container: record for record in records}
    containers = state.pod.containers
    init = [container for container in containers if container.role != "main"]
    main = [container for container in containers if container.role == "main"]
    initialized = all(container.name in started for container in init)
    ready = state.phase == "Running" and all(_running(started.get(container.name)) for container in main)
    ended = state.phase in TERMINAL
    answers = {
        "PodReadyToStartContainers": not ended,
        "Initialized": initialized,
        "Ready": ready,
        "ContainersReady": ready,
    }
    creating = "ContainerCreating" if not init or initialized else "PodInitializing"
    return {
        "phase": state.phase,
        "startTime": state.started or now,
        "hostIP": addresses.host,
        "hostIPs": [{"ip": addresses.host}],
        "podIP": addresses.pod,
        "podIPs": [{"ip": addresses.pod}],
        "qosClass": state.pod.qos(),
        "conditions": _conditions(state, answers, now),
        "containerStatuses": [_container(each, started, state, creating, now) for each in main],
        "initContainerStatuses": [_container(each, started, state, "PodInitializing", now) for each in init],
    }


def _running(record: ContainerRecord | None) -> bool:
    return record is not None and record.state == "running"


def _conditions(state: PodState, answers: Mapping[str, bool], now: str) -> list[dict[str, object]]:
    """Ours, with the time of the last change; others' (PodScheduled) stay as they are."""
    status = state.pod.raw.get("status")
    found = status.get("conditions") if isinstance(status, Mapping) else None
    old = {each["type"]: dict(each) for each in found or () if isinstance(each, Mapping) and "type" in each}
    kept = [condition for name, condition in old.items() if name not in _OURS]
    ours: list[dict[str, object]] = []
    for name, answer in answers.items():
        value = "True" if answer else "False"
        before = old.get(name, {})
        since = before.get("lastTransitionTime", now) if before.get("status") == value else now
        ours.append({"type": name, "status": value, "lastProbeTime": None, "lastTransitionTime": since})
    return kept + ours


def _container(
    container: Container, started: Mapping[str, ContainerRecord], state: PodState, creating: str, now: str
) -> dict[str, object]:
    record = started.get(container.name)
    running = _running(record)
    name = container.name
    status: dict[str, object] = {
        "name": name,
        "image": container.image,
        "imageID": f"fake://{container.image}",
        "lastState": {},
        "ready": running or (record is not None and container.role == "init"),
        "started": running,
        "restartCount": 0 if record is None else record.restart_count,
    }
    if record is not None:
        status["containerID"] = record.container_id
    if name in state.waiting:
        status["state"] = {"waiting": {"reason": CONFIG_ERROR, "message": state.waiting[name]}}
    elif record is None:
        status["state"] = {"waiting": {"reason": creating}}
    elif record.state == "running":
        status["state"] = {"running": {"startedAt": record.started_at}}
    else:
        status["state"] = {
            "terminated": {
                "exitCode": record.exit_code,
                "reason": "Completed" if record.exit_code == 0 else "Error",
                "startedAt": record.started_at,
                "finishedAt": record.ended_at or now,
                "containerID": record.container_id,
            }
        }
    return status
