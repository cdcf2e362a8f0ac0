"""What a deletion does to an object: first a mark, then, once nothing holds it any more, the end.

Graceful kinds are marked by a write that watches see, and taken away when no grace and no finalizer is left; a pod with
grace 0 is therefore seen MODIFIED, then DELETED. (rest.BeforeDelete, Store.updateForGracefulDeletionAndFinalizers)
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tessera.testing.apiserver.metadata import stamp
from tessera.testing.apiserver.store import Store, Stored
from tessera.testing.apiserver.strategy import Strategy, is_deleting
from tessera.testing.apiserver.tree import Object, copy, own, text, texts, whole


def grace_of(tree: Object) -> int:
    """Seconds of grace that a deletion under way leaves, 0 where it leaves none."""
    return whole(tree, "metadata", "deletionGracePeriodSeconds") or 0


def delete_now(
    store: Store, strategy: Strategy, found: Stored, *, grace: int | None, dry_run: bool = False
) -> tuple[Stored, bool]:
    """Delete an object, or begin to, without asking anybody.

    Args:
        store: where it is.
        strategy: of its kind.
        found: the object.
        grace: seconds that the client asks for, None for the kind's own.
        dry_run: store nothing.

    Returns:
        Its last state, and whether it is gone.
    """
    tree = copy(found.tree)
    held = bool(texts(tree, "metadata", "finalizers"))
    left = _mark_again(tree, grace) if is_deleting(tree) else _mark(tree, strategy.grace(tree, grace), held=held)
    gone = not left and not held
    if dry_run:
        return found, gone
    shelf = strategy.resource.shelf
    if tree != found.tree:
        found = store.write(shelf, tree)
    return (store.remove(shelf, found.key), True) if gone else (found, False)


def _mark(tree: Object, period: int | None, *, held: bool) -> int:
    """Mark an object that isn't being deleted yet; return the seconds of grace it has."""
    if period is None and not held:
        return 0
    metadata = own(tree, "metadata")
    metadata["deletionTimestamp"] = stamp(period or 0)
    metadata["deletionGracePeriodSeconds"] = period or 0
    if generation := whole(metadata, "generation"):
        metadata["generation"] = generation + 1
    return period or 0


def _mark_again(tree: Object, grace: int | None) -> int:
    """A deletion that is under way can only be shortened; return the seconds of grace that are left."""
    left = grace_of(tree)
    if grace is None or grace >= left:
        return left
    metadata = own(tree, "metadata")
    period = max(grace, 0) if grace >= 0 else 1
    ends = datetime.fromisoformat(text(metadata, "deletionTimestamp")) + timedelta(seconds=period - left)
    now = datetime.now(UTC)
    if ends < now:
        ends = now
        period = 1 if period else 0
    metadata["deletionTimestamp"] = ends.strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata["deletionGracePeriodSeconds"] = period
    return period
