"""`tessera-extender`: what kube-scheduler asks where a pod's slices should go."""

from __future__ import annotations

import asyncio
import logging
import os
from argparse import Namespace
from contextlib import AsyncExitStack
from random import Random
from socket import gethostname
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry

from tessera.daemon.clockgauge import show_clock
from tessera.daemon.configfile import ConfigFile
from tessera.daemon.flags import Flags, address
from tessera.daemon.run import Signals, run
from tessera.daemon.status import StatusServer
from tessera.kube.client import ApiClient
from tessera.kube.clock import SystemClock
from tessera.kube.config import connect
from tessera.kube.events import EventRecorder
from tessera.kube.resources import NODES, PODS
from tessera.kube.servertime import ServerClock
from tessera.kube.watch import WatchCache
from tessera.model.config import Config, parse
from tessera.model.errors import ConfigError
from tessera.model.node import Node
from tessera.model.pod import Pod
from tessera.placement.workload import LARGEST_FILE, Demand, read_expected
from webhook.extender.bind import Binder
from webhook.extender.candidates import Candidates
from webhook.extender.cluster import Cluster
from webhook.extender.filter import Filter
from webhook.extender.garbage import Collector
from webhook.extender.leading import Leadership
from webhook.extender.metrics import LedgerCollector, Metrics
from webhook.extender.preemptor import Preemptor
from webhook.extender.scaler import Scaler
from webhook.extender.server import Extender
from webhook.extender.telling import Told
from webhook.extender.waiting import Waiting
from webhook.extender.wake import Waker

DRAIN: Final = 10.0
"""Seconds between losing readiness and ceasing to serve (contract, section 4)."""

_log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM."""
    flags = Flags("tessera-extender", "kube-scheduler's extender: places GPU slices and binds pods with their plan")
    flags.add("--config", "config file; none means the defaults", str, None)
    flags.add("--kubeconfig", "kubeconfig; none means the cluster we run in, then $KUBECONFIG", str, None)
    flags.add("--listen", "where kube-scheduler calls", address, "127.0.0.1:9460")
    flags.add("--dashboard-listen", "where read-only JSON is served", address, "127.0.0.1:9470")
    flags.add("--status-listen", "where /healthz, /readyz and /metrics are", address, "0.0.0.0:9466")
    flags.add("--identity", "host name of the kube-scheduler beside us, as its Lease names it", str, gethostname())
    options = flags.read(arguments)
    return run(lambda signals: serve(options, signals), level=options.log_level)


async def serve(options: Namespace, signals: Signals) -> None:
    """Serve until the signals say stop.

    Raises:
        ConfigError: the config file is refused.
        ConnectionConfigError: it can't be told where the API server is.
        OSError: an address is taken.
    """
    registry = CollectorRegistry()
    config = ConfigFile(options.config, parse, registry=registry)
    signals.on_hangup(config.reload)
    clock, rng = ServerClock(SystemClock()), Random()  # noqa: S311  jitter
    show_clock(clock, registry)
    metrics = Metrics(registry)
    async with AsyncExitStack() as stack:
        collector = Collector(clock)
        stack.callback(collector.close)
        connection = connect(options.kubeconfig, environ=os.environ, clock=clock)
        client = await stack.enter_async_context(
            ApiClient(connection, clock=clock, rng=rng, user_agent="tessera-extender", dates=clock.heard)
        )
        names = config.current.names
        pods = WatchCache(client, PODS, msgspec.json.Decoder(Pod), clock=clock, rng=rng)
        nodes = WatchCache(client, NODES, msgspec.json.Decoder(Node), clock=clock, rng=rng)
        events = EventRecorder(client, component="tessera-extender", instance=options.identity, clock=clock, rng=rng)
        waiting = Waiting(clock=clock, metrics=metrics)
        waker = Waker(client, nodes.get, names=names, clock=clock, metrics=metrics, waiting=waiting)
        cluster = Cluster(
            pods,
            nodes,
            names=names,
            clock=clock,
            grew=waker.grew,
            settled=waiting.settled,
            refused=Told(events, count=metrics.refused).refused,
            measure=config.current.placement.measure,
            expected=_expected(config.current),
        )
        waker.look_at(lambda node, pod: cluster.keeper.states(node, uid=pod.uid, priority=pod.priority))
        metrics.refusing.set_function(lambda: len(cluster.refusals))
        pods.subscribe(cluster.pod_changed)
        nodes.subscribe(cluster.node_changed)
        registry.register(
            LedgerCollector(cluster.ledger, {"pods": lambda: pods.staleness, "nodes": lambda: nodes.staleness})
        )
        filter_ = Filter(cluster, config=lambda: config.current, metrics=metrics, rejected=waiting.rejected)
        binder = Binder(cluster, client, config=lambda: config.current, clock=clock, metrics=metrics)
        stack.push_async_callback(binder.close)
        candidates = Candidates(cluster, clock=clock)
        extender = Extender(
            cluster, filter_, binder, candidates=candidates, config=lambda: config.current, metrics=metrics
        )
        leadership = Leadership(client, lease=lambda: config.current.lease, identity=options.identity, clock=clock)
        preemptor = Preemptor(
            cluster,
            client,
            waiting,
            candidates=candidates,
            config=lambda: config.current,
            leading=lambda: leadership.leading and cluster.problem is None,
            events=events,
            clock=clock,
            metrics=metrics,
        )
        scaler = Scaler(
            cluster,
            client,
            waiting,
            config=lambda: config.current,
            leading=lambda: leadership.leading and cluster.problem is None,
            events=events,
            clock=clock,
            metrics=metrics,
        )
        pods.subscribe(scaler.pod_changed)
        checks = {
            "caches": lambda: cluster.problem,
            "draining": lambda: "stopping" if signals.stop.is_set() else None,
        }
        status = await stack.enter_async_context(StatusServer(options.status_listen, checks, registry))
        dashboard = await stack.enter_async_context(extender.dashboard(options.dashboard_listen))
        listener = await stack.enter_async_context(extender.listener(options.listen))
        _log.info("listening on %s, dashboard %s, status %s", listener.address, dashboard.address, status.address)
        tasks = [
            asyncio.create_task(job)
            for job in (
                pods.run(),
                nodes.run(),
                cluster.run(synced=collector.settle),
                waker.run(),
                leadership.run(),
                preemptor.run(),
                scaler.run(),
                events.run(),
                config.follow(),
            )
        ]
        stop = asyncio.create_task(signals.stop.wait())
        try:
            done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                # None of them ends by itself: what is wrong is wrong with us, and a new process starts from the objects.
                task.result()
            listener.draining = True
            await clock.sleep(DRAIN)
        finally:
            for task in (*tasks, stop):
                task.cancel()
            await asyncio.gather(*tasks, stop, return_exceptions=True)


def _expected(config: Config) -> tuple[tuple[Demand, float], ...]:
    """The requests that config expects; read once, as they only serve to start from."""
    path = config.placement.shapes
    if not path:
        return ()
    try:
        with open(path, "rb") as file:
            return read_expected(file.read(LARGEST_FILE + 1), unit=config.memory_unit)
    except OSError as error:
        raise ConfigError(f"placement.shapes names {path}, which can't be read: {error.strerror}") from error
