"""The one door: help at once, flags as environment variables, and whatever goes wrong ends in one line and a code."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tessera.cli import main as door
from tessera.model.errors import TesseraError

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "hami.yaml")


@pytest.fixture
def command(monkeypatch):
    """Put a command of our own behind the door: what it does when it runs, and the flags that it declares."""
    monkeypatch.delenv("TESSERA_DEBUG", raising=False)

    def put(action, *flags):
        def add_arguments(parser):
            for names, options in flags:
                parser.add_argument(*names, **options)

        module = SimpleNamespace(add_arguments=add_arguments, run=action)
        monkeypatch.setattr(door, "COMMANDS", {"play": ("a.module", "play something")})
        monkeypatch.setattr(door.importlib, "import_module", {"a.module": module}.__getitem__)

    return put


def _raise(error):
    def action(_):
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TesseraError("the cluster is away"), 2, "tessera play: the cluster is away"),
        (FileNotFoundError(2, "No such file", "x"), 2, "tessera play: x: No such file"),
        (ModuleNotFoundError("No module named 'rich'"), 2, "in a checkout: pip install '.[cli]'"),
        (KeyError("x"), 70, "a mistake of this program's: KeyError: 'x'"),
        (RecursionError("too deep"), 70, "RecursionError"),
        (MemoryError(), 70, "MemoryError"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_goes_wrong_is_one_line_and_a_code(command, capsys, error, code, said):
    command(_raise(error))
    assert door.main(["play"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") <= 1


def test_a_traceback_is_there_for_whoever_asks(command, monkeypatch):
    monkeypatch.setenv("TESSERA_DEBUG", "1")
    command(_raise(KeyError("x")))
    with pytest.raises(KeyError):
        door.main(["play"])


def test_the_commands_code_is_the_programs(command):
    for code in (0, 1, 3):
        command(lambda _, code=code: code)
        assert door.main(["play"]) == code


FLAGS = (
    (("--kubeconfig",), {}),
    (("-o", "--output"), {"choices": ("table", "json"), "default": "table"}),
    (("--number",), {"type": int, "default": 1}),
    (("--no-color",), {"action": "store_true"}),
    (("-f", "--filename"), {"action": "extend", "nargs": "+"}),
    (("node",), {"nargs": "*"}),
)


@pytest.fixture
def flags(command, monkeypatch):
    """Run with some environment and arguments; returns what the command is given."""

    def run(environ, *arguments):
        given = []
        command(lambda options: given.append(options) or 0, *FLAGS)
        for name in [name for name in os.environ if name.startswith("TESSERA_")]:
            monkeypatch.delenv(name)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert door.main(["play", *arguments]) == 0
        return given[0]

    return run


def test_flags_come_from_the_command_line_then_the_environment_then_the_default(flags):
    found = flags({})
    assert (found.kubeconfig, found.output, found.number, found.no_color, found.filename) == (
        None,
        "table",
        1,
        False,
        None,
    )
    environ = {
        "TESSERA_KUBECONFIG": "k", "TESSERA_OUTPUT": "json", "TESSERA_NUMBER": "7", "TESSERA_NO_COLOR": "true", "TESSERA_FILENAME": "f",
    }  # fmt: skip
    found = flags(environ)
    assert (found.kubeconfig, found.output, found.number, found.no_color, found.filename) == (
        "k",
        "json",
        7,
        True,
        None,
    )
    found = flags(environ, "--kubeconfig", "l", "-o", "table", "--number", "8", "-f", "a", "b")
    assert (found.kubeconfig, found.output, found.number, found.filename) == ("l", "table", 8, ["a", "b"])
    found = flags({"TESSERA_NO_COLOR": "0", "TESSERA_OUTPUT": ""})
    assert (found.no_color, found.output) == (False, "table")


@pytest.mark.parametrize(
    ("environ", "words"),
    [({"TESSERA_OUTPUT": "xml"}, "TESSERA_OUTPUT is 'xml'"), ({"TESSERA_NUMBER": "many"}, "'many'")],
)
def test_a_bad_value_of_the_environment_is_named(flags, capsys, environ, words):
    with pytest.raises(SystemExit) as ended:
        flags(environ)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_flags_are_not_abbreviated(flags):
    with pytest.raises(SystemExit):
        flags({}, "--kube", "x")


@pytest.mark.parametrize("name", ["tessera", "/usr/local/bin/kubectl-tessera"])
def test_the_programs_name_is_what_people_type(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        door.main()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: {'kubectl tessera' if 'kubectl' in name else 'tessera'} [-h]")
    assert all(command in out for command in ("mutate", "inspect", "demo"))


@pytest.mark.parametrize(
    "arguments", [["x" * 5000], ["mutate", "-f", "x", "-o", "x" * 5000], ["mutate", "-f", "x", "--" + "\x1b" * 5000]]
)
def test_a_wrong_command_line_is_told_in_short_and_plain(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        door.main(arguments)
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert "…" in err
    assert len(err) < 3000
    assert "\x1b" not in err


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        door.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.split()[0] == "tessera"


def _run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "tessera.cli.main", *arguments], text=True, check=False, **options)


def test_help_imports_no_command():
    program = (
        "import sys\nfrom tessera.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"msgspec", "yaml", "aiohttp", "kubernetes", "rich", "numpy", "asyncio", "tessera.cli.mutate"}


def test_a_reader_that_goes_away_is_no_mistake(tmp_path):
    path = tmp_path / "many.yaml"
    path.write_text("kind: Pod\nspec: {containers: [{name: a}]}\n---\n" * 5000)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = _run("mutate", "-f", str(path), "-o", "json", stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (door.BROKEN_PIPE, "")


def test_a_terminal_that_lacks_letters_shows_the_rest(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(
        "kind: Pod\nmetadata: {name: é🦀}\nspec: {containers: [{name: a, resources: {limits: {tessera.dev/gpu: 1}}}]}\n"
    )
    environ = os.environ | {"PYTHONIOENCODING": "ascii"}
    for output in ("json", "diff", "yaml", "patch"):
        done = _run("mutate", "-f", str(path), "-o", output, capture_output=True, env=environ)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_said():
    with open("/dev/full", "w") as full:
        done = _run("mutate", "-f", EXAMPLE, "-o", "json", stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, "tessera mutate: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_streams_that_are_closed_are_empty_or_unseen(closed):
    script = f'"{sys.executable}" -m tessera.cli.main mutate -f - "{EXAMPLE}" -o yaml {closed}'
    done = subprocess.run(["bash", "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "mistake" not in done.stderr
    assert ("kind: Pod" in done.stdout) == (closed != ">&-")
