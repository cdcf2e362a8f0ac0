"""`tessera generate`: files where they belong, YAML on demand, and mistakes told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tessera.cli.main import main

FILES = {
    "base/policies.yaml",
    "base/webhooks.yaml",
    "components/cni-repair/entry.yaml",
    "components/default-scheduler/scheduler.yaml",
    "components/second-scheduler/scheduler.yaml",
}


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_files_are_where_the_manifests_have_them(tmp_path: Path) -> None:
    assert main(["generate", "-o", str(tmp_path)]) == 0
    assert below(tmp_path) == FILES


def test_what_was_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "-o", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"wrote {tmp_path / name}" for name in sorted(FILES)]


def test_what_else_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "webhook.yaml").write_text("mine")
    (tmp_path / "base" / "policies.yaml").write_text("old")
    assert main(["generate", "-o", str(tmp_path), "policies"]) == 0
    assert (tmp_path / "base" / "webhook.yaml").read_text() == "mine"
    assert "ValidatingAdmissionPolicy" in (tmp_path / "base" / "policies.yaml").read_text()
    assert below(tmp_path) == {"base/webhook.yaml", "base/policies.yaml"}


@pytest.mark.parametrize("part", ["scheduler", "policies", "webhooks", "all"])
def test_what_is_printed_is_yaml(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", part]) == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    assert printed
    assert all(printed)


def test_the_config_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("domain: gpu.example.com\n")
    assert main(["generate", "--config", str(tmp_path / "config.yaml"), "scheduler"]) == 0
    printed = capsys.readouterr().out
    assert "gpu.example.com/gpu-memory.256Mi" in printed
    assert "tessera.dev" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "missing"], "missing is no folder; give the folder manifests"),
        (
            ["--config", "missing.yaml"],
            "tessera generate: config missing.yaml can't be read: No such file or directory",
        ),
        (["--config", "latin.yaml"], "config latin.yaml can't be read"),
        (["--config", "typo.yaml"], "config typo.yaml: domian"),
        (["--config", "long.yaml"], "so it is no config"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typo.yaml").write_text("domian: a.example\n")
    (tmp_path / "latin.yaml").write_bytes(b"domain: \xe9\n")
    (tmp_path / "long.yaml").write_text("#" * (1 << 20) + "\n")
    assert main(["generate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
