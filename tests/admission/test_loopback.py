"""The loopback plugin is put in place whole, only where it is needed, and never stops a CNI pod."""

import os
import stat
import subprocess
import sys

import pytest

from webhook.admission import loopback
from webhook.admission.cni import command

AMD64 = b"\x7fELF\x02\x01\x01" + b"\0" * 11 + b"\x3e\x00" + b"amd64 program"
ARM64 = b"\x7fELF\x02\x01\x01" + b"\0" * 11 + b"\xb7\x00" + b"arm64 program"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "image" / "loopback"
    path.parent.mkdir()
    path.write_bytes(AMD64)
    return path


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "bin"
    path.mkdir()
    return path


def run(target, *sources):
    # The container's own command, with this interpreter in place of the image's.
    program, *arguments = command(str(target))
    assert program == "python3"
    return subprocess.run(
        [sys.executable, *arguments, *map(str, sources)], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_init_containers_command_puts_the_plugin_in_place(source, target):
    done = run(target, source)
    assert (done.returncode, done.stderr) == (0, "")
    plugin = target / "loopback"
    assert plugin.read_bytes() == AMD64
    assert stat.S_IMODE(plugin.stat().st_mode) == 0o755
    assert os.listdir(target) == ["loopback"]
    inode = plugin.stat().st_ino
    again = run(target, source)
    assert "is in place" in again.stdout
    assert plugin.stat().st_ino == inode


def _present(path, content=AMD64, mode=0o755):
    path.write_bytes(content)
    path.chmod(mode)


@pytest.mark.parametrize(
    ("content", "mode", "replaced"),
    [
        pytest.param(AMD64 + b" of another version", 0o755, False, id="another version"),
        pytest.param(b"#!/bin/sh\n", 0o755, False, id="a wrapper script"),
        pytest.param(b"x", 0o755, False, id="shorter than an ELF header"),
        pytest.param(AMD64, 0o644, True, id="not executable"),
        pytest.param(b"", 0o755, True, id="empty: a copy that was cut off"),
        pytest.param(ARM64, 0o755, True, id="another processor's"),
    ],
)
def test_what_is_there_is_replaced_only_where_it_can_not_work(source, target, content, mode, replaced):
    _present(target / "loopback", content, mode)
    loopback.ensure(str(target), sources=[str(source)])
    assert (target / "loopback").read_bytes() == (AMD64 if replaced else content)


def test_a_dangling_link_is_replaced(source, target):
    (target / "loopback").symlink_to(target / "nowhere")
    loopback.ensure(str(target), sources=[str(source)])
    assert not (target / "loopback").is_symlink()
    assert (target / "loopback").read_bytes() == AMD64


def test_an_absent_folder_is_made(source, tmp_path):
    loopback.ensure(str(tmp_path / "opt" / "bin"), sources=[str(source)])
    assert (tmp_path / "opt" / "bin" / "loopback").exists()


def test_the_first_source_that_exists_is_taken(source, target, tmp_path):
    loopback.ensure(str(target), sources=[str(tmp_path / "absent"), str(source)])
    assert (target / "loopback").read_bytes() == AMD64


def test_without_a_source_a_plugin_that_is_there_is_enough(target, tmp_path):
    _present(target / "loopback")
    assert "is in place" in loopback.ensure(str(target), sources=[str(tmp_path / "absent")])


@pytest.mark.parametrize("trouble", ["no source", "a folder in its place", "a file for a folder"])
def test_trouble_is_told_and_does_not_stop_the_pod(source, target, trouble):
    sources = [str(source)]
    if trouble == "no source":
        sources = [str(source) + "-absent"]
    elif trouble == "a folder in its place":
        (target / "loopback" / "x").mkdir(parents=True)
    else:
        target.rmdir()
        target.write_text("")
    done = run(target, *sources)
    assert done.returncode == 0
    assert "not put in place" in done.stdout
    assert "Traceback" not in done.stderr
    if target.is_dir():
        assert not [name for name in os.listdir(target) if name.startswith(".")]


def test_a_missing_argument_is_a_usage_error(capsys):
    assert loopback.main([]) == 2
    assert "usage" in capsys.readouterr().err
