"""The ledger after a restart: our file, the kubelet's checkpoint and its PodResources List, made into one.

Each knows something that the others don't: the file knows plans and init containers, the checkpoint has UIDs and plain init
containers but also pods that ended, List has what is active but no UIDs. On device IDs the kubelet's word counts, whatever
the file says: what it recorded is what the container has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

import msgspec

from deviceplugin import checkpoint, ledgerfile
from deviceplugin.checkpoint import Entry
from deviceplugin.devices import gpu_of, parse
from deviceplugin.errors import DeviceIdError, KubeletError, LedgerFileError
from deviceplugin.identity import Identity
from deviceplugin.ledger import UNKNOWN, Grant, Owner
from deviceplugin.placing import Placing
from deviceplugin.podresources import Lister, Listing
from deviceplugin.pods import NodePods, uid_of
from deviceplugin.registration import stamp
from deviceplugin.sightings import Sightings
from tessera.model.names import Names
from tessera.model.pod import Pod

_log = logging.getLogger(__name__)

LIST_WITHIN: Final = 0.5
"""Seconds for the first List: a kubelet that is starting admits pods 0.9 s later, and we have to be registered by then."""
_FIRST_UNKNOWN: Final = 1_000_000
"""Numbers of pods that a rebuild can't tell; the ledger itself counts from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Witnesses:
    """What is known after a restart.

    Attributes:
        stored: the file's grants; None where there is no file or it can't be read.
        entries: the checkpoint's.
        listing: None where the kubelet does not answer.
        seen: UIDs of pods with processes.
        blind: processes of pods can't be seen here, so not being seen says nothing.
    """

    stored: Sequence[Grant] | None
    entries: Sequence[Entry]
    listing: Listing | None
    seen: AbstractSet[str]
    blind: bool = False


async def gather(
    path: str,
    *,
    plugins: str,
    pod_resources: str,
    lister: Lister,
    sightings: Sightings,
    names: Names,
) -> Witnesses:
    """Ask everybody who knows; whoever can't answer is left out.

    Args:
        path: our own file.
        plugins: the kubelet's device-plugins folder, for its checkpoint.
        pod_resources: the kubelet's PodResources socket; where it is missing the kubelet isn't asked.
        lister: the kubelet.
        sightings: /proc.
        names: of the installation.
    """
    stored = None
    try:
        stored = ledgerfile.read(path)
    except LedgerFileError as error:
        _log.error("the ledger is rebuilt from the kubelet: %s", error)
    listing = None
    try:
        if stamp(pod_resources) is not None:
            async with asyncio.timeout(LIST_WITHIN):
                listing = await lister.list()
    except (KubeletError, TimeoutError) as error:
        _log.warning("the kubelet's list of pods is not known: %s", str(error) or "no answer yet")
    return Witnesses(
        stored=stored,
        entries=checkpoint.read(plugins, ours=names.is_ticket),
        listing=listing,
        seen=await sightings.look(),
        blind=not sightings.trustworthy,
    )


class Rebuild:
    """Makes grants of what the witnesses say."""

    def __init__(self, pods: NodePods, identity: Identity, placing: Placing, names: Names) -> None:
        """Use what is known of pods and plans."""
        self._pods = pods
        self._identity = identity
        self._placing = placing
        self._names = names

    def grants(self, witnesses: Witnesses) -> list[Grant]:
        """Everything that is held, in an order that keeps init containers before the others."""
        found: dict[Owner, Grant] = {}
        for grant in (*self._recorded(witnesses), *self._listed(witnesses)):
            self._add(found, grant)
        for grant in witnesses.stored or ():
            if grant.owner in found:
                known = found[grant.owner]
                found[grant.owner] = msgspec.structs.replace(known, planned=known.planned or grant.planned)
            elif not grant.uid.startswith(UNKNOWN) and self._still_holds(grant, witnesses):
                found[grant.owner] = grant
        named = _named(found.values(), witnesses.listing)
        return sorted(named, key=lambda grant: (grant.uid, not grant.init))

    def _add(self, found: dict[Owner, Grant], grant: Grant) -> None:
        known = found.get(grant.owner)
        if known is not None:
            told = known if known.name else grant
            grant = msgspec.structs.replace(told, devices=known.devices | grant.devices)
        found[grant.owner] = grant

    def _recorded(self, witnesses: Witnesses) -> Iterator[Grant]:
        """The checkpoint's entries of pods that may live."""
        stored = {grant.owner: grant for grant in witnesses.stored or ()}
        for entry in witnesses.entries:
            if not _ours(entry.ids):
                continue
            owner = Owner(entry.uid, entry.container)
            pod = self._pods.by_uid(entry.uid)
            if pod is None and owner in stored:
                known = stored[owner]
                if self._still_holds(known, witnesses):
                    yield msgspec.structs.replace(known, devices={entry.resource: entry.ids})
            elif pod is not None and not pod.ended:
                yield self._grant(pod, entry.container, {entry.resource: entry.ids})
            elif pod is None and (entry.uid in witnesses.seen or self._held_by_nobody_known(entry, witnesses)):
                yield Grant(uid=entry.uid, container=entry.container, devices={entry.resource: entry.ids})

    def _held_by_nobody_known(self, entry: Entry, witnesses: Witnesses) -> bool:
        """Without the API and without an answer of the kubelet, its checkpoint is all there is."""
        return self._pods.state(entry.uid) == "unknown" and (
            witnesses.listing is None or witnesses.listing.holder(entry.resource, entry.ids) is not None
        )

    def _listed(self, witnesses: Witnesses) -> Iterator[Grant]:
        """What the kubelet lists; UIDs from the pods, else from the checkpoint by the very same IDs."""
        if witnesses.listing is None:
            return
        uids = {(entry.container, entry.resource, frozenset(entry.ids)): entry.uid for entry in witnesses.entries}
        number = _FIRST_UNKNOWN
        for key, containers in witnesses.listing.pods.items():
            pod = self._pods.get(key)
            for container in containers:
                held = {
                    resource: tuple(sorted(ids))
                    for resource, ids in container.devices(self._names.is_ticket).items()
                    if _ours(ids)
                }
                if not held:
                    continue
                matches = (uids.get((container.name, resource, frozenset(ids))) for resource, ids in held.items())
                uid = next((match for match in matches if match), None)
                if pod is not None and (uid is None or uid == uid_of(pod)):
                    yield self._grant(pod, container.name, held)
                    continue
                if uid is None:
                    number += 1
                    uid = f"{UNKNOWN}{number}"
                yield Grant(uid=uid, container=container.name, namespace=key[0], name=key[1], devices=held)

    def _grant(self, pod: Pod, container: str, devices: dict[str, tuple[str, ...]]) -> Grant:
        caller = self._identity.caller(pod, container)
        gpus = sorted({gpu_of(device) for ids in devices.values() for device in ids})
        return Grant(
            uid=uid_of(pod),
            container=container,
            namespace=pod.metadata.namespace,
            name=pod.metadata.name,
            init=caller is not None and caller.role == "init",
            planned=caller is not None and self._placing.is_planned(caller, gpus),
            devices=devices,
        )

    def _still_holds(self, grant: Grant, witnesses: Witnesses) -> bool:
        """Whether a pod of the file still holds anything, where the kubelet has no entry for it or nobody knows it."""
        state = self._pods.state(grant.uid)
        if grant.uid in witnesses.seen:
            return state != "ended"
        if witnesses.listing is not None:
            listed = (grant.namespace, grant.name) in witnesses.listing
            # A kubelet that is cut off from the API lists nothing after its own restart, and its containers run on.
            return (state in ("live", "unknown") and listed) or (state == "unknown" and witnesses.blind)
        return state in ("live", "unknown")


def _ours(ids: Iterable[str]) -> bool:
    """Whether every ID is one of ours; a resource of our name from another program is passed over."""
    try:
        for device in ids:
            parse(device)
    except DeviceIdError as error:
        _log.warning("an entry of the kubelet is passed over: %s", error)
        return False
    return True


def _named(grants: Collection[Grant], listing: Listing | None) -> Iterator[Grant]:
    """Name what only the checkpoint has: a container of a listed pod that isn't listed itself is a plain init container."""
    known = {grant.uid: (grant.namespace, grant.name) for grant in grants if grant.name}
    for grant in grants:
        key = known.get(grant.uid)
        if grant.name or key is None:
            yield grant
            continue
        unlisted = listing is not None and key in listing and listing.container(key, grant.container) is None
        yield msgspec.structs.replace(grant, namespace=key[0], name=key[1], init=grant.init or unlisted)
