"""From flags to a running agent: the one place where the real clock, files, driver and API server are chosen."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import secrets
import sys
from argparse import Namespace
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from random import Random
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry

from deviceplugin.agent import Agent, Places
from deviceplugin.isolation.environment import Environment, HostPaths, survey
from deviceplugin.kubeletpods import KubeletPods
from deviceplugin.mpsdaemon import MpsDaemon
from deviceplugin.nvml.binding import Binding
from deviceplugin.nvml.driver import NvmlDriver
from deviceplugin.nvml.pci import PciBus
from deviceplugin.nvml.source import GpuSource
from deviceplugin.processes import ProcessMap
from tessera.daemon.clockgauge import show_clock
from tessera.daemon.configfile import ConfigFile
from tessera.daemon.run import Signals
from tessera.daemon.status import StatusServer
from tessera.kube.access import Connection
from tessera.kube.client import ApiClient
from tessera.kube.clock import Clock, SystemClock
from tessera.kube.config import connect
from tessera.kube.errors import ConnectionConfigError, KubeError
from tessera.kube.resources import NODES
from tessera.kube.servertime import ServerClock
from tessera.model.config import parse

_log = logging.getLogger(__name__)


SWITCH: Final = 0.0005
"""Seconds after which a thread lets another one run."""


class _NodeInfo(msgspec.Struct, rename="camel"):
    container_runtime_version: str = ""


class _NodeStatus(msgspec.Struct, rename="camel"):
    node_info: _NodeInfo = msgspec.field(default_factory=_NodeInfo)


class _Node(msgspec.Struct):
    status: _NodeStatus = msgspec.field(default_factory=_NodeStatus)


_NODE = msgspec.json.Decoder(_Node)


async def serve(options: Namespace, signals: Signals) -> None:
    """Run one agent until it is told to stop."""
    # The thread that looks at the GPUs computes for milliseconds; the kubelet's call is not to wait for its turn of five.
    sys.setswitchinterval(SWITCH)
    clock, rng, registry = ServerClock(SystemClock()), Random(), CollectorRegistry()  # noqa: S311 - jitter
    show_clock(clock, registry)
    config = ConfigFile(options.config, parse, registry=registry)
    paths = HostPaths.under(options.host_root, proc=options.proc_root, sysfs=options.sysfs)
    pci = PciBus(paths.sysfs)
    async with AsyncExitStack() as stack:
        connection = _connection(options.kubeconfig, clock=clock)
        client = None
        if connection is not None:
            client = ApiClient(connection, clock=clock, rng=rng, user_agent="tessera-node", dates=clock.heard)
            await stack.enter_async_context(client)
        kubelet_pods = _kubelet_pods(options, connection)
        if kubelet_pods is not None:
            await stack.enter_async_context(kubelet_pods)
        plugins = os.path.join(options.kubelet_dir, "device-plugins")
        agent = Agent(
            options.node_name,
            Places(
                plugins=plugins,
                pod_resources=os.path.join(options.kubelet_dir, "pod-resources", "kubelet.sock"),
                state=options.state_dir or os.path.join(plugins, "tessera"),
            ),
            config=lambda: config.current,
            source=GpuSource(
                NvmlDriver(Binding(options.nvml_library or None), pci),
                clock=clock,
                pci=pci,
                insist=bool(options.nvml_library),
            ),
            survey=functools.partial(_survey, paths, client, options.node_name),
            processes=ProcessMap(paths.proc),
            client=client,
            kubelet_pods=kubelet_pods,
            token=secrets.token_hex(3),
            clock=clock,
            rng=rng,
            registry=registry,
            mps=MpsDaemon(options.mps_dir, options.mps_control, clock=clock, environ=os.environ)
            if options.mps_dir
            else None,
        )
        config.subscribe(agent.configure)
        signals.on_hangup(config.reload)
        status = StatusServer(options.status_listen, agent.checks, registry, notes=agent.notes)
        await stack.enter_async_context(status)
        _log.info("node %s: status at %s", options.node_name, status.address)
        following = asyncio.create_task(config.follow())
        try:
            await agent.run(signals.stop)
        finally:
            following.cancel()


def _connection(kubeconfig: str | None, *, clock: Clock) -> Connection | None:
    try:
        return connect(kubeconfig, environ=os.environ, clock=clock)
    except ConnectionConfigError as error:
        if kubeconfig:
            raise
        _log.warning("%s; serving without it: pods have no plans, nothing is published", error)
        return None


def _kubelet_pods(options: Namespace, connection: Connection | None) -> KubeletPods | None:
    if not options.kubelet_pods:
        return None
    own = os.path.join(options.kubelet_dir, "pki", "kubelet.crt")
    ca_file = options.kubelet_ca or (own if os.path.exists(own) else None)
    return KubeletPods(options.kubelet_pods, access=connection.access if connection else None, ca_file=ca_file)


def _survey(paths: HostPaths, client: ApiClient | None, node: str) -> Awaitable[Environment]:
    async def look() -> Environment:
        version = ""
        if client is not None:
            try:
                found = await client.get(NODES, node, decoder=_NODE, timeout=2.0)
                version = found.status.node_info.container_runtime_version
            except KubeError as error:
                _log.info("the container runtime's version is not known: %s", error)
        return await survey(paths, runtime_version=version)

    return look()
