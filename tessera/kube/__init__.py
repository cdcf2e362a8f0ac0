"""The only door to the API server: requests, watch caches, events, leases.

Requests go by aiohttp with raw bytes decoded into msgspec structs of the caller's choice; the `kubernetes` package is
imported by `tessera.kube.config` alone, and there only where a kubeconfig is used. Nothing is re-exported here: a part
imports what it uses, and pays for no more.
"""
