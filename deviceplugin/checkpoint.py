"""The kubelet's own record of devices, read and never written: the one place that has plain init containers and UIDs.

`kubelet_internal_checkpoint` is Go's JSON of devicemanager/checkpoint.Data (k8s.io/kubernetes 1.34). Its checksum is over
a Go-specific print of the data, so it isn't checked: whatever doesn't decode is taken for absent, and whatever does is
compared with PodResources before it is believed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

_log = logging.getLogger(__name__)

NAME: Final = "kubelet_internal_checkpoint"
LARGEST: Final = 64 * 1024 * 1024


class Entry(NamedTuple):
    """What one container holds of one resource."""

    uid: str
    container: str
    resource: str
    ids: tuple[str, ...]


class _Entry(
    msgspec.Struct,
    rename={"uid": "PodUID", "container": "ContainerName", "resource": "ResourceName", "ids": "DeviceIDs"},
):
    uid: str
    container: str
    resource: str
    ids: dict[str, list[str] | None] | None = None


class _Data(msgspec.Struct, rename={"entries": "PodDeviceEntries"}):
    entries: list[_Entry] | None = None


class _Checkpoint(msgspec.Struct, rename={"data": "Data"}):
    data: _Data


_DECODER: Final = msgspec.json.Decoder(_Checkpoint)


def read(folder: str, *, ours: Callable[[str], bool]) -> tuple[Entry, ...]:
    """Read the entries of our resources; none where the file is absent or can't be read.

    Args:
        folder: the kubelet's device-plugins folder.
        ours: tells our resources by name.
    """
    path = os.path.join(folder, NAME)
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            _log.warning("%s has more than %d bytes; it is left out", path, LARGEST)
            return ()
        entries = _DECODER.decode(content).data.entries or []
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.DecodeError) as error:
        _log.warning("%s can't be read and is left out: %s", path, error)
        return ()
    return tuple(
        Entry(
            entry.uid,
            entry.container,
            entry.resource,
            tuple(sorted({device for ids in (entry.ids or {}).values() for device in ids or ()})),
        )
        for entry in entries
        if ours(entry.resource)
    )
