"""A running daemon follows its config file and never loses the last good one."""

import os

import pytest
from prometheus_client import CollectorRegistry

from tessera.daemon.configfile import ConfigFile
from tessera.model.config import parse
from tessera.model.errors import ConfigError


def _write(path, text):
    # As a mounted ConfigMap changes: a new file is moved over the old one.
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def test_no_file_means_the_defaults():
    assert ConfigFile(None, parse).current == parse("")


def test_a_file_that_is_refused_at_start_is_an_error_with_its_name(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("placement:\n  polcy: pack\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: placement\.polcy \(line 2\).*did you mean 'policy'"):
        ConfigFile(str(path), parse)


def test_a_missing_file_is_an_error_with_its_name(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml can't be read"):
        ConfigFile(str(tmp_path / "absent.yaml"), parse)


def test_a_file_that_is_not_utf8_is_an_error(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="can't be read"):
        ConfigFile(str(path), parse)


def test_a_change_reaches_subscribers_once(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("")
    file = ConfigFile(str(path), parse)
    seen = []
    file.subscribe(seen.append)
    _write(path, "placement: {policy: spread}")
    assert file.reload()
    assert file.reload()
    assert [config.placement.policy for config in seen] == ["spread"]


@pytest.mark.parametrize("broken", ["placement: {policy: fast}", "[", "memoryUnit: 512Mi", "domain: other.example"])
def test_a_broken_or_unappliable_change_keeps_the_last_good_one_and_says_so(tmp_path, broken):
    path = tmp_path / "config.yaml"
    path.write_text("placement: {policy: spread}")
    registry = CollectorRegistry()
    file = ConfigFile(str(path), parse, registry=registry)
    before = file.current
    _write(path, broken)
    assert not file.reload()
    assert file.current == before
    assert file.problem
    assert registry.get_sample_value("tessera_config_last_reload_successful") == 0
    _write(path, "placement: {policy: pack}")
    assert file.reload()
    assert file.problem is None
    assert registry.get_sample_value("tessera_config_last_reload_successful") == 1


async def test_it_follows_the_file_by_itself(tmp_path):
    import asyncio

    path = tmp_path / "config.yaml"
    path.write_text("")
    file = ConfigFile(str(path), parse)
    changed = asyncio.Event()
    file.subscribe(lambda _: changed.set())
    task = asyncio.create_task(file.follow(poll=0.001))
    _write(path, "placement: {policy: spread}")
    async with asyncio.timeout(10):
        await changed.wait()
    task.cancel()
    assert file.current.placement.policy == "spread"
