"""A stand-in for nvidia-cuda-mps-control: the daemon in the foreground, or one command at standard input."""

import contextlib
import os
import socket
import sys
from pathlib import Path

PIPES = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
CONTROL = str(PIPES / "control")


def serve():
    if (PIPES / "broken").exists():
        raise SystemExit(1)
    Path(CONTROL).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(CONTROL)
        server.listen()
        (PIPES / "nvidia-cuda-mps-control.pid").write_text(f"{os.getpid()}\n")
        heard = []
        while True:
            client, _ = server.accept()
            with client:
                command = client.recv(4096).decode().strip()
                heard.append(command)
                (PIPES / "heard").write_text("\n".join(heard))
                with contextlib.suppress(BrokenPipeError):  # whoever asked has given up
                    client.sendall(answer(command))
                if command == "quit":
                    return


def answer(command):
    if command == "get_server_list":
        servers = PIPES / "servers"
        return servers.read_bytes() if servers.exists() else b"\n"
    return b"100.0\n" if command.startswith("get_") else b"\n"


def ask():
    command = sys.stdin.read()
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(CONTROL)
        except OSError:
            sys.stdout.write("Cannot find MPS control daemon process\n")
            raise SystemExit(1) from None
        client.sendall(command.encode())
        sys.stdout.write(client.recv(4096).decode())


if __name__ == "__main__":
    if sys.argv[1:] == ["-f", "-M"]:
        serve()
    elif not sys.argv[1:]:
        ask()
    else:
        raise SystemExit(2)
