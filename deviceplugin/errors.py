"""The node agent's own branch of the error tree."""

from __future__ import annotations

from tessera.model.errors import TesseraError


class NodeError(TesseraError):
    """Root of everything the node agent raises on purpose."""


class DeviceIdError(NodeError):
    """A text that is no device ID of ours."""


class AdvertiseError(NodeError):
    """What the node would have to advertise can't be advertised: clashing GPU names, too long a message."""


class RefusedError(NodeError):
    """A kubelet's call is refused; the message ends up in the pod's status or event, so it says what to do."""


class LedgerFileError(NodeError):
    """The ledger's file can't be read or written."""


class KubeletError(NodeError):
    """The kubelet can't be asked: no socket, no answer in time, or an answer that makes no sense."""


class MpsError(NodeError):
    """The MPS control daemon can't be started or asked."""


class TakeoverError(NodeError):
    """Another node agent serves this kubelet."""
