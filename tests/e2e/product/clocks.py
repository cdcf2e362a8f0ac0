"""Wall clocks of the product's parts that jump while the machine's own goes on: libfaketime between a part and its C library.

Only the time of day is another one. What counts seconds (CLOCK_MONOTONIC) goes on evenly, as it does on a machine whose clock
is set.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import ClusterError

from product.installed import EXTENDER, NODE, WEBHOOK, WORKLOADS, Product
from product.names import NAMESPACE

PARTS = (NODE, EXTENDER, WEBHOOK)
MOUNT = "/clock"
LIBRARY = "libfaketime.so.1"


class Clocks:
    """The wall clock of every part."""

    def __init__(self, folder: Path) -> None:
        """Keep the library and what it reads here."""
        self._folder = folder
        self._offset = folder / "offset"

    def prepare(self) -> None:
        """Put the library where parts mount it from; the clock is right."""
        found = sorted(Path("/usr/lib").glob(f"*/faketime/{LIBRARY}"))
        if not found:
            raise ClusterError(f"no {LIBRARY} on this machine; Debian's package faketime has it")
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(found[0], self._folder / LIBRARY)
        self.set("+0")

    def set(self, offset: str) -> None:
        """Set every part's clock, such as to "+1d" or "-10y"; it is read again whenever a part asks for the time."""
        beside = self._offset.with_suffix(".new")
        beside.write_text(f"{offset}\n")
        beside.replace(self._offset)


@contextmanager
def settable(product: Product) -> Iterator[Clocks]:
    """Give the parts clocks that can be set, for a while; every part is rolled out before and afterwards."""
    clocks = Clocks(product.folder / "clock")
    clocks.prepare()
    try:
        for part in PARTS:
            kind, name = WORKLOADS[part]
            patch = json.dumps(_patch(part, product.folder / "clock"))
            product.cluster.kubectl("-n", NAMESPACE, "patch", kind, name, "--type=strategic", "-p", patch)
        product.wait_installed()
        yield clocks
    finally:
        clocks.set("+0")
        for part in PARTS:
            kind, name = WORKLOADS[part]
            product.cluster.kubectl("-n", NAMESPACE, "rollout", "undo", f"{kind}/{name}")
        product.wait_installed()


def _patch(part: str, folder: Path) -> dict[str, Any]:
    variables = {
        "LD_PRELOAD": f"{MOUNT}/{LIBRARY}",
        "FAKETIME_TIMESTAMP_FILE": f"{MOUNT}/offset",
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DISABLE_SHM": "1",
    }
    container = {
        "name": part,
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "volumeMounts": [{"name": "clock", "mountPath": MOUNT, "readOnly": True}],
    }
    volume = {"name": "clock", "hostPath": {"path": str(folder), "type": "Directory"}}
    return {"spec": {"template": {"spec": {"containers": [container], "volumes": [volume]}}}}
