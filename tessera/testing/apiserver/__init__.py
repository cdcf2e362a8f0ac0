"""A fake kube-apiserver: the real one's behaviour where Tessera depends on it, in one asyncio process.

What it is for: tests, the demo and benchmarks on a machine without a cluster. What it does as the real server does
(1.34, read from its source; a later suite runs the same behaviour tests against a real one): resourceVersions and
optimistic concurrency, list with paging, watch with history, bookmarks and 410, the four kinds of patch, graceful
deletion and finalizers, binding and eviction, validation of extended resources, admission webhooks over TLS.

What it leaves out: CEL (policies are stored, not evaluated; match conditions only through a hook), OpenAPI schemas
(unknown fields are kept), conversion between versions, quota, garbage collection, NodeRestriction, RBAC (an `authorize`
hook stands in).
"""

from __future__ import annotations

from tessera.testing.apiserver.access import ADMIN, User, service_account
from tessera.testing.apiserver.faults import Cut, Fault, Hold, Seen, on
from tessera.testing.apiserver.resources import Resource, Target
from tessera.testing.apiserver.server import FakeApiServer
from tessera.testing.apiserver.status import StatusError

__all__ = [
    "ADMIN",
    "Cut",
    "FakeApiServer",
    "Fault",
    "Hold",
    "Resource",
    "Seen",
    "StatusError",
    "Target",
    "User",
    "on",
    "service_account",
]
