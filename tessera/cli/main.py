"""`tessera`, also as `kubectl tessera`: one door to the commands, each loaded only when it is called.

A command is a module with `add_arguments(parser)` and `run(namespace) -> exit code`. Whatever goes wrong in it ends here, in
one line for the person who called it and an exit code; a traceback is shown to whoever asks for it by ``TESSERA_DEBUG=1``.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NoReturn

from tessera.daemon.flags import variable_of
from tessera.model.errors import TesseraError
from tessera.report.plaintext import plain

COMMANDS: Final = MappingProxyType(
    {
        "mutate": ("tessera.cli.mutate", "show what admission would do to manifests, without a cluster"),
        "generate": ("tessera.cli.generate", "write the manifests that depend on the config"),
        "inspect": ("tessera.cli.inspect", "show the cluster's GPUs and who holds what of them"),
        "top": ("tessera.cli.top", "show how much of the GPUs is booked and how much is used"),
        "explain": ("tessera.cli.explain", "tell the life of one pod: what it asked, where it is, why it waits"),
        "doctor": ("tessera.cli.doctor", "say what is wrong with an installation, why it matters, and how to mend it"),
        "demo": ("tessera.demo.main", "run the whole of Tessera on this machine, without a GPU or a cluster"),
    }
)
"""By name: the command's module, and a line of help."""

FAILED: Final = 2
INTERNAL: Final = 70
"""A mistake of ours (EX_SOFTWARE of sysexits.h)."""
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
"""What a shell shows of a program that SIGPIPE ended."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: of the command line, without the program; None takes the process's.

    Raises:
        SystemExit: help was asked for, or the command line is wrong (code 2), as argparse does.
    """
    given = sys.argv[1:] if arguments is None else arguments
    program = "kubectl tessera" if os.path.basename(sys.argv[0]).startswith("kubectl-") else "tessera"
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter still shows the rest
    try:
        options = _parser(program, given).parse_args(given)
        module, _ = COMMANDS[options.command]
        code: int = importlib.import_module(module).run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read us has gone (a pager, head): there is nobody to tell.
        _drop_output()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (TesseraError, OSError) as error:
        _drop_output()
        return _say(f"{program} {given[0]}: {_told(error)}", FAILED)
    except ModuleNotFoundError as error:
        # The demo runs every part; no other command needs more than its own extra.
        extras = "webhook,node,cli" if given[:1] == ["demo"] else "cli"
        return _say(f"{program}: {error}; in a checkout: pip install '.[{extras}]'", FAILED)
    except Exception as error:
        if os.environ.get("TESSERA_DEBUG"):
            raise
        kind = type(error).__name__
        return _say(f"{program}: a mistake of this program's: {kind}: {error}; TESSERA_DEBUG=1 shows where", INTERNAL)
    return code


class _Plain(argparse.ArgumentParser):
    """What was written wrong is told in short: a script may have put anything there."""

    def error(self, message: str) -> NoReturn:
        """Say so, and end with code 2."""
        super().error(plain(message))


class Parser(_Plain):
    """Every flag is an environment variable too, TESSERA_ and its name in capitals; the command line wins."""

    def __init__(self, *, environ: Mapping[str, str] = os.environ, **options: Any) -> None:
        """Make a parser that takes no abbreviations, so that a new flag can't change what an old script means."""
        self._environ = environ
        super().__init__(allow_abbrev=False, **options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """Declare an argument, as argparse does."""
        action = super().add_argument(*names, **options)
        flag = next((name for name in action.option_strings if name.startswith("--")), None)
        if flag is None or action.dest == "help" or action.nargs in ("+", "*"):
            return action
        variable = variable_of(flag)
        value = self._environ.get(variable)
        action.help = f"{action.help or ''} [{variable}]"
        if not value:
            return action
        if action.nargs == 0:
            action.default = value.lower() in ("1", "true", "yes")
        elif action.choices is not None and value not in action.choices:
            self.error(f"{variable} is {value!r}; choose from {', '.join(map(str, action.choices))}")
        else:
            action.default = value
        return action


def _parser(program: str, given: list[str]) -> argparse.ArgumentParser:
    """The program's parser; only the command that is called is imported and has its flags declared."""
    parser = _Plain(prog=program, description="Tessera: slices of GPUs for Kubernetes.", allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="say the version and stop")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command", parser_class=Parser)
    for name, (module, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
        if given[:1] == [name]:
            importlib.import_module(module).add_arguments(command)
    return parser


class _Version(argparse.Action):
    """Says the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

        try:
            found = version("tessera-gpu")
        except PackageNotFoundError:
            found = "unknown (not installed)"
        sys.stdout.write(f"{parser.prog} {found}\n")
        parser.exit()


def _open_closed() -> None:
    """A stream that whoever started us has closed is None to Python; nothing is to be read from it, or to be seen."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  until the process ends


def _drop_output() -> None:
    """What can't be written (a reader that has gone, a full disk) is not tried again when the process ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(error: TesseraError | OSError) -> str:
    """What happened, in words: an error number tells nobody anything."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _say(text: str, code: int) -> int:
    sys.stderr.write(plain(text) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
