"""The parts of an object's metadata that the server keeps in hand: identity, times, versions.

From apiserver's rest.BeforeCreate and BeforeUpdate, and the checks of the generic store.
"""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Final

from tessera.testing.apiserver import status
from tessera.testing.apiserver.decoding import typed
from tessera.testing.apiserver.defaults import fill_in
from tessera.testing.apiserver.faces import Face
from tessera.testing.apiserver.resources import Resource, Target
from tessera.testing.apiserver.store import Stored
from tessera.testing.apiserver.tree import Object, own, table, text

_SUFFIX: Final = "bcdfghjklmnpqrstvwxz2456789"
"""What generated names are made of (apimachinery/pkg/util/rand): no vowels, so no words."""
MODIFIED: Final = "the object has been modified; please apply your changes to the latest version and try again"


def stamp(seconds: int = 0) -> str:
    """Write the moment that is `seconds` from now as metav1.Time."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def decoded(face: Face, target: Target, tree: Object) -> Object:
    """Check that an object is what the URL says, then decode and default it; `tree` may be changed.

    Raises:
        StatusError: 400, it is another object, or none.
    """
    resource = target.resource
    version = text(tree, "apiVersion") or resource.api_version
    kind = text(tree, "kind") or resource.kind
    if version != resource.api_version:
        raise status.bad_request(
            f"the API version in the data ({version}) does not match the expected API version ({resource.api_version})"
        )
    if kind != resource.kind:
        problem = f'no kind "{kind}" is registered for this path'
        raise status.bad_request(f'{kind} in version "{version}" cannot be handled as a {resource.kind}: {problem}')
    tree = face.stored({**tree, "apiVersion": version})
    # These two first: a list leaves them out by cutting them off the front.
    tree = typed(resource, {"apiVersion": tree["apiVersion"], "kind": kind, **tree})
    metadata = own(tree, "metadata")
    if resource.namespaced:
        if metadata.setdefault("namespace", target.namespace) != target.namespace:
            raise status.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
    elif "namespace" in metadata:
        raise status.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    if target.name and metadata.setdefault("name", target.name) != target.name:
        raise status.bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL ({target.name})"
        )
    fill_in(resource.plural, tree)
    return tree


def wipe(tree: Object) -> None:
    """Drop what a client can't set on a new object (rest.WipeObjectMetaSystemFields)."""
    metadata = own(tree, "metadata")
    for name in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
        metadata.pop(name, None)


def begin(tree: Object) -> bool:
    """Give a new object its UID and time, and a name where one is to be generated; True where it was."""
    metadata = own(tree, "metadata")
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = stamp()
    prefix = text(metadata, "generateName")
    if text(metadata, "name") or not prefix:
        return False
    metadata["name"] = prefix[:248] + "".join(random.choices(_SUFFIX, k=5))
    return True


def check_version(resource: Resource, new: Object, current: Stored, *, unconditional: bool) -> None:
    """Compare UID and resourceVersion that a change presumes with what is there.

    Raises:
        StatusError: 409, another object or another state; 422, no version where one is needed.
    """
    metadata = own(new, "metadata")
    name = text(metadata, "name")
    uid = text(metadata, "uid")
    if uid and uid != current.uid:
        problem = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {current.uid}"
        raise status.conflict(resource.group, resource.plural, name, problem)
    version = text(metadata, "resourceVersion")
    if version in ("", "0"):
        if not unconditional:
            cause = status.invalid_value("metadata.resourceVersion", 0, "must be specified for an update")
            raise status.invalid(resource.group, resource.plural, name, [cause])
        metadata["resourceVersion"] = str(current.version)
    elif version != str(current.version):
        raise status.conflict(resource.group, resource.plural, name, MODIFIED)


def forged(new: Object, old: Object) -> list[status.Cause]:
    """Say what an update tells of a deletion that nobody asked for (validation.ValidateObjectMetaAccessorUpdate)."""
    metadata, before = table(new, "metadata"), table(old, "metadata")
    causes = []
    given = metadata.get("deletionTimestamp")
    if given and "deletionTimestamp" not in before:
        causes.append(status.invalid_value("metadata.deletionTimestamp", given, "field is immutable"))
    seconds = metadata.get("deletionGracePeriodSeconds")
    if seconds is not None and seconds != before.get("deletionGracePeriodSeconds"):
        detail = "field is immutable; may only be changed via deletion"
        causes.append(status.invalid_value("metadata.deletionGracePeriodSeconds", seconds, detail))
    return causes


def settle(new: Object, old: Object) -> None:
    """Put back what no update changes (rest.BeforeUpdate)."""
    metadata, before = own(new, "metadata"), table(old, "metadata")
    for name in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"):
        if name in before:
            metadata[name] = before[name]
        else:
            metadata.pop(name, None)


def check_preconditions(resource: Resource, found: Stored, options: Object) -> None:
    """Compare what a deletion presumes with what is there.

    Raises:
        StatusError: 409.
    """
    wanted = table(options, "preconditions")
    for name, there in (("uid", found.uid), ("resourceVersion", str(found.version))):
        asked = text(wanted, name)
        if asked and asked != there:
            what = "UID" if name == "uid" else "ResourceVersion"
            problem = (
                f"the {what} in the precondition ({asked}) does not match the {what} in record ({there}). "
                f"The object might have been {'deleted and then recreated' if name == 'uid' else 'modified'}"
            )
            raise status.conflict(resource.group, resource.kind, found.key[1], problem)
