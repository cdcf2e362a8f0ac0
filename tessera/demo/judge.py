"""The demo's judge: it trusts nobody and shares no code with what it judges.

From what the nodes left behind and from the API objects it counts again, with its own arithmetic, whether every container
has exactly what was planned for it, whether any GPU was given away twice, whether the data centre filled before the cloud
and whether freed slices are used again. Nothing of webhook/, deviceplugin/, the dialects or the ledger is imported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tessera.demo.evidence import DOMAIN, Evidence, Json, alive, parse_device, planned, tickets, visible

IN_FLIGHT: Final = 64
"""Bindings that may be under way at once: a pod placed while they are may stand before them in the order of writes."""


@dataclass(slots=True)
class Check:
    """One thing that was checked: how often, and what was wrong."""

    title: str
    looked_at: int = 0
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        """Count one look; keep the problem where it does not hold."""
        self.looked_at += 1
        if not holds:
            self.problems.append(problem)

    @property
    def passed(self) -> bool:
        """Something was looked at and nothing was wrong: a check that saw nothing has shown nothing."""
        return self.looked_at > 0 and not self.problems


def judge(pods: Iterable[Json], nodes: Iterable[Evidence]) -> list[Check]:
    """Check the cluster at one moment in which nothing moves.

    Args:
        pods: every Pod object.
        nodes: every GPU node.
    """
    by_node: dict[str, list[Json]] = defaultdict(list)
    for pod in pods:
        if alive(pod):
            by_node[pod["spec"]["nodeName"]].append(pod)
    checks = _Checks()
    for node in nodes:
        for pod in by_node[node.name]:
            checks.pod(pod, node)
        checks.gpus(by_node[node.name], node)
    return [checks.plan, checks.env, checks.void, checks.once, checks.sums]


class _Checks:
    def __init__(self) -> None:
        self.plan = Check("every container has exactly the devices of its plan")
        self.env = Check("every container sees the GPUs of its plan and no other")
        self.void = Check("containers that asked for no GPU have none")
        self.once = Check("no unit of a GPU is given to two pods")
        self.sums = Check("no GPU is over-allocated: memory units, memory percent, compute percent")

    def pod(self, pod: Json, node: Evidence) -> None:
        uid, label = pod["metadata"]["uid"], f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        plan = planned(pod)
        for container in [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]:
            name, where = container["name"], f"{label}, container {container['name']}"
            record = node.records.get((uid, name))
            if not tickets(container):
                if record is not None:
                    held = node.held.get((uid, name), set())
                    self.void.expect(not held and not visible(record), f"{where}: holds {held}, sees {visible(record)}")
                continue
            if record is None:
                self.plan.expect(holds=False, problem=f"{where}: was never started")
                continue
            given = node.slices(uid, name)
            wanted = sorted((piece["gpu"], piece["units"], piece["compute"]) for piece in plan.get(name, []))
            self.plan.expect(given == wanted, f"{where}: was given {given}, planned were {wanted}")
            uuids = sorted(node.gpus[gpu]["uuid"] for gpu, _, _ in wanted)
            told = sorted(filter(None, record["env"].get("TESSERA_GPU_IDS", "").split(",")))
            self.env.expect(visible(record) == uuids, f"{where}: sees {visible(record)}, planned were {uuids}")
            self.env.expect(told == uuids, f"{where}: TESSERA_GPU_IDS says {told}, planned were {uuids}")

    def gpus(self, pods: Iterable[Json], node: Evidence) -> None:
        owner: dict[str, str] = {}
        held: dict[str, Amounts] = {gpu: Amounts() for gpu in node.gpus}
        for pod in pods:
            uid = pod["metadata"]["uid"]
            mine: dict[str, set[str]] = defaultdict(set)
            for (holder, _), devices in node.held.items():
                for device in devices if holder == uid else ():
                    gpu, _kind = parse_device(device)
                    mine[gpu].add(device)
                    problem = f"node {node.name}: {device} is held by {uid} and {owner.get(device)}"
                    self.once.expect(owner.setdefault(device, uid) == uid, problem)
            for gpu, devices in mine.items():
                kinds = [parse_device(device)[1] for device in devices]
                held[gpu].add(node, gpu, units=kinds.count("m"), percent=kinds.count("p"), compute=kinds.count("c"))
        for gpu, amounts in held.items():
            where = f"node {node.name}, GPU {node.gpus[gpu]['index']}"
            self.sums.expect(
                amounts.within(node.gpus[gpu]["units"]), f"{where}: {amounts} of {node.gpus[gpu]['units']}"
            )


@dataclass(slots=True)
class Amounts:
    """What is given away of one GPU, counted in each view."""

    units: int = 0
    percent: int = 0
    percent_units: int = 0
    compute: int = 0

    def add(self, node: Evidence, gpu: str, *, units: int, percent: int, compute: int) -> None:
        """Add one holder's device IDs."""
        self.units += units
        self.percent += percent
        self.percent_units += node.percent_units(gpu, percent)
        self.compute += compute

    def within(self, there: int) -> bool:
        """Whether a GPU of so many units can hold it."""
        share = self.percent + (-(-100 * self.units // there) if there else 0)
        return self.units + self.percent_units <= there and share <= 100 and self.compute <= 100


def idc_first(binds: Sequence[Json], nodes: Mapping[str, Evidence], idc: frozenset[str]) -> Check:
    """Check that no pod went to the cloud while the data centre had room for it.

    Args:
        binds: bound pods in the order of their bindings, during a time in which no pod ended.
        nodes: every GPU node by name.
        idc: names of the data centre's nodes.
    """
    check = Check("the data centre filled before the cloud")
    for at, pod in enumerate(binds):
        asked = _asked(pod)
        if pod["spec"]["nodeName"] in idc or not asked:
            continue
        there = _Room([nodes[name] for name in sorted(idc)], [p for p in binds[: at + IN_FLIGHT] if p is not pod])
        room = there.node_for(pod, asked)
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        check.expect(room is None, f"{name} is on {pod['spec']['nodeName']} while {room} had room for it")
    return check


class _Room:
    """What is free on some nodes beside some pods, single-container pods assumed."""

    def __init__(self, nodes: Iterable[Evidence], pods: Iterable[Json]) -> None:
        self._nodes = list(nodes)
        self._gpus = {node.name: {gpu: Amounts() for gpu in node.gpus} for node in self._nodes}
        self._cpu = {node.name: _cores(node.node["status"]["allocatable"]["cpu"]) for node in self._nodes}
        by_name = {node.name: node for node in self._nodes}
        for pod in pods:
            node = by_name.get(pod["spec"]["nodeName"])
            if node is None:
                continue
            self._cpu[node.name] -= _pod_cores(pod)
            asked = _asked(pod)
            for pieces in planned(pod).values():
                for piece in pieces:
                    units = 0 if "percent" in asked else piece["units"]
                    self._gpus[node.name][piece["gpu"]].add(
                        node, piece["gpu"], units=units, percent=asked.get("percent", 0), compute=piece["compute"]
                    )

    def node_for(self, pod: Json, asked: Mapping[str, int]) -> str | None:
        """A node that could take the pod, or None."""
        for node in self._nodes:
            if self._cpu[node.name] < _pod_cores(pod):
                continue
            fitting = sum(1 for gpu in node.gpus if self._fits(node, gpu, asked))
            if fitting >= asked["gpus"]:
                return node.name
        return None

    def _fits(self, node: Evidence, gpu: str, asked: Mapping[str, int]) -> bool:
        held = self._gpus[node.name][gpu]
        trial = Amounts(held.units, held.percent, held.percent_units, held.compute)
        trial.add(node, gpu, units=asked.get("units", 0), percent=asked.get("percent", 0), compute=asked["compute"])
        return node.gpus[gpu]["health"] == "ok" and trial.within(node.gpus[gpu]["units"])


def _asked(pod: Json) -> dict[str, int]:
    """What a pod's only container asks on each of its GPUs; empty where it asks nothing."""
    found: dict[str, int] = {}
    for container in pod["spec"]["containers"]:
        counts = tickets(container)
        if not counts:
            continue
        gpus = max(1, len(planned(pod).get(container["name"], [])))
        units = sum(
            count for name, count in counts.items() if name.startswith(DOMAIN + "gpu-memory.") and "percent" not in name
        )
        percent = counts.get(DOMAIN + "gpu-memory.percent", 0)
        found = {"gpus": gpus, "compute": counts.get(DOMAIN + "gpu-compute.percent", 0) // gpus}
        found |= {"percent": percent // gpus} if percent else {"units": units // gpus}
    return found


def _pod_cores(pod: Json) -> float:
    return sum(
        _cores((container.get("resources", {}).get("requests") or {}).get("cpu", "0"))
        for container in pod["spec"]["containers"]
    )


def _cores(text: str | int) -> float:
    shown = str(text)
    return float(shown[:-1]) / 1000 if shown.endswith("m") else float(shown)


def used_again(earlier: Mapping[str, frozenset[str]], nodes: Iterable[Evidence], pods: Iterable[Json]) -> Check:
    """Check that devices freed since a snapshot were given to other pods.

    Args:
        earlier: by device ID the UIDs that held it then, from `holders`.
        nodes: the nodes now.
        pods: every Pod object now.
    """
    check = Check("slices that were freed are used again")
    living = {pod["metadata"]["uid"] for pod in pods if alive(pod)}
    for device, now in holders(nodes).items():
        before = earlier.get(device, frozenset())
        if before and not before & living and (now & living):
            check.expect(holds=True, problem="")
    if not check.looked_at:
        check.problems.append("not one device of an ended pod is held by a living one")
    return check


def holders(nodes: Iterable[Evidence]) -> dict[str, frozenset[str]]:
    """By device ID, the UIDs of the pods that hold it."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in nodes:
        for (uid, _), devices in node.held.items():
            for device in devices:
                found[device].add(uid)
    return {device: frozenset(uids) for device, uids in found.items()}
