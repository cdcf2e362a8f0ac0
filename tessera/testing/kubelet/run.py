"""One run of the kubelet's process: everything that a restart loses, made and thrown away together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import grpc.aio

from tessera.testing.kubelet.allocation import Allocator
from tessera.testing.kubelet.changes import Changes
from tessera.testing.kubelet.containers import Runtime
from tessera.testing.kubelet.endpoint import PluginCall
from tessera.testing.kubelet.errors import KubeletError
from tessera.testing.kubelet.manager import DeviceManager
from tessera.testing.kubelet.podresources import PodResources, TokenBucket
from tessera.testing.kubelet.registration import Registration
from tessera.testing.kubelet.settings import Faults, Paths, Settings, World
from tessera.testing.kubelet.table import PodTable
from tessera.testing.kubelet.workers import Workers


@dataclass(slots=True)
class Run:
    """The parts of one run, wired together."""

    manager: DeviceManager
    allocator: Allocator
    workers: Workers
    registration: Registration
    pod_resources: grpc.aio.Server

    async def stop(self) -> None:
        """End it: calls in flight fail, sockets go dead, tables are forgotten."""
        await self.registration.stop()
        await self.pod_resources.stop(None)


async def start_run(
    paths: Paths,
    *,
    settings: Settings,
    world: World,
    faults: Faults,
    random: Random,
    pods: PodTable,
    runtime: Runtime,
    changes: Changes,
    record: Callable[[PluginCall], None],
) -> Run:
    """Read the checkpoint and listen on the two sockets.

    Args:
        paths: where.
        settings: see `Settings`.
        world: see `World`.
        faults: see `Faults`.
        random: decides what Go's map order decides.
        pods: the pods whose objects are there; the caller goes on changing it.
        runtime: where containers run.
        changes: told of everything that changes.
        record: takes every call made to a plugin.

    Raises:
        KubeletError: a socket can't be bound.
    """
    manager = DeviceManager(
        paths.checkpoint,
        settings=settings,
        world=world,
        random=random,
        active=pods.active_uids,
        changed=changes.wake,
    )
    allocator = Allocator(
        manager,
        faults=faults,
        prestart_timeout=settings.prestart_timeout,
        is_active=pods.is_active,
    )
    workers = Workers(
        runtime, manager=manager, allocator=allocator, settings=settings, world=world, changed=changes.of_pod
    )
    registration = Registration(paths.registration, manager, record=record)
    service = PodResources(manager, pods=pods.all)
    bucket = TokenBucket(settings.list_rate, settings.list_burst, world.monotonic)
    server = await service.serve(paths.pod_resources, bucket)
    try:
        await registration.start()
    except KubeletError:
        await server.stop(None)
        raise
    return Run(manager, allocator, workers, registration, server)
