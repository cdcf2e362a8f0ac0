"""The fake as tests and the demo use it: an async context manager with an address and a way into its store."""

from __future__ import annotations

import json
import os
import secrets
import ssl
import tempfile
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from aiohttp import web

from tessera.testing.apiserver import metadata
from tessera.testing.apiserver.access import ADMIN, Authorize, User
from tessera.testing.apiserver.admission import Admission, MatchCondition
from tessera.testing.apiserver.binding import PodActions
from tessera.testing.apiserver.defaults import fill_in
from tessera.testing.apiserver.faults import Faults
from tessera.testing.apiserver.http import Handled, Handler
from tessera.testing.apiserver.lists import Lister
from tessera.testing.apiserver.registry import Registry
from tessera.testing.apiserver.resources import RESOURCES, Catalog, Resource
from tessera.testing.apiserver.store import HISTORY, Store
from tessera.testing.apiserver.tree import Object, copy, own, text
from tessera.testing.apiserver.watchers import Watcher

if TYPE_CHECKING:
    from tessera.testing.apiserver.certificates import Authority

_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")


class FakeApiServer:
    """A kube-apiserver in this process.

    Attributes:
        faults: how it misbehaves; see `tessera.testing.apiserver.faults`.
        url: where it listens, once started.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: bool = False,
        anonymous: User | None = ADMIN,
        authorize: Authorize | None = None,
        services: Mapping[str, str] | None = None,
        proxied_pods: Mapping[str, str] | None = None,
        match_condition: MatchCondition | None = None,
        resources: Iterable[Resource] = (),
        history: int = HISTORY,
        bookmark_interval: float = 60.0,
        copies_binding_labels: bool = False,
    ) -> None:
        """Listen nowhere yet.

        Args:
            host: address to listen on.
            port: 0 for a free one.
            tls: serve HTTPS, by a certificate authority of its own (needs `cryptography`).
            anonymous: who a request without credentials comes from; None refuses it.
            authorize: decides what users may do; without it everybody may do everything.
            services: address (``host:port``) by ``namespace/name`` for webhooks that are named by Service.
            proxied_pods: address by ``namespace/name:port`` of pods that can be asked through pods/proxy.
            match_condition: decides on webhooks' match conditions; without it they count as met.
            resources: to serve beside the built-in ones.
            history: changes of one resource that a watch can go back.
            bookmark_interval: seconds between bookmarks on a quiet watch.
            copies_binding_labels: a Binding's labels go to the pod, as from 1.35 on.
        """
        self._host = host
        self._port = port
        self._tls = tls
        self._anonymous = anonymous
        self._tokens: dict[str, User] = {}
        self._names = 0
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._authority: Authority | None = None
        self._runner: web.ServerRunner | None = None
        self.url = ""
        self.faults = Faults()
        self._store = Store(history=history)
        self._catalog = Catalog((*RESOURCES, *resources))
        self._admission = Admission(self._store, services=services, match_condition=match_condition)
        self._registry = Registry(self._store, self._catalog, self._admission)
        self._lister = Lister(self._store)
        self._handler = Handler(
            registry=self._registry,
            actions=PodActions(self._registry, self._admission, copies_labels=copies_binding_labels),
            lister=self._lister,
            faults=self.faults,
            authenticate=self._authenticate,
            authorize=authorize,
            bookmark_interval=bookmark_interval,
            proxied_pods={} if proxied_pods is None else proxied_pods,
        )
        for name in _NAMESPACES:
            self.add_namespace(name)

    async def __aenter__(self) -> Self:
        """Start to listen."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()
        self.close()

    async def start(self) -> None:
        """Start to listen; again after `stop`, on the same port and with the same objects."""
        context = self._server_context() if self._tls else None
        server = web.Server(self._handler, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, ssl_context=context, backlog=1024)
        await site.start()
        # What the site was given may have been port 0.
        self._port = int(self._runner.addresses[0][1])
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"{'https' if self._tls else 'http'}://{host}:{self._port}"

    async def stop(self) -> None:
        """Close every connection; the objects stay."""
        self.faults.clear()
        for watcher in tuple(self._handler.watchers):
            watcher.drop()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self._handler.finish(1.0)
        await self._admission.close()

    def close(self) -> None:
        """Remove the certificates; for a server that was started without a context manager."""
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = self._authority = None

    # Credentials.

    @property
    def ca_file(self) -> str | None:
        """Path of the CA certificate, None without TLS."""
        return None if self._authority is None else self._authority.ca_file

    def token(self, user: User) -> str:
        """Make a bearer token that stands for a user."""
        token = secrets.token_urlsafe(24)
        self._tokens[token] = user
        return token

    def revoke(self, token: str) -> None:
        """Stop accepting a token."""
        self._tokens.pop(token, None)

    def kubeconfig(self, path: str | os.PathLike[str], *, user: User = ADMIN, certificate: bool = False) -> str:
        """Write a kubeconfig for a user.

        Args:
            path: where to.
            user: who; a new token is made each time.
            certificate: a client certificate instead of a token (needs TLS).

        Returns:
            The path.
        """
        credentials: Object = {}
        if certificate:
            if self._authority is None:
                raise ValueError("client certificates need tls=True, and a server that has been started")
            self._names += 1
            pair = self._authority.client(user.name, user.groups, file=f"client-{self._names}")
            credentials = {"client-certificate": pair.cert, "client-key": pair.key}
        else:
            credentials = {"token": self.token(user)}
        cluster: Object = {"server": self.url}
        if self.ca_file is not None:
            cluster["certificate-authority"] = self.ca_file
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": cluster}],
            "users": [{"name": user.name, "user": credentials}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": user.name}}],
            "current-context": "fake",
        }
        target = os.fspath(path)
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            # JSON is YAML.
            json.dump(config, file, indent=1)
        return target

    # The way into the store, past admission and validation.

    def get(self, plural: str, name: str, namespace: str = "") -> Object | None:
        """Return a copy of an object, None where there is none."""
        found = self._store.get(self._catalog.named(plural).shelf, (namespace, name))
        return None if found is None else copy(found.tree)

    def objects(self, plural: str, namespace: str = "") -> list[Object]:
        """Return copies of all objects of a resource."""
        found = sorted(self._store.shelf(self._catalog.named(plural).shelf).objects.items())
        return [copy(stored.tree) for key, stored in found if namespace in ("", key[0])]

    def put(self, plural: str, tree: Object) -> Object:
        """Create or replace an object as it is, but for what the server sets, and return a copy of it."""
        resource = self._catalog.named(plural)
        made = copy(tree)
        made = {"apiVersion": resource.api_version, "kind": resource.kind, **made}
        key = (text(made, "metadata", "namespace"), text(made, "metadata", "name"))
        old = self._store.get(resource.shelf, key)
        fill_in(plural, made)
        if not text(made, "metadata", "uid"):
            if old is None:
                metadata.begin(made)
            else:
                metadata.settle(made, old.tree)
        return copy(self._store.write(resource.shelf, made).tree)

    def load(self, manifest: Object) -> Object:
        """Create or replace an object of any kind that is served, found by its apiVersion and kind; see `put`.

        Raises:
            KeyError: no resource has that kind.
        """
        wanted = (text(manifest, "apiVersion"), text(manifest, "kind"))
        for resource in self._catalog.resources:
            if (resource.api_version, resource.kind) == wanted:
                return self.put(resource.plural, manifest)
        raise KeyError(f"no resource of apiVersion {wanted[0]!r} and kind {wanted[1]!r} is served")

    def remove(self, plural: str, name: str, namespace: str = "") -> None:
        """Take an object away at once, as garbage collection does: no mark, no grace, no finalizers.

        Raises:
            KeyError: there is none.
        """
        self._store.remove(self._catalog.named(plural).shelf, (namespace, name))

    def add_namespace(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """Add a namespace with its default service account."""
        tree: Object = {"metadata": {"name": name}}
        if labels:
            own(tree, "metadata")["labels"] = dict(labels)
        self.put("namespaces", tree)
        self._registry.add_service_account(name)

    def add_node(
        self, name: str, *, labels: Mapping[str, str] | None = None, allocatable: Mapping[str, str] | None = None
    ) -> Object:
        """Add a Node that is Ready."""
        amounts: Object = {"cpu": "32", "memory": "128Gi", "pods": "110", **(allocatable or {})}
        tree: Object = {
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
            "spec": {},
            "status": {
                "capacity": amounts,
                "allocatable": copy(amounts),
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            },
        }
        return self.put("nodes", tree)

    @property
    def date(self) -> Callable[[], str] | None:
        """What the Date header of every answer says; None is the machine's own time. Objects are stamped by the latter."""
        return self._handler.date

    @date.setter
    def date(self, says: Callable[[], str] | None) -> None:
        self._handler.date = says

    @property
    def version(self) -> int:
        """The newest resourceVersion."""
        return self._store.version

    # Watching the watchers, and disturbing them.

    @property
    def requests(self) -> list[Handled]:
        """The latest requests about resources, oldest first; an open watch is not among them yet."""
        return list(self._handler.handled)

    def forget_requests(self) -> None:
        """Begin `requests` anew."""
        self._handler.handled.clear()

    def watches(self, plural: str = "") -> int:
        """Count the open watches of a resource, or all."""
        return len(self._watchers(plural))

    async def wait_for_watches(self, plural: str = "", count: int = 1) -> None:
        """Wait until at least so many watches of a resource are open."""
        while self.watches(plural) < count:
            await self._handler.watches_changed()

    async def wait_for_no_watches(self, plural: str = "") -> None:
        """Wait until no watch of a resource, or none at all, is open."""
        while self.watches(plural):
            await self._handler.watches_changed()

    def drop_watches(self, plural: str = "") -> None:
        """Break the connections of all watches of a resource, or all."""
        for watcher in self._watchers(plural):
            watcher.drop()

    def end_watches(self, plural: str = "") -> None:
        """End all watches of a resource, or all, in good order."""
        for watcher in self._watchers(plural):
            watcher.end()

    def freeze_watches(self, plural: str = "", *, frozen: bool = True) -> None:
        """Let the open watches fall silent, as behind a connection that has died without a word; or go on."""
        for watcher in self._watchers(plural):
            watcher.freeze(frozen)

    def bookmark(self, plural: str = "") -> None:
        """Send a bookmark on all watches that understand them."""
        for watcher in self._watchers(plural):
            watcher.bookmark()

    def compact(self) -> None:
        """Forget history: watches from earlier versions and continue tokens get 410."""
        self._store.compact()
        self._lister.forget()

    def _watchers(self, plural: str) -> list[Watcher]:
        shelf = self._catalog.named(plural).shelf if plural else ""
        return [watcher for watcher in self._handler.watchers if shelf in ("", watcher.query.shelf)]

    def _authenticate(self, http: web.BaseRequest) -> User | None:
        given = http.headers.get("Authorization")
        if given is not None:
            kind, _, token = given.partition(" ")
            return self._tokens.get(token.strip()) if kind.lower() == "bearer" else None
        if http.transport is not None and (peer := http.transport.get_extra_info("peercert")):
            subject = [pair for part in peer.get("subject", ()) for pair in part]
            name = next((value for key, value in subject if key == "commonName"), "")
            groups = tuple(value for key, value in subject if key == "organizationName")
            return User(name=name, groups=groups)
        return self._anonymous

    def _server_context(self) -> ssl.SSLContext:
        # Needs cryptography, which a plain http server doesn't.
        from tessera.testing.apiserver.certificates import Authority  # noqa: PLC0415

        if self._authority is None:
            self._directory = tempfile.TemporaryDirectory(prefix="fake-apiserver-")
            self._authority = Authority(self._directory.name)
        pair = self._authority.server((self._host, "localhost", "kubernetes.default.svc"))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._authority.ca_file)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_cert_chain(pair.cert, pair.key)
        return context
