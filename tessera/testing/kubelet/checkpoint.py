"""The device manager's checkpoint file, byte for byte what a real kubelet reads back.

`kubelet_internal_checkpoint` is the one place outside the kubelet's memory that says which container has which device.
The shape is Go's encoding of devicemanager/checkpoint.Data. The checksum is FNV-1a (32 bit) over spew's print of the
data (checkpointmanager/checksum with apimachinery's dump.ForHash); a kubelet refuses a file whose checksum is off, so
it is kept exact here, and tests hold it against texts that the Go code wrote.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import msgspec

from tessera.testing.kubelet.errors import CheckpointError
from tessera.testing.kubelet.fnv import fnv1a32

FILE_NAME: Final = "kubelet_internal_checkpoint"
NO_NUMA: Final = -1
"""The key under which devices without a NUMA node are kept (manager.go: nodeWithoutTopology)."""


@dataclass(frozen=True)
class Entry:
    """What one container holds of one resource.

    Attributes:
        devices: NUMA node -> device IDs; a device on several nodes stands under each.
        response: the plugin's ContainerAllocateResponse, serialised.
    """

    pod_uid: str
    container: str
    resource: str
    devices: Mapping[int, tuple[str, ...]]
    response: bytes

    @cached_property
    def written(self) -> tuple[str, str]:
        """The entry as JSON and as spew prints it; kept, because a checkpoint is written far more often than it grows."""
        answer = base64.b64encode(self.response).decode()
        devices: dict[int, list[str] | None] = {node: list(ids) for node, ids in self.devices.items()}
        fields = {
            "PodUID": self.pod_uid,
            "ContainerName": self.container,
            "ResourceName": self.resource,
            # Go sorts map keys as texts: "-1", "0", "1", "10", "2".
            "DeviceIDs": {text: devices[int(text)] for text in sorted(map(str, devices))},
            "AllocResp": answer,
        }
        wire = _WireEntry(self.pod_uid, self.container, self.resource, devices, answer)
        return _json(fields), _dump_entry(wire)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file's content.

    Attributes:
        registered: resource -> IDs of its healthy devices; resources whose plugin has gone stay, with none.
    """

    entries: tuple[Entry, ...]
    registered: Mapping[str, tuple[str, ...]]


class _WireEntry(msgspec.Struct, rename="pascal"):
    pod_uid: str = msgspec.field(name="PodUID")
    container_name: str
    resource_name: str
    device_ids: dict[int, list[str] | None] | None = msgspec.field(name="DeviceIDs")
    alloc_resp: str | None


class _WireData(msgspec.Struct, rename="pascal"):
    pod_device_entries: list[_WireEntry] | None
    registered_devices: dict[str, list[str] | None] | None


class _Wire(msgspec.Struct, rename="pascal"):
    data: _WireData
    checksum: int


def encode(checkpoint: Checkpoint) -> bytes:
    """Write the file's content as Go's json.Marshal does: sorted keys, no blanks, <, > and & escaped, null for none."""
    texts = [entry.written for entry in checkpoint.entries]
    registered: dict[str, list[str] | None] = {name: list(ids) for name, ids in sorted(checkpoint.registered.items())}
    # The kubelet appends to a nil slice, so no entry at all is null, and <nil> in the print that is hashed.
    entries = f"[{','.join(text for text, _ in texts)}]" if texts else "null"
    dumped = f"[{' '.join(dump for _, dump in texts)}]" if texts else "<nil>"
    checksum = fnv1a32(_dump(dumped, registered).encode())
    data = f'{{"PodDeviceEntries":{entries},"RegisteredDevices":{_json(registered)}}}'
    return f'{{"Data":{data},"Checksum":{checksum}}}'.encode()


def decode(content: bytes) -> Checkpoint:
    """Read the file's content.

    Raises:
        CheckpointError: not JSON, another shape, or the checksum doesn't fit the data.
    """
    try:
        wire = msgspec.json.decode(content, type=_Wire)
        entries = tuple(_entry(each) for each in wire.data.pod_device_entries or ())
    except (msgspec.DecodeError, binascii.Error) as error:
        raise CheckpointError(f"not a device manager checkpoint: {error}") from error
    registered = {name: tuple(ids or ()) for name, ids in (wire.data.registered_devices or {}).items()}
    checkpoint = Checkpoint(entries, registered)
    found = wire.data.pod_device_entries
    dumped = "<nil>" if found is None else f"[{' '.join(map(_dump_entry, found))}]"
    actual = fnv1a32(_dump(dumped, wire.data.registered_devices).encode())
    if wire.checksum != actual:
        raise CheckpointError(f"checkpoint is corrupted: its checksum is {wire.checksum}, its data's is {actual}")
    return checkpoint


def read(path: str) -> Checkpoint | None:
    """Read the file, or None where there is none.

    Raises:
        CheckpointError: see `decode`.
    """
    try:
        with open(path, "rb") as file:
            return decode(file.read())
    except FileNotFoundError:
        return None


def write(path: str, checkpoint: Checkpoint) -> None:
    """Replace the file in one step, so that a reader in another process never sees half of it."""
    draft = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.tmp")
    with open(draft, "wb") as file:
        file.write(encode(checkpoint))
    os.replace(draft, path)


def _json(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _entry(wire: _WireEntry) -> Entry:
    devices = {node: tuple(ids or ()) for node, ids in (wire.device_ids or {}).items()}
    response = base64.b64decode(wire.alloc_resp or "", validate=True)
    return Entry(wire.pod_uid, wire.container_name, wire.resource_name, devices, response)


def _dump(entries: str, registered: Mapping[str, list[str] | None] | None) -> str:
    """Print the data as spew's ``%#v`` with sorted keys does; texts stand bare, nil is ``<nil>``."""
    names = "<nil>" if registered is None else f"map[{_dump_map(registered)}]"
    return (
        f"(checkpoint.checkpointData){{PodDeviceEntries:([]checkpoint.PodDevicesEntry){entries} "
        f"RegisteredDevices:(map[string][]string){names}}}"
    )


def _dump_entry(entry: _WireEntry) -> str:
    nodes = entry.device_ids
    devices = "<nil>" if nodes is None else f"map[{_dump_map(nodes)}]"
    answer = None if entry.alloc_resp is None else base64.b64decode(entry.alloc_resp)
    response = "<nil>" if answer is None else f"[{' '.join(map(str, answer))}]"
    return (
        f"{{PodUID:(string){entry.pod_uid} ContainerName:(string){entry.container_name} "
        f"ResourceName:(string){entry.resource_name} DeviceIDs:(checkpoint.DevicesPerNUMA){devices} "
        f"AllocResp:([]uint8){response}}}"
    )


def _dump_map(values: Mapping[int, list[str] | None] | Mapping[str, list[str] | None]) -> str:
    # Numbers sort as numbers here, texts as texts.
    items: list[tuple[int | str, list[str] | None]] = sorted(values.items())
    return " ".join(f"{key}:<nil>" if ids is None else f"{key}:[{' '.join(ids)}]" for key, ids in items)
