"""The demo's plot: fill the cluster, judge it, let pods end and others come, judge it again.

First a crowd of pods arrives and nothing ends, so that the data centre has to fill before the cloud and the rest has to
wait with a reason. Then, in rounds, a part of the running pods is deleted and new ones arrive, so that freed slices have to
be found and used again. Each time everything is judged while nothing moves.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

import aiohttp

from tessera.demo.api import PODS, Api, Json
from tessera.demo.evidence import Evidence, alive
from tessera.demo.judge import Check, holders, idc_first, judge, used_again
from tessera.demo.processes import DemoError, Processes
from tessera.demo.stage import NODES, Stage
from tessera.demo.workload import draw, mistakes
from tessera.testing.scheduler import FakeScheduler

_SETTLE: Final = 40.0
"""Seconds in which a crowd has to be placed or to wait with a reason."""
_ENDING: Final = 0.4
"""Share of the running pods that ends in each round."""


@dataclass(slots=True)
class Scene:
    """What people are told while it plays.

    Attributes:
        submitted: pods created so far, the refused ones included.
        refused: by name, admission's reason.
        pods: Pod objects at the last look.
        checks: everything judged so far; a title stands once, its looks added up.
    """

    submitted: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    pods: list[Json] = field(default_factory=list)
    checks: dict[str, Check] = field(default_factory=dict)

    def add(self, check: Check) -> None:
        """Add a check to what was found by that title before."""
        known = self.checks.setdefault(check.title, Check(check.title))
        known.looked_at += check.looked_at
        known.problems += check.problems

    @property
    def passed(self) -> bool:
        """Every check looked at something and found nothing wrong."""
        return bool(self.checks) and all(check.passed for check in self.checks.values())


Tell = Callable[[str, Scene], None]
"""Called about once a second with what is going on."""


class Play:
    """One performance on a stage that is set up."""

    def __init__(
        self,
        stage: Stage,
        api: Api,
        scheduler: FakeScheduler,
        processes: Processes,
        *,
        examples: list[Json],
        order: list[str],
        rng: Random,
        tell: Tell,
    ) -> None:
        """Prepare.

        Args:
            stage: set up.
            api: its API server.
            scheduler: running.
            processes: watched for early ends.
            examples: manifests that stand in the repository, submitted beside what is drawn.
            order: UIDs of bound pods in the order of their bindings, as `note_binds` goes on noting them.
            rng: decides what is drawn and what ends.
            tell: told what is going on.
        """
        self._stage = stage
        self._api = api
        self._scheduler = scheduler
        self._processes = processes
        self._examples = examples
        self._order = order
        self._rng = rng
        self._tell = tell
        self._gone: set[str] = set()
        self.scene = Scene()

    async def run(self, *, crowd: int, rounds: int, each: int) -> Scene:
        """Play it.

        Args:
            crowd: pods of the first crowd.
            rounds: how often pods end and others come.
            each: pods that come in each round.

        Raises:
            DemoError: a program ended by itself, or the cluster does not come to rest.
        """
        await self._submit(
            [*self._examples, *mistakes(), *draw(crowd, rng=self._rng, prefix="crowd")], "a crowd arrives"
        )
        await self._rest("the cluster fills")
        nodes = await self._evidence()
        self._judge(nodes)
        idc = frozenset(node.name for node in NODES if node.site == "idc")
        self.scene.add(idc_first(self._in_order(), {node.name: node for node in nodes}, idc))
        for number in range(1, rounds + 1):
            earlier = holders(nodes)
            await self._end_some(f"round {number}: pods end")
            await self._submit(list(draw(each, rng=self._rng, prefix=f"round{number}")), f"round {number}: others come")
            await self._rest(f"round {number}: freed slices are used again")
            nodes = await self._evidence()
            self._judge(nodes)
            self.scene.add(used_again(earlier, nodes, self.scene.pods))
        return self.scene

    async def _submit(self, pods: list[Json], what: str) -> None:
        self._tell(what, self.scene)
        self.scene.submitted += len(pods)
        self.scene.refused |= await self._api.submit(pods)

    async def _end_some(self, what: str) -> None:
        running = [pod for pod in self.scene.pods if alive(pod)]
        ending = self._rng.sample(running, int(len(running) * _ENDING))
        self._gone |= {pod["metadata"]["uid"] for pod in ending}
        self._tell(what, self.scene)
        async with asyncio.TaskGroup() as group:
            for pod in ending:
                group.create_task(self._api.delete(f"{PODS}/{pod['metadata']['name']}"))

    async def _rest(self, what: str) -> None:
        """Wait until nothing moves: bound pods run, deleted ones are gone, the others wait with a reason."""
        until = time.monotonic() + _SETTLE
        calm = 0
        while calm < 3:
            self._processes.check()
            self.scene.pods = await self._api.items(PODS)
            self._tell(what, self.scene)
            calm = calm + 1 if self._scheduler.idle and self._still() else 0
            if time.monotonic() > until:
                raise DemoError(f"{what}: the cluster is not at rest after {_SETTLE:.0f} s; {self._moving()}")
            await asyncio.sleep(0.3)

    def _in_order(self) -> list[Json]:
        """Living bound pods in the order of their bindings."""
        place = {uid: at for at, uid in enumerate(self._order)}
        return sorted((pod for pod in self.scene.pods if alive(pod)), key=lambda pod: place[pod["metadata"]["uid"]])

    def _still(self) -> bool:
        return not any(map(self._moves, self.scene.pods))

    def _moves(self, pod: Json) -> bool:
        bound, phase = pod["spec"].get("nodeName"), pod.get("status", {}).get("phase", "Pending")
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        if pod["metadata"]["uid"] in self._gone or pod["metadata"].get("deletionTimestamp"):
            return True
        return (bool(bound) and phase == "Pending") or (not bound and name not in self._scheduler.reasons)

    def _moving(self) -> str:
        names = [
            f"{pod['metadata']['name']} ({pod.get('status', {}).get('phase')}, "
            f"node {pod['spec'].get('nodeName', 'none')}, {pod.get('status', {}).get('message', '')})"
            for pod in self.scene.pods
            if self._moves(pod)
        ]
        return f"{len(names)} pods still move: {'; '.join(names[:3])}"

    async def _evidence(self) -> list[Evidence]:
        nodes = await self._api.items("/api/v1/nodes")
        return [Evidence(node, self._stage.folders[node["metadata"]["name"]]) for node in nodes]

    def _judge(self, nodes: list[Evidence]) -> None:
        for check in judge(self.scene.pods, nodes):
            self.scene.add(check)
        failed = Check("every bound pod runs")
        for pod in self.scene.pods:
            if pod["spec"].get("nodeName"):
                status = pod.get("status", {})
                why = f"{pod['metadata']['name']}: {status.get('reason')} {status.get('message')}"
                failed.expect(status.get("phase") == "Running", why)
        self.scene.add(failed)


async def note_binds(session: aiohttp.ClientSession, url: str, order: list[str]) -> None:
    """Follow the pods' watch from its beginning and note their UIDs in the order in which they were bound."""
    known: set[str] = set()
    forever = aiohttp.ClientTimeout(total=None)
    async with session.get(f"{url}{PODS}?watch=true&resourceVersion=0", timeout=forever) as stream:
        async for line in stream.content:
            pod = json.loads(line)["object"]
            uid = pod["metadata"].get("uid", "")
            if pod["spec"].get("nodeName") and uid not in known:
                known.add(uid)
                order.append(uid)
