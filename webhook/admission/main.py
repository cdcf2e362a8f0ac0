"""`tessera-webhook`: what the API server calls when a pod is created."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from random import Random
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry

from tessera.daemon.clockgauge import show_clock
from tessera.daemon.configfile import ConfigFile
from tessera.daemon.flags import Flags, address
from tessera.daemon.run import Signals, run
from tessera.daemon.status import StatusServer
from tessera.dialects.registry import OPTIONS
from tessera.kube.client import ApiClient
from tessera.kube.clock import Clock, SystemClock
from tessera.kube.config import SERVICE_ACCOUNT_DIR, connect
from tessera.kube.errors import KubeError
from tessera.kube.resources import NODES
from tessera.kube.servertime import ServerClock
from tessera.kube.watch import WatchCache
from tessera.model.config import parse
from tessera.model.names import Names
from tessera.placement.shape import Shape
from webhook.admission.cabundle import POLL, CaBundle
from webhook.admission.capacity import Capacity, GpuNode
from webhook.admission.certificates import Certificates
from webhook.admission.certstore import DirectoryStore, SecretStore, Store
from webhook.admission.metrics import Metrics, watch_loop
from webhook.admission.mutate import unknown_capacity
from webhook.admission.paths import Paths
from webhook.admission.server import AdmissionServer

DRAIN: Final = "10"
"""Seconds between losing readiness and ceasing to serve (contract, section 4): endpoints take that long to follow."""
RETRY: Final = 2.0
"""Seconds between attempts to get a first certificate while the API server is away."""

_log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM."""
    options = flags().read(arguments)
    return run(lambda signals: serve(options, signals, clock=SystemClock()), level=options.log_level)


def flags(environ: Mapping[str, str] = os.environ) -> Flags:
    """The program's flags."""
    found = Flags("tessera-webhook", "admission webhook: turns GPU requests into tickets", environ=environ)
    found.add("--config", "config file; none means the defaults", str, None)
    found.add("--kubeconfig", "kubeconfig; none means the cluster we run in, then $KUBECONFIG", str, None)
    found.add("--listen", "where the API server calls, by HTTPS", address, "0.0.0.0:9443")
    found.add("--cert-dir", "folder with tls.crt, tls.key and ca.crt; made there, or in a Secret, if absent", str, None)
    found.add("--status-listen", "where /healthz, /readyz and /metrics are", address, "0.0.0.0:9464")
    found.add("--host", "more names for a certificate of our own making, separated by commas", str, "")
    found.add("--service", "our Service, for its DNS names", str, "tessera-webhook")
    found.add("--namespace", "our namespace; none means the service account's", str, None)
    found.add("--certificate-secret", "Secret for a certificate of our own making", str, "tessera-webhook-certificate")
    found.add("--webhook-configuration", "webhook configurations whose caBundle is ours", str, "tessera-webhook")
    found.add("--drain", "seconds to serve on after SIGTERM", _seconds, DRAIN)
    return found


async def serve(options: Namespace, signals: Signals, *, clock: Clock, environ: Mapping[str, str] = os.environ) -> None:
    """Serve until the signals say stop.

    Args:
        options: as `flags` reads them.
        signals: what the outside asks.
        clock: of this machine.
        environ: the process environment.

    Raises:
        ConfigError: the config file is refused.
        CertificateError: there is no certificate and none can be made.
        ConnectionConfigError: the API server's address or credentials can't be read.
        OSError: an address is taken.
    """
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    config = ConfigFile(options.config, lambda text: parse(text, dialects=OPTIONS), registry=registry)
    signals.on_hangup(config.reload)
    clock = ServerClock(clock)
    show_clock(clock, registry)
    async with AsyncExitStack() as stack:
        client = _client(options, environ, clock)
        nodes = None
        if client is not None:
            await stack.enter_async_context(client)
            nodes = _nodes(client, config.current.names, clock)
        paths = Paths(config.current, metrics, capacity=unknown_capacity if nodes is None else _capacity(nodes, config))
        config.subscribe(paths.take)
        certificates = _certificates(options, environ, client, clock=clock, metrics=metrics)
        checks = {
            "certificate": certificates.problem,
            "draining": lambda: "stopping" if signals.stop.is_set() else None,
        }
        status = await stack.enter_async_context(StatusServer(options.status_listen, checks, registry))
        stop = asyncio.create_task(signals.stop.wait())
        stack.callback(stop.cancel)
        if not await _first_certificate(certificates, stop, clock=clock):
            return
        server = await stack.enter_async_context(
            AdmissionServer(
                options.listen,
                context=certificates.context,
                handlers=paths.handlers,
                metrics=metrics,
                clock=clock,
            )
        )
        _log.info("listening on %s, status %s", server.address, status.address)
        jobs = [config.follow(), certificates.follow(), watch_loop(metrics)]
        if client is not None:
            bundle = CaBundle(client, name=options.webhook_configuration, metrics=metrics)
            jobs.append(_keep_bundle(bundle, certificates))
        if nodes is not None:
            jobs.append(nodes.run())
        tasks = [asyncio.create_task(job) for job in jobs]
        # What is there now stays: the collector need not look at it again, and its pauses stay short.
        gc.collect()
        gc.freeze()
        try:
            done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()  # none of them ends by itself: the fault is ours, and a new process is the remedy
            server.drain()
            await clock.sleep(options.drain)
            await server.stop()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def names_of_service(options: Namespace, namespace: str) -> tuple[str, ...]:
    """By which names clients may call us: our Service's, loopback, the listening address and what the flags add."""
    service, listen = f"{options.service}.{namespace}", options.listen
    own = [f"{service}.svc", f"{service}.svc.cluster.local", service, "localhost", "127.0.0.1", "::1"]
    if listen.host not in ("0.0.0.0", "::", ""):  # noqa: S104  compared, not bound
        own.append(listen.host)
    own += [name.strip() for name in options.host.split(",") if name.strip()]
    return tuple(dict.fromkeys(own))


def _client(options: Namespace, environ: Mapping[str, str], clock: ServerClock) -> ApiClient | None:
    """A client where we are told of an API server; a kubeconfig that merely lies in the home folder does not count."""
    if not (options.kubeconfig or environ.get("KUBERNETES_SERVICE_HOST") or environ.get("KUBECONFIG")):
        return None
    connection = connect(options.kubeconfig, environ=environ, clock=clock)
    rng = Random()  # noqa: S311  jitter
    return ApiClient(connection, clock=clock, rng=rng, user_agent="tessera-webhook", dates=clock.heard)


def _nodes(client: ApiClient, names: Names, clock: Clock) -> WatchCache[GpuNode]:
    """A copy of the nodes that share GPUs; it fills by itself, and nothing waits for it."""
    decoder = msgspec.json.Decoder(GpuNode)
    labels = f"{names.node_sharing}=true"
    return WatchCache(client, NODES, decoder, clock=clock, rng=Random(), labels=labels)  # noqa: S311  jitter


def _capacity(nodes: WatchCache[GpuNode], config: ConfigFile) -> Callable[[Shape], str]:
    capacity = Capacity(config.current.names, synced=nodes.synced.is_set)
    nodes.subscribe(capacity.changed)
    return capacity.warning


def _certificates(
    options: Namespace, environ: Mapping[str, str], client: ApiClient | None, *, clock: Clock, metrics: Metrics
) -> Certificates:
    """A mounted pair first; else one of our own, in a Secret where replicas have to share it, else in the folder."""
    mounted = DirectoryStore(options.cert_dir) if options.cert_dir else None
    in_cluster = bool(environ.get("KUBERNETES_SERVICE_HOST")) and not options.kubeconfig
    namespace = options.namespace or _own_namespace()
    own: Store | None = mounted
    if client is not None and (in_cluster or mounted is None):
        own = SecretStore(client, namespace=namespace, name=options.certificate_secret)
    return Certificates(
        mounted=mounted, own=own, names=names_of_service(options, namespace), clock=clock, metrics=metrics
    )


async def _first_certificate(certificates: Certificates, stop: asyncio.Task[object], *, clock: Clock) -> bool:
    """Get a certificate, however long the API server is away; False where we are stopped before."""
    while not stop.done():
        try:
            await certificates.load()
        except KubeError as error:
            _log.warning("no certificate yet: %s", error)
        else:
            return True
        pause = asyncio.ensure_future(clock.sleep(RETRY))
        await asyncio.wait([pause, stop], return_when=asyncio.FIRST_COMPLETED)
        pause.cancel()
    return False


async def _keep_bundle(bundle: CaBundle, certificates: Certificates) -> None:
    """Keep the caBundle right: whenever the certificate changes, and now and then in case somebody else changed it."""
    changed = asyncio.Event()
    certificates.subscribe(changed.set)
    while True:
        changed.clear()
        await bundle.ensure(certificates.bundle)
        try:
            async with asyncio.timeout(POLL):
                await changed.wait()
        except TimeoutError:
            continue


def _own_namespace() -> str:
    try:
        with open(os.path.join(SERVICE_ACCOUNT_DIR, "namespace"), encoding="ascii") as file:
            return file.read(64).strip() or "tessera-system"
    except (OSError, UnicodeDecodeError):
        return "tessera-system"


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 600:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    raise SystemExit(main())
