"""What a kubelet says when something fails, in its own words.

Texts are part of the behaviour: plugins' authors and users search for them, and tests compare them. They were copied
from k8s.io/kubernetes v1.34.4 (pkg/kubelet/cm/devicemanager and pkg/kubelet/lifecycle) and compared with that code.
"""

from __future__ import annotations

import grpc.aio

from tessera.model.errors import TesseraError


class KubeletError(TesseraError):
    """Root of what the fake kubelet raises at the program that drives it."""


class PodError(KubeletError):
    """A pod object that no API server would have handed to a kubelet, or a UID that is unknown or known already."""


class CheckpointError(KubeletError):
    """The checkpoint file can't be read: not JSON, another shape, or its checksum is wrong."""


class AllocationError(KubeletError):
    """The device manager can't give a container its devices; the text is the kubelet's."""


def go_status(error: grpc.aio.AioRpcError) -> str:
    """Write a gRPC error as Go's status package prints it: ``rpc error: code = Unknown desc = no room``."""
    words = error.code().name.split("_")
    # Go spells this one with one l.
    code = "Canceled" if words == ["CANCELLED"] else "".join(word.capitalize() for word in words)
    return f"rpc error: code = {code} desc = {error.details() or ''}"
