"""What can go wrong in the extender, beside what model and kube already name."""

from __future__ import annotations

from tessera.model.errors import TesseraError


class ExtenderError(TesseraError):
    """Root of the extender's own errors."""


class NotReadyError(ExtenderError):
    """The caches don't hold the cluster yet; answered by 503, and kube-scheduler tries again."""


class BindError(ExtenderError):
    """A pod can't be bound; kube-scheduler gets this text and puts the pod back into its queue."""
