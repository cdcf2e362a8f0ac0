"""Whether the node's container runtime injects CDI devices.

A kubelet hands CDI names on (since Kubernetes 1.31 always), and a containerd with ``enable_cdi = false`` passes them over
without a word: the container would start without a GPU. So CDI is used only where the runtime is known to do it:

- containerd: ``enable_cdi`` of its CRI plugin; on by default since 2.0, whose config has version 3;
- CRI-O: always.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from typing import Final

_log = logging.getLogger(__name__)

_LARGEST: Final = 1 << 20
_MOST_IMPORTS: Final = 64
_CRI: Final = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri")
_VERSION: Final = re.compile(r"(containerd|cri-o)://v?(\d{1,4})\.", re.ASCII)
_CDI_BY_DEFAULT: Final = 2
"""Major version of containerd."""
_CONFIG_OF_2: Final = 3
"""Version of the config format that came with containerd 2.0."""


def cdi_enabled(*, version: str, root: str, containerd: Iterable[str], crio: Iterable[str]) -> bool | None:
    """Find out, from the runtime's version and config files.

    Args:
        version: the Node's ``status.nodeInfo.containerRuntimeVersion``, ``containerd://2.1.3``; "" where not known.
        root: where the host's root is mounted; imports inside configs are below it.
        containerd: paths where its config may be.
        crio: paths whose presence tells that CRI-O is used.

    Returns:
        None where it can't be known.
    """
    match = _VERSION.match(version)
    name, major = (match[1], int(match[2])) if match else ("", 0)
    if name == "cri-o" or (not version and any(map(os.path.exists, crio))):
        return True
    if version and name != "containerd":
        return None
    for path in containerd:
        plain = _read(path)
        if plain is None:
            continue
        found = [plain, *_imported(plain, root)]
        switches = [switch for config in found if (switch := _switch(config)) is not None]
        if switches:
            return switches[-1]
        if plain.get("version") == _CONFIG_OF_2:
            return True
        break
    return True if major >= _CDI_BY_DEFAULT else None


def _switch(config: dict[str, object]) -> bool | None:
    plugins = config.get("plugins")
    if not isinstance(plugins, dict):
        return None
    for plugin in _CRI:
        section = plugins.get(plugin)
        if isinstance(section, dict) and isinstance(section.get("enable_cdi"), bool):
            return bool(section["enable_cdi"])
    return None


def _imported(config: dict[str, object], root: str) -> Iterator[dict[str, object]]:
    patterns = config.get("imports")
    if not isinstance(patterns, list):
        return
    paths = [
        path
        for pattern in patterns[:_MOST_IMPORTS]
        if isinstance(pattern, str) and pattern.startswith("/")
        for path in sorted(glob.glob(os.path.join(root, pattern.lstrip("/"))))
    ]
    for path in paths[:_MOST_IMPORTS]:
        found = _read(path)
        if found is not None:
            yield found


def _read(path: str) -> dict[str, object] | None:
    try:
        with open(path, "rb") as file:
            return tomllib.loads(file.read(_LARGEST).decode())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("%s can't be read: %s", path, error)
        return None
