"""A manifest that is applied again: what admission took away comes back, into fields that can't change any more.

``kubectl apply`` merges three ways: what the manifest says and the live pod lacks is put into the live pod. Of a pod that
was converted at creation these are just the names, the scheduler, the selectors and the variables that admission had
replaced, and the API server would refuse the update (422), since a pod's spec is immutable. So an update is taken through
admission once more, and of the edits that come out those are kept that make the pod what it was; every other one is
dropped. A change of what was asked is never made good this way: it stays the API server's to refuse.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tessera.model.errors import QuantityError
from tessera.model.pod import Manifest
from tessera.model.quantity import parse
from webhook.admission.patch import Edit, Json, Steps, child


def restoring(edits: Iterable[Edit], new: Manifest, old: Manifest) -> list[Edit]:
    """Those of the edits that bring a pod's spec back to what it was.

    Args:
        edits: of the updated pod.
        new: the updated pod.
        old: the pod before.
    """
    return [edit for edit in edits if edit.path[0] == "spec" and _restores(edit, new, old)]


def _restores(edit: Edit, new: Manifest, old: Manifest) -> bool:
    there = _before(edit.path, new, old)
    match edit.kind:
        case "remove":
            return there is None
        case "put":
            return _equal(there, edit.value, amount="resources" in edit.path)
        case _:
            return isinstance(there, list) and edit.value in there


def _before(path: Steps, new: object, old: object) -> Json:
    """What stood at a path of the updated pod before, as plain data; things with a name are found by it."""
    for step in path:
        if isinstance(step, int):
            item = new[step] if isinstance(new, tuple) and step < len(new) else None
            name = getattr(item, "name", None)
            there = old if isinstance(old, tuple) else ()
            new, old = item, next((each for each in there if name and getattr(each, "name", None) == name), None)
        else:
            new, old = child(new, step) if new is not None else None, child(old, step) if old is not None else None
    plain: Json = msgspec.json.decode(msgspec.json.encode(old))
    return plain


def _equal(there: Json, value: Json, *, amount: bool) -> bool:
    if there == value:
        return True
    if not amount or not isinstance(there, str | int) or not isinstance(value, str | int):
        return False
    try:
        return parse(there) == parse(value)  # the API server writes 2000 as 2k
    except QuantityError:
        return False
