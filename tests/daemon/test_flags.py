"""Flags come from the command line, then the environment, then the default; mistakes are one clear line."""

import pytest

from tessera.daemon.flags import Address, Flags, address


def _flags(environ):
    flags = Flags("tessera-x", "a test", environ=environ)
    flags.add("--status-listen", "where", address, "127.0.0.1:9464")
    flags.add("--config", "which", str, None)
    return flags


def test_precedence():
    assert _flags({}).read([]).status_listen == Address("127.0.0.1", 9464)
    assert _flags({"TESSERA_STATUS_LISTEN": "0.0.0.0:1"}).read([]).status_listen == Address("0.0.0.0", 1)
    flags = _flags({"TESSERA_STATUS_LISTEN": "0.0.0.0:1"})
    assert flags.read(["--status-listen", "[::1]:2"]).status_listen == Address("::1", 2)
    assert _flags({}).read([]).config is None


@pytest.mark.parametrize("bad", ["", "host", ":", "127.0.0.1", "127.0.0.1:70000", "::1:80", "127.0.0.1:٣", "a:-1"])
def test_a_bad_address_is_refused_with_an_example(bad, capsys):
    with pytest.raises(SystemExit) as ended:
        _flags({}).read(["--status-listen", bad])
    assert ended.value.code == 2
    assert "is not HOST:PORT" in capsys.readouterr().err


def test_a_bad_environment_variable_is_refused_too(capsys):
    with pytest.raises(SystemExit):
        _flags({"TESSERA_STATUS_LISTEN": "nowhere"}).read([])
    assert "is not HOST:PORT" in capsys.readouterr().err


def test_help_names_the_variable(capsys):
    with pytest.raises(SystemExit) as ended:
        _flags({}).read(["--help"])
    assert ended.value.code == 0
    assert "TESSERA_STATUS_LISTEN" in capsys.readouterr().out


def test_abbreviations_are_refused():
    with pytest.raises(SystemExit):
        _flags({}).read(["--status", "127.0.0.1:1"])


def test_an_address_reads_back():
    for text in ("127.0.0.1:80", "[::1]:80", "localhost:0"):
        assert str(address(text)) == text


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as ended:
        _flags({}).read(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("tessera-x ")
