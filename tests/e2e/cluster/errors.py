"""What goes wrong while a cluster is started, used or stopped."""

from __future__ import annotations


class ClusterError(Exception):
    """Names what failed, and where its log is or what would help."""


class MachineError(ClusterError):
    """No cluster can run on this machine, whatever is done: it lacks a right, not a program."""
