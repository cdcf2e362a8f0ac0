"""HTTP in front of the registry: what a request is, who sends it, and how the answer looks.

One low-level aiohttp handler instead of a router: the paths of the API are regular, and thousands of pods are to be
created and bound in seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from aiohttp import web

from tessera.testing.apiserver import discovery, proxy, status
from tessera.testing.apiserver.access import Authorize, User
from tessera.testing.apiserver.apply import APPLY_PATCH, apply, read_applied
from tessera.testing.apiserver.binding import SUCCESS, PodActions
from tessera.testing.apiserver.call import Call, number, read_call
from tessera.testing.apiserver.faults import Cut, Faults, Seen
from tessera.testing.apiserver.lists import Lister, ListQuery
from tessera.testing.apiserver.metadata import stamp
from tessera.testing.apiserver.patch import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, apply_patch
from tessera.testing.apiserver.registry import Outcome, Registry
from tessera.testing.apiserver.resources import Target
from tessera.testing.apiserver.selectors import parse
from tessera.testing.apiserver.tree import Object, copy, encode, text, texts
from tessera.testing.apiserver.watchers import Watcher, WatchQuery

_PATCHES: Final = [JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH]
_LONGEST_WATCH: Final = 3600
_REMEMBERED: Final = 5_000

Authenticate = Callable[[web.BaseRequest], User | None]


@dataclass(frozen=True, slots=True)
class Handled:
    """A request that was answered.

    Attributes:
        seen: the request.
        code: HTTP status; 0 where the connection was cut.
    """

    seen: Seen
    code: int


class Handler:
    """Answers requests."""

    def __init__(
        self,
        *,
        registry: Registry,
        actions: PodActions,
        lister: Lister,
        faults: Faults,
        authenticate: Authenticate,
        authorize: Authorize | None,
        bookmark_interval: float,
        proxied_pods: Mapping[str, str],
    ) -> None:
        """Answer from `registry`; `bookmark_interval` is in seconds, `proxied_pods` are addresses (see `proxy`)."""
        self._proxied_pods = proxied_pods
        self._registry = registry
        self._actions = actions
        self._lister = lister
        self._faults = faults
        self._authenticate = authenticate
        self._authorize = authorize
        self._bookmark_interval = bookmark_interval
        self.date: Callable[[], str] | None = None
        self.watchers: set[Watcher] = set()
        self.handled: deque[Handled] = deque(maxlen=_REMEMBERED)
        self._changed = asyncio.Event()
        self._writes: set[asyncio.Task[web.StreamResponse]] = set()

    async def __call__(self, http: web.BaseRequest) -> web.StreamResponse:
        """Answer one request.

        A client that goes away ends its watch, but not its write: what has been sent takes effect.
        """
        if http.method == "GET":
            return await self._respond(http)
        write = asyncio.create_task(self._respond(http))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        return await asyncio.shield(write)

    async def finish(self, seconds: float) -> None:
        """Let the writes under way come to their end, or cut them off after so many seconds."""
        if self._writes:
            _, late = await asyncio.wait(self._writes, timeout=seconds)
            for write in late:
                write.cancel()

    async def _respond(self, http: web.BaseRequest) -> web.StreamResponse:
        response = await self._answered(http)
        self._stamp(response)
        return response

    def _stamp(self, response: web.StreamResponse) -> None:
        if self.date is not None and not response.prepared:
            response.headers["Date"] = self.date()

    async def _answered(self, http: web.BaseRequest) -> web.StreamResponse:
        warnings: list[str] = []
        try:
            return await self._answer(http, warnings)
        except status.StatusError as error:
            response = _json(error.code, encode(error.body()))
            if error.retry_after:
                response.headers["Retry-After"] = str(error.retry_after)
            if error.code == 401:
                response.headers["WWW-Authenticate"] = 'Basic realm="kubernetes-master"'
            _warn(response, warnings)
            return response
        except _CutError:
            if http.transport is not None:
                http.transport.abort()
            return web.Response(status=500)

    async def watches_changed(self) -> None:
        """Wait until the next watch is opened or closed."""
        self._changed.clear()
        await self._changed.wait()

    async def _answer(self, http: web.BaseRequest, warnings: list[str]) -> web.StreamResponse:
        path = http.rel_url.raw_path
        if path in discovery.OPEN_PATHS:
            return web.Response(body=discovery.open_answer(path), content_type="application/json")
        user = self._authenticate(http)
        if user is None:
            raise status.unauthorized()
        if (found := discovery.answer(self._registry.catalog, path)) is not None:
            return _json(200, found)
        if http.method == "GET" and (asked := proxy.read(path)) is not None:
            return await self._proxied(asked, user, http)
        call = await read_call(http, self._registry.catalog, user, warnings)
        code = 0
        try:
            if self._authorize is not None and not self._authorize(user, call.seen.verb, call.target):
                raise call.not_allowed()
            cut = await self._faults.before(call.seen)
            if cut is Cut.BEFORE:
                raise _CutError
            response = await self._dispatch(call)
            if cut is Cut.AFTER:
                raise _CutError
            code = response.status
            _warn(response, warnings)
        except status.StatusError as error:
            code = error.code
            raise
        finally:
            self.handled.append(Handled(call.seen, code))
        return response

    async def _proxied(self, asked: proxy.Proxied, user: User, http: web.BaseRequest) -> web.StreamResponse:
        target = Target(self._registry.catalog.named("pods"), asked.namespace, asked.pod, "proxy")
        seen = Seen(
            verb="get", plural="pods", subresource="proxy", namespace=asked.namespace, name=asked.pod,
            path=http.rel_url.raw_path, user=user,
        )  # fmt: skip
        code = 0
        try:
            if self._authorize is not None and not self._authorize(user, "get", target):
                raise status.forbidden("", "pods", asked.pod, f'User "{user.name}" cannot get resource "pods/proxy"')
            if await self._faults.before(seen) is not None:
                raise _CutError
            self._registry.read(target)
            response = await proxy.answer(asked, self._proxied_pods)
            code = response.status
        except status.StatusError as error:
            code = error.code
            raise
        finally:
            self.handled.append(Handled(seen, code))
        return response

    async def _dispatch(self, call: Call) -> web.StreamResponse:
        target = call.target
        match call.seen.verb:
            case "get":
                face = self._registry.face(target.resource)
                return _json(200, face.object(self._registry.read(target)))
            case "list":
                return self._list(call)
            case "watch":
                return await self._watch(call)
            case "create":
                return await self._create(call)
            case "update":
                return await self._update(call)
            case "patch":
                return await self._patch(call)
            case "delete" if not target.subresource:
                return await self._delete(call)
            case "deletecollection":
                return await self._delete_collection(call)
        raise status.method_not_allowed(target.resource.group, target.resource.plural, call.http.method)

    def _list(self, call: Call) -> web.Response:
        target, query = call.target, call.query
        selector = parse(
            target.resource,
            label_selector=query.get("labelSelector", ""),
            field_selector=query.get("fieldSelector", ""),
        )
        asked = ListQuery(
            resource=target.resource,
            namespace=target.namespace,
            selector=selector,
            limit=number(query.get("limit", "0"), "limit"),
            rest=query.get("continue", ""),
            version=query.get("resourceVersion", ""),
        )
        return _json(200, self._lister.answer(asked, self._registry.face(target.resource)))

    async def _watch(self, call: Call) -> web.StreamResponse:
        target, query = call.target, call.query
        selector = parse(
            target.resource,
            label_selector=query.get("labelSelector", ""),
            field_selector=query.get("fieldSelector", "") + (f",metadata.name={target.name}" if target.name else ""),
        )
        watcher = Watcher(
            self._registry.store,
            WatchQuery(
                shelf=target.resource.shelf,
                face=self._registry.face(target.resource),
                namespace=target.namespace,
                selector=selector,
                bookmarks=query.get("allowWatchBookmarks") in ("true", "1"),
            ),
        )
        initial = query.get("sendInitialEvents")
        seconds = number(query.get("timeoutSeconds", "0"), "timeoutSeconds") or _LONGEST_WATCH
        self.watchers.add(watcher)
        self._changed.set()
        try:
            try:
                watcher.start(
                    query.get("resourceVersion", ""), send_initial=None if initial is None else initial == "true"
                )
            except status.StatusError as error:
                if error.code != 410 or self._faults.expired_as_status:
                    raise
                watcher.fail(error)
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            response.enable_chunked_encoding()
            self._stamp(response)
            await response.prepare(call.http)
            await self._stream(watcher, response, seconds)
        finally:
            watcher.stop()
            self.watchers.discard(watcher)
            self._changed.set()
        if watcher.dropped:
            raise _CutError
        return response

    async def _stream(self, watcher: Watcher, response: web.StreamResponse, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while True:
            now = loop.time()
            # Past its end a watch only sends what waits; a frozen one waits for as long as it is frozen.
            until = min(ends, now + self._bookmark_interval) if now < ends else None
            try:
                async with asyncio.timeout_at(until):
                    chunk = await watcher.next()
            except TimeoutError:
                watcher.bookmark()
                if loop.time() >= ends:
                    watcher.end()
                continue
            if not chunk:
                return
            try:
                await response.write(chunk)
            except ConnectionError:
                return

    async def _create(self, call: Call) -> web.Response:
        target = call.target
        tree = call.object()
        if target.resource.kind == "Binding":
            # The older way, POST .../bindings: the pod's name stands in the object.
            pods = self._registry.catalog.named("pods")
            target = Target(pods, target.namespace, text(tree, "metadata", "name"), "binding")
        request = call.request()
        if target.subresource == "binding":
            await self._actions.bind(replace(request, target=target), tree)
            return _json(201, SUCCESS)
        if target.subresource == "eviction":
            await self._actions.evict(request, tree)
            return _json(201, SUCCESS)
        if target.name:
            raise status.method_not_allowed(target.resource.group, target.resource.plural, "POST")
        return self._outcome(call, await self._registry.create(request, tree))

    def _check_changeable(self, target: Target) -> None:
        if target.subresource in ("binding", "eviction"):
            what = f"{target.resource.plural}/{target.subresource}"
            raise status.method_not_allowed(target.resource.group, what, "update")

    async def _update(self, call: Call) -> web.Response:
        self._check_changeable(call.target)
        tree = call.object()
        strategy = self._registry.strategy(call.target)

        def put(_current: Object) -> Object:
            return copy(tree)

        outcome = await self._registry.update(call.request(), put, creates=strategy.created_on_update)
        return self._outcome(call, outcome)

    async def _patch(self, call: Call) -> web.Response:
        self._check_changeable(call.target)
        kind = call.http.headers.get("Content-Type", "").partition(";")[0]
        if kind not in _PATCHES:
            raise status.unsupported_media_type(_PATCHES)
        resource = call.target.resource
        request = call.request()
        if kind == APPLY_PATCH:
            applied = read_applied(call.body)
            force = call.query.get("force") in ("true", "1")

            def merge(current: Object) -> Object:
                now = stamp()
                manager = request.field_manager
                return apply(resource, current, copy(applied), manager=manager, force=force, now=now)

            return self._outcome(call, await self._registry.update(request, merge, creates=True))

        def edit(current: Object) -> Object:
            return apply_patch(resource, kind, current, call.body)

        return self._outcome(call, await self._registry.update(request, edit))

    async def _delete(self, call: Call) -> web.Response:
        options = call.options()
        request = replace(call.request(), dry_run=call.request().dry_run or "All" in texts(options, "dryRun"))
        return self._outcome(call, await self._registry.delete(request, options))

    async def _delete_collection(self, call: Call) -> web.Response:
        target = call.target
        selector = parse(
            target.resource,
            label_selector=call.query.get("labelSelector", ""),
            field_selector=call.query.get("fieldSelector", ""),
        )
        options = call.options()
        request = call.request()
        shelf = self._registry.store.shelf(target.resource.shelf)
        face = self._registry.face(target.resource)
        gone: list[bytes] = []
        for stored in list(shelf.objects.values()):
            if target.namespace and stored.key[0] != target.namespace:
                continue
            if selector is None or selector(stored.tree):
                one = Target(target.resource, stored.key[0], stored.key[1])
                await self._registry.delete(replace(request, target=one), options)
                gone.append(face.item(stored))
        kind, version = f"{target.resource.kind}List", target.resource.api_version
        head = encode({"kind": kind, "apiVersion": version, "metadata": {}})
        return _json(200, head[:-1] + b',"items":[' + b",".join(gone) + b"]}")

    def _outcome(self, call: Call, outcome: Outcome) -> web.Response:
        if outcome.stored is None:
            return _json(outcome.code, encode(outcome.status))
        return _json(outcome.code, self._registry.face(call.target.resource).object(outcome.stored))


class _CutError(Exception):
    """The connection is to be broken off."""


def _json(code: int, body: bytes) -> web.Response:
    return web.Response(status=code, body=body, content_type="application/json")


def _warn(response: web.StreamResponse, warnings: list[str]) -> None:
    if response.prepared:
        return
    for warning in dict.fromkeys(warnings):
        shown = warning.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ").replace("\r", " ")
        response.headers.add("Warning", f'299 - "{shown[:256]}"')
