"""How wrong a machine's clock is, for all to see: one metric, the same in every program that asks the API server.

The comparison itself is `tessera.kube.servertime`, which commands for people use too, and they serve no metrics.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from tessera.kube.servertime import ServerClock


def show_clock(clock: ServerClock, registry: CollectorRegistry) -> None:
    """Serve `clock.ahead` as ``tessera_clock_ahead_seconds``."""
    Gauge(
        "tessera_clock_ahead_seconds",
        "Seconds by which this machine's clock is ahead of the API server's, to about two; 0 while that is not known.",
        registry=registry,
    ).set_function(lambda: clock.ahead)
