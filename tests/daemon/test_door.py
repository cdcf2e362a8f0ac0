"""The daemons' console scripts, where what a part needs is not installed."""

import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from tessera.daemon import door

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(("name", "extra"), [("webhook", "webhook"), ("extender", "webhook"), ("node", "node")])
def test_who_lacks_a_parts_extra_is_told_in_one_line(name, extra, monkeypatch, capsys):
    def absent(_):
        raise ModuleNotFoundError("No module named 'numpy'")

    monkeypatch.setattr(door, "import_module", absent)
    assert getattr(door, name)() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"tessera-{name}: No module named 'numpy'; in a checkout: pip install '.[{extra}]'\n"
    assert extra in PROJECT["optional-dependencies"]


def test_a_part_may_load_the_rest_when_it_is_called(monkeypatch, capsys):
    def main():
        raise ModuleNotFoundError("No module named 'grpc'")

    monkeypatch.setattr(door, "import_module", lambda _: SimpleNamespace(main=main))
    assert door.node() == 2
    assert "No module named 'grpc'" in capsys.readouterr().err


def test_what_a_part_returns_is_the_exit_code(monkeypatch):
    monkeypatch.setattr(door, "import_module", lambda _: SimpleNamespace(main=lambda: 7))
    assert door.extender() == 7


@pytest.mark.parametrize("name", ["webhook", "extender", "node"])
def test_every_script_goes_through_the_door_to_a_part_that_is_there(name):
    assert PROJECT["scripts"][f"tessera-{name}"] == f"tessera.daemon.door:{name}"
    assert callable(import_module(door.PARTS[name][0]).main)
