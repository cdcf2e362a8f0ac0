"""The verbs on stored objects, with everything that happens between a request and the write.

The order is the real server's (apiserver/pkg/registry/generic/registry/store.go): decode and default, mutating
admission, what the server sets itself, validation, validating admission, then the write, which fails or starts over
where the object has changed meanwhile. Between the last look at an object and the write nothing waits, so two requests
can't both win.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from tessera.testing.apiserver import metadata, status
from tessera.testing.apiserver.access import User
from tessera.testing.apiserver.admission import Admission
from tessera.testing.apiserver.deletion import delete_now, grace_of
from tessera.testing.apiserver.faces import Face
from tessera.testing.apiserver.pods import PodPartStrategy, PodStatusStrategy, PodStrategy, admit_pod, check_pod
from tessera.testing.apiserver.resources import Catalog, Resource, Target
from tessera.testing.apiserver.store import Store, Stored
from tessera.testing.apiserver.strategy import StatusStrategy, Strategy, is_deleting
from tessera.testing.apiserver.tree import Object, copy, encode, own, text, texts, whole
from tessera.testing.apiserver.webhooks import Attempt

_TRIES: Final = 8

Edit: TypeAlias = Callable[[Object], Object]
"""Makes the object that a client wants from a copy of what is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One write, as HTTP understood it.

    Attributes:
        target: about what.
        user: who.
        dry_run: everything but the write.
        field_manager: who owns the fields, for the options that webhooks see.
        warnings: what the user is to be told.
    """

    target: Target
    user: User
    dry_run: bool = False
    field_manager: str = ""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a write answers: an object, or the Status of a deletion."""

    code: int
    stored: Stored | None = None
    status: Object | None = None


class Registry:
    """Writes objects."""

    def __init__(self, store: Store, catalog: Catalog, admission: Admission) -> None:
        """Write to `store`, asking `admission`."""
        self.store = store
        self.catalog = catalog
        self._admission = admission
        self._faces = {(r.group, r.plural): Face(r) for r in catalog.resources}
        self._strategies: dict[tuple[str, str, str], Strategy] = {}

    def face(self, resource: Resource) -> Face:
        """Return how a resource shows its objects."""
        return self._faces[resource.group, resource.plural]

    def read(self, target: Target) -> Stored:
        """Return one object.

        Raises:
            StatusError: 404.
        """
        found = self.store.get(target.resource.shelf, (target.namespace, target.name))
        if found is None:
            raise status.not_found(target.resource.group, target.resource.plural, target.name)
        return found

    async def create(self, request: Request, tree: Object) -> Outcome:
        """Create an object.

        Args:
            request: whose and where.
            tree: what the client sent; may be changed.

        Raises:
            StatusError: it is not created.
        """
        target = request.target
        resource = target.resource
        tree = metadata.decoded(self.face(resource), target, tree)
        metadata.wipe(tree)
        self._check_namespace(target)
        if text(tree, "metadata", "resourceVersion") not in ("", "0"):
            raise status.StatusError(500, "", "resourceVersion should not be set on objects to be created")
        named = Target(resource, target.namespace, text(tree, "metadata", "name"))
        attempt = self.attempt(request, "CREATE", named)
        tree = await self._admission.mutate(attempt, tree, builtin=self._builtin(resource)) or tree
        strategy = self.strategy(target)
        for _ in range(_TRIES):
            made = copy(tree)
            generated = metadata.begin(made)
            strategy.prepare_create(made)
            _check(resource, made, strategy.validate_create(made))
            if resource.plural == "pods":
                check_pod(made, self.store)
            named = Target(resource, target.namespace, text(made, "metadata", "name"))
            await self._admission.validate(self.attempt(request, "CREATE", named), made)
            there = self.store.get(resource.shelf, (target.namespace, named.name))
            if there is None:
                return Outcome(201, self._put(request, made))
            if not generated:
                deleting = is_deleting(there.tree)
                raise status.already_exists(resource.group, resource.plural, named.name, deleting=deleting)
        raise status.already_exists(resource.group, resource.plural, named.name)

    async def update(self, request: Request, edit: Edit, *, creates: bool = False) -> Outcome:
        """Change an object.

        Args:
            request: whose and which.
            edit: makes the wanted object from a copy of the current one; from an empty one where it creates.
            creates: make the object where there is none (server-side apply, and PUT of some kinds).

        Raises:
            StatusError: it is not changed.
        """
        target = request.target
        resource = target.resource
        strategy = self.strategy(target)
        key = (target.namespace, target.name)
        for _ in range(_TRIES):
            current = self.store.get(resource.shelf, key)
            if current is None:
                if creates and not target.subresource:
                    return await self.create(request, edit({}))
                raise status.not_found(resource.group, resource.plural, target.name)
            new = metadata.decoded(self.face(resource), target, edit(copy(self.face(resource).tree(current.tree))))
            metadata.check_version(resource, new, current, unconditional=strategy.unconditional)
            attempt = self.attempt(request, "UPDATE", target, old=current.tree)
            new = await self._admission.mutate(attempt, new) or new
            keep_generation(new, current.tree)
            strategy.prepare_update(new, current.tree)
            causes = metadata.forged(new, current.tree)
            metadata.settle(new, current.tree)
            _check(resource, new, [*causes, *strategy.validate_update(new, current.tree)])
            await self._admission.validate(attempt, new)
            if self.store.get(resource.shelf, key) is not current:
                continue
            ended = is_deleting(current.tree) and not texts(new, "metadata", "finalizers")
            if ended and not grace_of(current.tree):
                return Outcome(200, current if request.dry_run else self.store.remove(resource.shelf, key))
            if new == current.tree:
                return Outcome(200, current)
            return Outcome(200, self._put(request, new))
        raise status.conflict(resource.group, resource.plural, target.name, metadata.MODIFIED)

    async def delete(self, request: Request, options: Object) -> Outcome:
        """Delete an object, or begin to.

        Args:
            request: whose and which.
            options: the DeleteOptions.

        Raises:
            StatusError: it is not deleted.
        """
        target = request.target
        found = self.read(target)
        metadata.check_preconditions(target.resource, found, options)
        attempt = self.attempt(request, "DELETE", target, old=found.tree, options=options)
        await self._admission.mutate(attempt, None)
        await self._admission.validate(attempt, None)
        found = self.read(target)
        metadata.check_preconditions(target.resource, found, options)
        grace = whole(options, "gracePeriodSeconds")
        strategy = self.strategy(Target(target.resource))
        last, gone = delete_now(self.store, strategy, found, grace=grace, dry_run=request.dry_run)
        if target.resource.plural == "namespaces" and gone and not request.dry_run:
            self._empty(target.name)
        if not gone or strategy.returns_deleted:
            return Outcome(200, last)
        return Outcome(200, status=_deleted(target, last))

    def attempt(
        self,
        request: Request,
        operation: str,
        target: Target,
        *,
        old: Object | None = None,
        options: Object | None = None,
    ) -> Attempt:
        """Make what admission sees of a request."""
        resource = target.resource
        shown: Object = {"kind": f"{operation.capitalize()}Options", "apiVersion": "meta.k8s.io/v1", **(options or {})}
        if request.field_manager:
            shown["fieldManager"] = request.field_manager
        if request.dry_run:
            shown["dryRun"] = ["All"]
        return Attempt(
            operation=operation,
            target=target,
            kind=(resource.group, resource.version, resource.kind),
            user=request.user,
            options=shown,
            old=old,
            dry_run=request.dry_run,
            warnings=request.warnings,
        )

    def strategy(self, target: Target) -> Strategy:
        """Return what is special about writes to a resource or subresource."""
        resource, part = target.resource, target.subresource
        key = (resource.group, resource.plural, part)
        found = self._strategies.get(key)
        if found is None:
            if resource.plural == "pods":
                kinds = {"": PodStrategy, "status": PodStatusStrategy}
                kind = kinds.get(part)
                found = kind(resource) if kind is not None else PodPartStrategy(resource, part)
            else:
                found = StatusStrategy(resource) if part == "status" else Strategy(resource)
            self._strategies[key] = found
        return found

    def _check_namespace(self, target: Target) -> None:
        if not target.namespace:
            return
        found = self.store.get("namespaces", ("", target.namespace))
        if found is None:
            raise status.not_found("", "namespaces", target.namespace)
        if is_deleting(found.tree):
            problem = f"unable to create new content in namespace {target.namespace} because it is being terminated"
            raise status.forbidden(target.resource.group, target.resource.plural, target.name, problem)

    def _builtin(self, resource: Resource) -> Callable[[Object], None] | None:
        if resource.plural != "pods":
            return None
        return lambda tree: admit_pod(tree, self.store)

    def _empty(self, namespace: str) -> None:
        """Take away what is in a namespace, as its controller would."""
        for resource in self.catalog.resources:
            if resource.namespaced and not resource.stored_as:
                for stored in [s for s in self.store.shelf(resource.shelf).objects.values() if s.key[0] == namespace]:
                    self.store.remove(resource.shelf, stored.key)

    def _put(self, request: Request, tree: Object) -> Stored:
        if not request.dry_run:
            stored = self.store.write(request.target.resource.shelf, tree)
            if request.target.resource.plural == "namespaces" and stored.key[1]:
                self.add_service_account(stored.key[1])
            return stored
        return Stored(tree, self.store.version, encode(tree))

    def add_service_account(self, namespace: str) -> None:
        """Make the default service account of a namespace, as the controller manager does."""
        if self.store.get("serviceaccounts", (namespace, "default")) is None:
            tree: Object = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
            own(tree, "metadata")["namespace"] = namespace
            metadata.begin(tree)
            self.store.write("serviceaccounts", tree)


def keep_generation(new: Object, old: Object) -> None:
    """A client can't set the generation."""
    before = whole(old, "metadata", "generation")
    if before is None:
        own(new, "metadata").pop("generation", None)
    else:
        own(new, "metadata")["generation"] = before


def _check(resource: Resource, tree: Object, causes: list[status.Cause]) -> None:
    if causes:
        raise status.invalid(resource.group, resource.kind, text(tree, "metadata", "name"), causes)


def _deleted(target: Target, last: Stored) -> Object:
    details: Object = {"name": target.name, "kind": target.resource.plural, "uid": last.uid}
    if target.resource.group:
        details["group"] = target.resource.group
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
