"""Who a request comes from, and whether that may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from tessera.testing.apiserver.resources import Target
from tessera.testing.apiserver.tree import Json, Object


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who talks to the API server.

    Attributes:
        name: such as ``system:serviceaccount:tessera:node``.
        groups: ``system:authenticated`` is added by itself.
        uid: "" where there is none.
        extra: such as ``authentication.kubernetes.io/node-name`` of a bound token.
    """

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def info(self) -> Object:
        """Return the UserInfo object that webhooks see."""
        groups: list[Json] = list(dict.fromkeys((*self.groups, "system:authenticated")))
        shown: Object = {"username": self.name, "groups": groups}
        if self.uid:
            shown["uid"] = self.uid
        if self.extra:
            shown["extra"] = {key: list(values) for key, values in self.extra.items()}
        return shown


ADMIN: Final = User(name="kubernetes-admin", groups=("system:masters",))

Authorize: TypeAlias = Callable[[User, str, Target], bool]
"""Decides on user, verb (get, list, watch, create, update, patch, delete, deletecollection) and what it is about."""


def service_account(namespace: str, name: str, *, node: str = "", pod: str = "") -> User:
    """Make the user that a service account's token stands for; `node` and `pod` where the token is bound to them."""
    extra: dict[str, tuple[str, ...]] = {}
    if node:
        extra["authentication.kubernetes.io/node-name"] = (node,)
    if pod:
        extra["authentication.kubernetes.io/pod-name"] = (pod,)
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
    return User(name=f"system:serviceaccount:{namespace}:{name}", groups=groups, extra=extra)
