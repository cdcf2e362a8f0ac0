"""A daemon ends cleanly at a signal, and with one line where it can't run."""

import signal
import subprocess
import sys

PROGRAM = """
import asyncio, sys
from tessera.daemon.run import run
from tessera.model.errors import ConfigError
async def daemon(signals):
    if "fail" in sys.argv:
        raise ConfigError("config x.yaml: no such thing")
    hung = asyncio.Event()
    signals.on_hangup(hung.set)
    print("up", flush=True)
    await hung.wait()
    print("hung up", flush=True)
    await signals.stop.wait()
    print("stopped", flush=True)
sys.exit(run(daemon, level="INFO"))
"""


def test_signals():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "hung up\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopped\n"
        assert process.wait(timeout=20) == 0


def test_an_error_is_one_line_and_code_1():
    done = subprocess.run([sys.executable, "-c", PROGRAM, "fail"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "config x.yaml: no such thing" in done.stderr
    assert "Traceback" not in done.stderr
