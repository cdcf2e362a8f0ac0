"""Which webhooks are asked about a request, in which order, and again after a change (reinvocationPolicy).

Follows apiserver's webhook dispatchers: mutating ones one after the other in the order of their configurations' names,
validating ones all at once. Match conditions are CEL, which isn't evaluated here: they count as met unless the test
passes a function that decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from tessera.testing.apiserver import status
from tessera.testing.apiserver.decoding import typed
from tessera.testing.apiserver.defaults import fill_in
from tessera.testing.apiserver.patch import json_patch
from tessera.testing.apiserver.selectors import matches_label_selector
from tessera.testing.apiserver.store import Store
from tessera.testing.apiserver.tree import Object, copy, labels, rows, table, text, texts
from tessera.testing.apiserver.webhooks import Attempt, CallError, WebhookCaller, review_request

_ADMISSION_GROUP: Final = "admissionregistration.k8s.io"
_MUTATING: Final = f"mutatingwebhookconfigurations.{_ADMISSION_GROUP}"
_VALIDATING: Final = f"validatingwebhookconfigurations.{_ADMISSION_GROUP}"

MatchCondition: TypeAlias = Callable[[str, Object], bool]
"""Decides whether a CEL expression holds for the request part of a review."""


@dataclass(frozen=True, slots=True)
class _Hook:
    label: str
    spec: Object


class Admission:
    """The webhooks registered with the fake."""

    def __init__(
        self, store: Store, *, services: Mapping[str, str] | None = None, match_condition: MatchCondition | None = None
    ) -> None:
        """Ask the webhooks that are in the store.

        Args:
            store: where their configurations are.
            services: address (``host:port``) by ``namespace/name`` for configurations that name a Service.
            match_condition: decides on match conditions; without it they count as met.
        """
        self._store = store
        self._match_condition = match_condition
        self._caller = WebhookCaller(services or {})

    async def close(self) -> None:
        """Close the connections to webhooks."""
        await self._caller.close()

    async def mutate(
        self, attempt: Attempt, tree: Object | None, *, builtin: Callable[[Object], None] | None = None
    ) -> Object | None:
        """Let in-tree plugins, then mutating webhooks change an object.

        Args:
            attempt: what is tried.
            tree: the object; may be changed. None for DELETE.
            builtin: the in-tree plugins of this resource; they run again when a webhook has changed something.

        Raises:
            StatusError: denied, or a webhook with failurePolicy Fail could not be called.
        """
        if builtin is not None and tree is not None:
            builtin(tree)
        hooks = list(self._hooks(_MUTATING, attempt))
        if not hooks:
            return tree
        previous: set[str] = set()
        again: set[str] = set()
        changed_once = False
        for hook in hooks:
            if not self._wants(hook, attempt, tree):
                continue
            tree, changed = await self._mutate_by(hook, attempt, tree)
            if changed:
                changed_once = True
                again |= previous
                previous.clear()
            if text(hook.spec, "reinvocationPolicy") == "IfNeeded":
                previous.add(hook.label)
        if not changed_once or tree is None:
            return tree
        if builtin is not None:
            before = copy(tree)
            builtin(tree)
            if tree != before:
                again |= previous
        for hook in hooks:
            if hook.label in again and self._wants(hook, attempt, tree):
                tree, _ = await self._mutate_by(hook, attempt, tree)
        return tree

    async def validate(self, attempt: Attempt, tree: Object | None) -> None:
        """Ask the validating webhooks, all at once.

        Raises:
            StatusError: denied, or a webhook with failurePolicy Fail could not be called.
        """
        hooks = [hook for hook in self._hooks(_VALIDATING, attempt) if self._wants(hook, attempt, tree)]
        if not hooks:
            return
        results = await asyncio.gather(*(self._validate_by(hook, attempt, tree) for hook in hooks))
        for error in results:
            if error is not None:
                raise error

    async def _mutate_by(self, hook: _Hook, attempt: Attempt, tree: Object | None) -> tuple[Object | None, bool]:
        try:
            verdict = await self._caller.call(hook.spec, attempt, tree, mutating=True)
        except CallError as error:
            if _ignores(hook):
                return tree, False
            raise _failed(hook, error) from error
        if not verdict.patch:
            return tree, False
        if tree is None:
            name = text(hook.spec, "name")
            raise status.internal(
                f'admission webhook "{name}" attempted to modify the object, which is not supported for this operation'
            )
        resource = attempt.target.resource
        try:
            patched = json_patch(copy(tree), verdict.patch)
        except status.StatusError as error:
            causes = rows(error.details, "causes")
            raise status.internal(text(causes[0], "message") if causes else error.message) from error
        patched = typed(resource, patched)
        fill_in(resource.plural, patched)
        return patched, patched != tree

    async def _validate_by(self, hook: _Hook, attempt: Attempt, tree: Object | None) -> status.StatusError | None:
        try:
            await self._caller.call(hook.spec, attempt, tree, mutating=False)
        except CallError as error:
            return None if _ignores(hook) else _failed(hook, error)
        except status.StatusError as error:
            return error
        return None

    def _hooks(self, shelf: str, attempt: Attempt) -> Iterator[_Hook]:
        if attempt.target.resource.group == _ADMISSION_GROUP:
            # Webhooks can't lock out the way to repair them.
            return
        for (_, name), stored in sorted(self._store.shelf(shelf).objects.items()):
            for index, spec in enumerate(rows(stored.tree, "webhooks")):
                if any(_rule_matches(rule, attempt) for rule in rows(spec, "rules")):
                    yield _Hook(f"{name}/{text(spec, 'name')}/{index}", spec)

    def _wants(self, hook: _Hook, attempt: Attempt, tree: Object | None) -> bool:
        if not self._namespace_matches(table(hook.spec, "namespaceSelector"), attempt, tree):
            return False
        selector = table(hook.spec, "objectSelector")
        if selector and not any(
            matches_label_selector(selector, labels(candidate, "metadata", "labels"))
            for candidate in (tree, attempt.old)
            if candidate is not None
        ):
            return False
        conditions = rows(hook.spec, "matchConditions")
        if not conditions or self._match_condition is None:
            return True
        request = review_request("", attempt, tree)
        return all(self._match_condition(text(condition, "expression"), request) for condition in conditions)

    def _namespace_matches(self, selector: Object, attempt: Attempt, tree: Object | None) -> bool:
        target = attempt.target
        if not selector:
            return True
        if target.resource.plural == "namespaces":
            return matches_label_selector(selector, labels(tree or attempt.old, "metadata", "labels"))
        if not target.namespace:
            return True
        found = self._store.get("namespaces", ("", target.namespace))
        if found is None:
            raise status.not_found("", "namespaces", target.namespace)
        return matches_label_selector(selector, labels(found.tree, "metadata", "labels"))


def _rule_matches(rule: Object, attempt: Attempt) -> bool:
    target = attempt.target
    resource = target.resource
    scope = text(rule, "scope") or "*"
    clustered = not target.namespace or resource.plural == "namespaces"
    if scope == ("Namespaced" if clustered else "Cluster"):
        return False
    if not {"*", attempt.operation} & set(texts(rule, "operations")):
        return False
    if not {"*", resource.group} & set(texts(rule, "apiGroups")):
        return False
    if not {"*", resource.version} & set(texts(rule, "apiVersions")):
        return False
    for wanted in texts(rule, "resources"):
        plural, _, subresource = wanted.partition("/")
        if plural in ("*", resource.plural) and subresource in ("*", target.subresource):
            return True
    return False


def _ignores(hook: _Hook) -> bool:
    return text(hook.spec, "failurePolicy") == "Ignore"


def _failed(hook: _Hook, error: CallError) -> status.StatusError:
    return status.internal(f'failed calling webhook "{text(hook.spec, "name")}": {error}')
