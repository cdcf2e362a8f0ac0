"""Lists: selection, pages, and continue tokens that show one snapshot.

A page's token leads to the objects as they were when the first page was read. Snapshots are shared references to
immutable objects, so they cost little; their number is bounded, and compaction drops them (410 with a fresh token, as
the real server answers).
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

import msgspec

from tessera.testing.apiserver import status
from tessera.testing.apiserver.faces import Face
from tessera.testing.apiserver.resources import Resource
from tessera.testing.apiserver.selectors import Selector
from tessera.testing.apiserver.store import Key, Store, Stored
from tessera.testing.apiserver.tree import Json, Object, decode, encode, text, whole

_MOST_SNAPSHOTS: Final = 64
_TOO_OLD: Final = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """What a client wants listed.

    Attributes:
        resource: of what kind.
        namespace: "" for all.
        selector: None for all.
        limit: items of a page, 0 for all.
        rest: continue token, "" for the first page.
        version: the resourceVersion asked for, "" for the newest.
    """

    resource: Resource
    namespace: str = ""
    selector: Selector | None = None
    limit: int = 0
    rest: str = ""
    version: str = ""


class Lister:
    """Answers lists."""

    def __init__(self, store: Store) -> None:
        """List from `store`."""
        self._store = store
        self._snapshots: dict[tuple[str, int], list[Stored]] = {}

    def forget(self) -> None:
        """Drop the snapshots behind continue tokens."""
        self._snapshots.clear()

    def answer(self, query: ListQuery, face: Face) -> bytes:
        """Return a list as JSON.

        Raises:
            StatusError: 400, a parameter can't be read; 410, the token is too old; 504, the version is not there yet.
        """
        if query.version:
            self._check_version(query.version)
        version, items = self._find(query)
        # From its cache (resourceVersion 0) the real server answers in one piece, whatever the limit.
        limit = 0 if query.version == "0" else query.limit
        page = items[:limit] if limit else items
        metadata: Object = {"resourceVersion": str(version)}
        if len(page) < len(items):
            self._keep(query.resource.shelf, version)
            metadata["continue"] = _token(version, page[-1].key)
            if query.selector is None:
                metadata["remainingItemCount"] = len(items) - len(page)
        head = encode(
            {"kind": f"{query.resource.kind}List", "apiVersion": query.resource.api_version, "metadata": metadata}
        )
        return head[:-1] + b',"items":[' + b",".join(face.item(stored) for stored in page) + b"]}"

    def _find(self, query: ListQuery) -> tuple[int, list[Stored]]:
        """Return the version of the answer, and what is selected from where it starts."""
        if not query.rest:
            return self._store.version, [s for s in self._now(query.resource.shelf) if _wanted(s, query)]
        version, start = _read_token(query.rest)
        snapshot = self._snapshots.get((query.resource.shelf, version))
        if version < 0:
            version, snapshot = self._store.version, self._now(query.resource.shelf)
        elif snapshot is None:
            raise status.expired(_TOO_OLD, rest=_token(-1, start))
        # The 80 pages of 40,000 pods took seconds while each looked at all of them.
        rest = snapshot[bisect_right(snapshot, start, key=_key) :]
        return version, [s for s in rest if _wanted(s, query)] if query.namespace or query.selector else rest

    def _now(self, shelf: str) -> list[Stored]:
        return [stored for _, stored in sorted(self._store.shelf(shelf).objects.items())]

    def _keep(self, shelf: str, version: int) -> None:
        if (shelf, version) in self._snapshots:
            return
        self._snapshots[shelf, version] = self._now(shelf)
        while len(self._snapshots) > _MOST_SNAPSHOTS:
            del self._snapshots[next(iter(self._snapshots))]

    def _check_version(self, version: str) -> None:
        if not (version.isascii() and version.isdecimal()):
            raise status.bad_request(f"invalid resource version: {status.no_version(version)}")
        if int(version) > self._store.version:
            raise status.too_large_version(int(version), self._store.version)


def _key(stored: Stored) -> Key:
    return stored.key


def _wanted(stored: Stored, query: ListQuery) -> bool:
    if query.namespace and stored.key[0] != query.namespace:
        return False
    return query.selector is None or query.selector(stored.tree)


def _token(version: int, start: Key) -> str:
    body: Json = {"v": "meta.k8s.io/v1", "rv": version, "start": f"{start[0]}/{start[1]}"}
    return base64.urlsafe_b64encode(encode(body)).rstrip(b"=").decode()


def _read_token(token: str) -> tuple[int, Key]:
    try:
        body = decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise status.bad_request("continue key is not valid: it can't be read") from error
    version = whole(body, "rv")
    namespace, slash, name = text(body, "start").partition("/")
    if version is None or not slash:
        raise status.bad_request("continue key is not valid")
    return version, (namespace, name)
