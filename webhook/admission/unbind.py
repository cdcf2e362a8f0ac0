"""Taking off a pod what ties it to another system's nodes: labels that no node of ours carries.

They stand in the nodeSelector, or, saying the same, in the required node affinity. What is merely preferred does no harm.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from tessera.dialects.reader import DEMANDING
from tessera.model.pod import Affinity, Manifest, NodeSelector, NodeSelectorTerm
from webhook.admission.patch import Edit, put, remove
from webhook.admission.profiles import REQUIRED, written


def unbind(pod: Manifest, keys: Collection[str]) -> tuple[Manifest, dict[str, list[Edit]]]:
    """Take labels out of what a pod demands of its node.

    Args:
        pod: as it came.
        keys: of labels that nodes of ours don't have.

    Returns:
        The pod without them, for what is decided after it, and the edits by key, those of the affinity with its first key.
    """
    if not keys:
        return pod, {}
    chosen, terms = dict(pod.spec.node_selector or {}), pod.spec.required_terms
    edits: dict[str, list[Edit]] = {}
    left = terms
    for key in keys:
        if chosen.pop(key, None) is not None:
            edits.setdefault(key, []).append(remove(("spec", "nodeSelector", key)))
        freed = tuple(_without(term, key) for term in left)
        if freed != left:
            edits.setdefault(key, [])
            left = freed
    if not edits:
        return pod, {}
    changed = msgspec.structs.replace(pod.spec, node_selector=chosen)
    if left != terms:
        # A term that demands nothing more is met by every node, and with it the whole of them.
        open_to_all = any(_empty(now) and not _empty(before) for now, before in zip(left, terms, strict=True))
        edit = remove(REQUIRED[:-1]) if open_to_all else put(REQUIRED, [written(term) for term in left])
        next(each for each in edits.values()).append(edit)
        changed = msgspec.structs.replace(changed, affinity=_required(pod.spec.affinity, () if open_to_all else left))
    return msgspec.structs.replace(pod, spec=changed), edits


def _empty(term: NodeSelectorTerm) -> bool:
    """Whether a term has nothing in it; written by hand, it fits no node."""
    return not term.match_expressions and not term.match_fields


def _without(term: NodeSelectorTerm, key: str) -> NodeSelectorTerm:
    """A term without what it demands of a label; what a missing label satisfies (NotIn, DoesNotExist) may stay."""
    left = tuple(each for each in term.match_expressions or () if each.key != key or each.operator not in DEMANDING)
    if len(left) == len(term.match_expressions or ()):
        return term
    return msgspec.structs.replace(term, match_expressions=left)


def _required(affinity: Affinity | None, terms: tuple[NodeSelectorTerm, ...]) -> Affinity | None:
    """An affinity that requires these terms, or nothing."""
    node = affinity.node_affinity if affinity is not None else None
    if affinity is None or node is None:
        return affinity
    required = NodeSelector(node_selector_terms=terms) if terms else None
    return msgspec.structs.replace(affinity, node_affinity=msgspec.structs.replace(node, required=required))
