"""What a watch cache tells its subscribers, and what it must know of an object for that.

Deletions carry whether the end was seen: a slice may be free only if its pod's terminal phase went by before our eyes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Metadata(Protocol):
    """What the cache needs to know of an object; `tessera.model.pod.ObjectMeta` has it."""

    @property
    def name(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def resource_version(self) -> str: ...


class ApiObject(Protocol):
    """Anything decoded from an object of the API."""

    @property
    def metadata(self) -> Metadata: ...


T = TypeVar("T", bound=ApiObject)


@dataclass(frozen=True, slots=True)
class Added(Generic[T]):
    """An object that was not there before."""

    new: T


@dataclass(frozen=True, slots=True)
class Modified(Generic[T]):
    """An object that is not what it was."""

    old: T
    new: T


@dataclass(frozen=True, slots=True)
class Deleted(Generic[T]):
    """An object that is gone, or (with a selector) no longer selected.

    Attributes:
        old: what the cache had.
        final: the last state the server had; equal to `old` where that was never seen.
        seen_final: False where it vanished while no stream was open: its last state, such as a terminal phase, may
            have gone by unseen.
    """

    old: T
    final: T
    seen_final: bool


Change = Added[T] | Modified[T] | Deleted[T]


def key_of(item: ApiObject) -> tuple[str, str]:
    """Namespace ("" for cluster-scoped objects) and name."""
    return item.metadata.namespace, item.metadata.name
