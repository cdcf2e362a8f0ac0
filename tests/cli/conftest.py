"""What the tests of the command line share."""

import json

import pytest

from tessera.cli.main import main


@pytest.fixture
def mutate(tmp_path, capsys):
    """Run `tessera mutate` on a text; returns exit code, standard output, standard error."""

    def call(text, *more, output="json"):
        path = tmp_path / "manifest.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        code = main(["mutate", "-f", str(path), "-o", output, *more])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def lines(mutate):
    """The same for objects given as plain data, with `-o json`: the lines of standard output, read."""

    def call(*objects, config=()):
        _, out, _ = mutate("\n---\n".join(map(json.dumps, objects)), *config)
        return [json.loads(line) for line in out.splitlines()]

    return call
