"""What the Container Device Interface specs on this node offer: which GPUs by name, and whether limits are applied.

A runtime with CDI looks devices up in files below /etc/cdi and /var/run/cdi (CDI specification 0.8). NVIDIA's tools write
them for the kind ``nvidia.com/gpu`` with devices by index and UUID, and since container toolkit 1.20.1 each GPU's entry
holds a hook ``apply-cuda-memory-limits`` that sets the limits which NVIDIA_GPU_MEMORY_REQUEST and _LIMIT ask for. A spec
that holds the hook is the best proof there can be that a limit will be applied.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Final

import msgspec

_log = logging.getLogger(__name__)

KIND: Final = "nvidia.com/gpu"
LIMITS_HOOK: Final = "apply-cuda-memory-limits"
_LARGEST: Final = 4 << 20
_MOST_FILES: Final = 64


class _Hook(msgspec.Struct):
    args: list[str] | None = None


class _Edits(msgspec.Struct):
    hooks: list[_Hook] | None = None


class _Device(msgspec.Struct, rename="camel"):
    name: str = ""
    container_edits: _Edits | None = None


class _Spec(msgspec.Struct, rename="camel"):
    kind: str = ""
    devices: list[_Device] | None = None
    container_edits: _Edits | None = None


class CdiDevices(msgspec.Struct, frozen=True, kw_only=True):
    """Names of the kind ``nvidia.com/gpu`` (UUIDs among them), and those of them whose entry applies memory limits."""

    names: frozenset[str] = frozenset()
    limited: frozenset[str] = frozenset()


def read(directories: Iterable[str]) -> CdiDevices:
    """Read every spec in these directories; a file that can't be read or is no spec is passed over with a warning."""
    names: set[str] = set()
    limited: set[str] = set()
    for path in _files(directories):
        spec = _read(path)
        if spec is None or spec.kind != KIND:
            continue
        everywhere = _applies(spec.container_edits)
        for device in spec.devices or ():
            names.add(device.name)
            if everywhere or _applies(device.container_edits):
                limited.add(device.name)
    return CdiDevices(names=frozenset(names), limited=frozenset(limited))


def _files(directories: Iterable[str]) -> list[str]:
    found: list[str] = []
    for directory in directories:
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        found += [os.path.join(directory, name) for name in names if name.endswith((".json", ".yaml", ".yml"))]
    return found[:_MOST_FILES]


def _read(path: str) -> _Spec | None:
    try:
        with open(path, "rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            _log.warning("CDI spec %s has more than %d bytes; not read", path, _LARGEST)
            return None
        if path.endswith(".json"):
            return msgspec.json.decode(text, type=_Spec)
        return msgspec.convert(_yaml(text), _Spec)
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError, RecursionError, ValueError) as error:
        _log.warning("CDI spec %s is passed over: %s", path, " ".join(str(error).split())[:200])
        return None


def _yaml(text: bytes) -> object:
    """Read YAML; the library is a MiB that a node without such specs saves.

    Raises:
        ValueError: it is none.
    """
    import yaml  # noqa: PLC0415 - see above

    # libyaml reads a spec of 100 KiB in 20 ms, the Python loader in half a second.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _applies(edits: _Edits | None) -> bool:
    return edits is not None and any(LIMITS_HOOK in (hook.args or ()) for hook in edits.hooks or ())
