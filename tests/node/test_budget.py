"""What the node agent may cost a node: what it must not import, and that its flags are all there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from deviceplugin.main import flags

HEAVY = ("numpy", "kubernetes", "cryptography", "rich", "jsonpatch", "tessera.testing", "webhook")


def loaded(code):
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=60)
    return json.loads(found.stdout)


def test_the_agent_imports_nothing_heavy():
    modules = loaded("import deviceplugin.main, deviceplugin.program")
    assert not [name for name in modules if name.startswith(HEAVY)]


def test_reading_flags_imports_next_to_nothing():
    modules = loaded("import deviceplugin.main")
    assert not {"grpc", "aiohttp", "pynvml", "yaml"} & set(modules)


def test_importing_leaves_the_environment_alone(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/some/where")
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    script = (
        "import os\nimport deviceplugin.main as m\n"
        "with m._no_public_certificates():\n    import deviceplugin.program\n"
        "assert os.environ['SSL_CERT_FILE'] == '/some/where' and 'SSL_CERT_DIR' not in os.environ"
    )
    loaded(script)


def test_flags_of_the_contract():
    options = flags().read(["--node-name", "n1", "--nvml-library", "/lib/x", "--status-listen", "127.0.0.1:0"])
    assert (options.node_name, options.nvml_library, options.kubelet_dir) == ("n1", "/lib/x", "/var/lib/kubelet")
    assert (options.config, options.kubeconfig) == (None, None)


def test_a_flag_that_is_none_ends_with_a_line(capsys):
    with pytest.raises(SystemExit) as ended:
        flags().read(["--nonsense"])
    assert ended.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err
