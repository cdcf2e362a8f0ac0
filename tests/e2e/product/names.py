"""Names that the outside sees, written out here once more: a test that imports them from the product proves less."""

from __future__ import annotations

DOMAIN = "tessera.dev/"
UNITS, PERCENT, COMPUTE = (
    f"{DOMAIN}{name}" for name in ("gpu-memory.256Mi", "gpu-memory.percent", "gpu-compute.percent")
)
INVENTORY, PLAN, REQUEST, DRIFT, WAKE = (
    f"{DOMAIN}{name}" for name in ("inventory", "plan", "request", "drift", "wake")
)
NAMESPACE = "tessera-system"
