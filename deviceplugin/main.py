"""``tessera-node``: the agent on each GPU node, which is the kubelet's device plugin.

Only flags are read here; `program` and with it everything else is imported when the agent is to run. That is so that the
import can be told to leave out what no part of the agent uses: aiohttp reads the machine's whole CA bundle into memory as
it is imported, which costs 70 ms and 2 MiB on every node, while all our connections bring a CA of their own.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tessera.daemon.flags import Flags, address
from tessera.daemon.run import run


def flags() -> Flags:
    """The program's flags."""
    found = Flags("tessera-node", "Serves slices of this node's GPUs to its kubelet.")
    found.add("--config", "config file shared by all parts; absent means the defaults", str, None)
    found.add("--kubeconfig", "how to reach the API server; absent: in-cluster, then $KUBECONFIG", str, None)
    found.add("--node-name", "name of this node's Node object", str, socket.gethostname())
    found.add("--kubelet-dir", "the kubelet's directory", str, "/var/lib/kubelet")
    found.add(
        "--state-dir", "where the ledger is kept; default: tessera in the kubelet's device-plugins folder", str, ""
    )
    found.add("--nvml-library", "path of libnvidia-ml.so.1; default: what the dynamic linker finds", str, "")
    found.add("--kubelet-pods", "URL of the kubelet's GET /pods, such as https://127.0.0.1:10250/pods", str, "")
    found.add("--kubelet-ca", "the kubelet's serving certificate or its CA, for --kubelet-pods", str, "")
    found.add("--mps-dir", "folder of the node's MPS daemon, the same path on the host; absent: no MPS", str, "")
    found.add("--mps-control", "NVIDIA's MPS control program", str, "nvidia-cuda-mps-control")
    found.add("--host-root", "where the host's root file system is mounted", str, "/")
    found.add("--sysfs", "where the host's /sys is mounted; default: below --host-root", str, "")
    found.add("--proc-root", "where the host's /proc is mounted; default: below --host-root", str, "")
    found.add("--status-listen", "where /healthz, /readyz and /metrics are served", address, "0.0.0.0:9465")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    options = flags().read(arguments)
    with _no_public_certificates():
        from deviceplugin import program  # noqa: PLC0415 - see above
    return run(functools.partial(program.serve, options), level=options.log_level)


@contextmanager
def _no_public_certificates() -> Iterator[None]:
    """Let OpenSSL's default CA bundle be empty for a while; the environment is as before afterwards."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


if __name__ == "__main__":
    sys.exit(main())
