"""What the node agent counts; what NVML measures is counted where it is measured."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0)


class NodeMetrics:
    """The counters of one agent."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Register them; without a registry they count for nobody."""
        self.seconds = Histogram(
            "tessera_node_kubelet_call_seconds",
            "How long the kubelet waited for an answer.",
            ["method"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.calls = Counter(
            "tessera_node_kubelet_calls",
            "Calls of the kubelet, by method and outcome (ok, refused).",
            ["method", "outcome"],
            registry=registry,
        )
        self.identified = Counter(
            "tessera_node_slices",
            "Containers that got a slice: planned (on their plan's GPUs), drift (on others), unknown (pod could not be told).",
            ["kind"],
            registry=registry,
        )
        self.registrations = Counter(
            "tessera_node_registrations", "Registrations with the kubelet.", ["resource"], registry=registry
        )
        self.ledger_failures = Gauge(
            "tessera_node_ledger_behind", "1 while the ledger can't be written to disk.", registry=registry
        )
        self.lingering = Gauge(
            "tessera_node_lingering_pods",
            "Pods that are gone as objects and still seen on the node.",
            registry=registry,
        )
        self.held = Gauge(
            "tessera_node_gpu_units",
            "Memory units of a GPU: total, held by slices.",
            ["gpu", "kind"],
            registry=registry,
        )
