"""Images without an engine: the Dockerfiles' steps are understood or refused, and the same files give the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from images import rootfs
from images.__main__ import IMAGES, SOURCE, epoch, main
from images.archive import File, difference, layer_of_files, layer_of_tree, write
from images.dockerfile import Copy, Run, parse
from images.errors import ImageError
from images.stages import Workshop, base_key

EPOCH = 1_700_000_000
DOCKERFILES = sorted(dockerfile for _, dockerfile in IMAGES.values())


def names(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return {each.name: each for each in tar.getmembers()}


# The Dockerfiles.


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_every_instruction_of_ours_is_understood(dockerfile: str) -> None:
    assert parse((SOURCE / dockerfile).read_text(), name=dockerfile)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_every_image_starts_from_what_the_release_names(dockerfile: str) -> None:
    text = (SOURCE / dockerfile).read_text()
    assert "ARG BASE\n" in text, "without a default: a release pins it"
    assert {line.split()[1] for line in text.splitlines() if line.startswith("FROM")} <= {"${BASE}", "locked"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_only_what_the_locks_say_is_installed(dockerfile: str) -> None:
    runs = [step.command for stage in parse((SOURCE / dockerfile).read_text(), name="") for step in stage.steps if isinstance(step, Run)]  # fmt: skip
    installs = [part for run in runs for part in run.split("&&") if " install " in part and "pip" in part]
    assert installs
    assert all("--require-hashes" in part or "--no-index" in part for part in installs)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_an_image_is_nobodys_unless_it_is_told(dockerfile: str) -> None:
    final = parse((SOURCE / dockerfile).read_text(), name=dockerfile)[-1].config
    assert final["User"] == "65532:65532"


def test_each_image_starts_its_program() -> None:
    project = (SOURCE / "pyproject.toml").read_text()
    for name, dockerfile in IMAGES.values():
        (program,) = parse((SOURCE / dockerfile).read_text(), name=dockerfile)[-1].config["Entrypoint"]
        assert program == name
        assert f"\n{program} = " in project


def test_an_engine_is_sent_what_is_copied_and_nothing_else() -> None:
    lines = (SOURCE / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    stages = [stage for each in DOCKERFILES for stage in parse((SOURCE / each).read_text(), name=each)]
    copied = {
        name.partition("/")[0]
        for stage in stages
        for step in stage.steps
        if isinstance(step, Copy) and not step.stage
        for name in step.sources
    }
    assert sent == copied
    assert "*" in lines
    assert "**/__pycache__" in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no FROM"),
        ("FROM scratch", "no such stage"),
        ("FROM ${BASE} AS", "neither"),
        ("ENV A=1\nFROM ${BASE}", "before the first FROM"),
        ("ARG OTHER\nFROM ${BASE}", "before the first FROM"),
        ("FROM ${BASE}\nADD a /b", "ADD is not known"),
        ("FROM ${BASE}\nWORKDIR /a", "WORKDIR is not known"),
        ("FROM ${BASE}\nRUN --network=none true", "only --mount"),
        ("FROM ${BASE}\nRUN --mount=type=secret,target=/a true", "only --mount"),
        ('FROM ${BASE}\nRUN ["true"]', "shell command"),
        ("FROM ${BASE}\nCOPY --chown=1:1 a /b", "--chown is not known"),
        ("FROM ${BASE}\nCOPY --from=other /a /b", "no such stage"),
        ("FROM ${BASE}\nCOPY a b", "absolute target"),
        ("FROM ${BASE}\nCOPY a b /c", "ends in a slash"),
        ("FROM ${BASE}\nENV PATH=/a:$PATH", "without variables"),
        ("FROM ${BASE}\nENTRYPOINT tessera-webhook", "no list of words"),
        ("FROM ${BASE}\nENTRYPOINT []", "no list of words"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        parse(text, name="Dockerfile.x")


def test_a_refusal_names_file_and_line() -> None:
    with pytest.raises(ImageError, match=r"^Dockerfile\.x:4: ADD"):
        parse("# why\nFROM ${BASE}\n\nADD a \\\n /b\n", name="Dockerfile.x")


def test_steps_are_read_as_an_engine_reads_them() -> None:
    text = """
        ARG BASE
        FROM ${BASE} AS one
        RUN --mount=type=cache,target=/c a \\
            # a comment between
            && b
        FROM one
        COPY --from=one /x /y
        ENV A=1 \\
            B="two words"
        """
    one, last = parse("\n".join(line.strip() for line in text.splitlines()), name="")
    assert one.steps == (Run("a && b", ("/c",)),)
    assert (last.base, last.steps) == ("one", (Copy(("/x",), "/y", "one"),))
    assert last.config["Env"] == ["A=1", "B=two words"]


# Archives.


def test_an_archive_is_what_a_runtime_imports(tmp_path: Path) -> None:
    layer = layer_of_files(tmp_path / "l.tar.gz", {"usr/bin/x": File(b"#!", 0o755), "/etc/y": File(b"y")}, epoch=EPOCH)
    path = tmp_path / "x.tar"
    config = {"Entrypoint": ["/usr/bin/x"], "User": "1:1"}
    write(path, tags=["x:1", "y:1"], layers=[layer], config=config, architecture="amd64", epoch=EPOCH)
    with tarfile.open(path) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json"))
        image = json.load(archive.extractfile(manifest["Config"]))
        packed = archive.extractfile(manifest["Layers"][0]).read()
    assert manifest["RepoTags"] == ["x:1", "y:1"]
    assert image["config"] == config
    assert image["created"] == "2023-11-14T22:13:20Z"
    assert image["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(gzip.decompress(packed)).hexdigest()}"]
    found = names(layer.path)
    assert list(found) == ["etc", "usr", "usr/bin", "etc/y", "usr/bin/x"]
    assert found["usr/bin/x"].mode == 0o755


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for number in range(2):
        root = tmp_path / str(number)
        root.mkdir()
        for name in ("b", "a") if number else ("a", "b"):
            (root / name).write_text(name)
            os.utime(root / name, (EPOCH + 99 + number, EPOCH + 99 + number))
        layer = layer_of_tree(root, tmp_path / f"{number}.tar.gz", members=["b", "a"], epoch=EPOCH)
        made.append((layer.digest, layer.path.read_bytes()))
    assert made[0] == made[1]


def test_a_layer_has_no_dates_and_no_names_of_the_machine_it_was_made_on(tmp_path: Path) -> None:
    (tmp_path / "young").write_text("y")
    (tmp_path / "old").write_text("o")
    os.utime(tmp_path / "old", (5, 5))
    layer = layer_of_tree(tmp_path, tmp_path / "l.tar.gz", members=["old", "young"], epoch=EPOCH)
    found = names(layer.path)
    assert (found["old"].mtime, found["young"].mtime) == (5, EPOCH)
    assert {(each.uname, each.gname) for each in found.values()} == {("", "")}


def test_a_layer_that_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        layer_of_tree(tmp_path, tmp_path / "l.tar.gz", members=["missing"], epoch=EPOCH)
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_what_was_added_changed_and_removed(tmp_path: Path) -> None:
    base, root = tmp_path / "base", tmp_path / "root"
    (base / "kept").mkdir(parents=True)
    (base / "gone" / "deep").mkdir(parents=True)
    for name in ("kept/same", "kept/changed", "gone/deep/file"):
        (base / name).write_text("1")
    rootfs.duplicate(base, _made(root))
    (root / "kept" / "changed").write_text("22")
    (root / "kept" / "new").write_text("1")
    (root / "link").symlink_to("kept")
    shutil.rmtree(root / "gone")
    changed, gone = difference(root, base)
    assert sorted(changed) == ["kept/changed", "kept/new", "link"]
    assert gone == ["gone"]
    layer = layer_of_tree(root, tmp_path / "l.tar.gz", members=changed, gone=gone, epoch=EPOCH)
    assert ".wh.gone" in names(layer.path)


# Stages, on a base that is there already.


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "pack" / "__pycache__").mkdir(parents=True)
    (source / "pack" / "module.py").write_text("1")
    (source / "pack" / "__pycache__" / "module.pyc").write_text("1")
    return source


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def workshop(tmp_path: Path, source: Path, said: list[str]) -> Workshop:
    home = tmp_path / "home"
    base = home / "base" / f"{base_key()}.tar"
    base.parent.mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os").write_text("debian")
    with tarfile.open(base, "w") as tar:
        tar.add(tmp_path / "etc", "./etc")
    return Workshop(home, source, epoch=EPOCH, now=EPOCH, say=said.append)


COPIES = "FROM ${BASE} AS one\nCOPY pack /opt/pack/\nFROM ${BASE}\nCOPY --from=one /opt/pack /srv/pack\nUSER 1:1\n"


def test_an_image_is_the_base_and_what_was_added(workshop: Workshop) -> None:
    base, added = workshop.layers(parse(COPIES, name=""))
    assert "./etc/os" in names(base.path)
    assert sorted(names(added.path)) == ["srv", "srv/pack", "srv/pack/module.py"]


def test_byte_code_comes_from_a_stage_and_never_from_the_repository(workshop: Workshop) -> None:
    text = "FROM ${BASE} AS one\nCOPY pack/__pycache__/module.pyc /opt/pack/__pycache__/module.pyc\nFROM ${BASE}\nCOPY --from=one /opt /opt\n"
    _, added = workshop.layers(parse(text, name=""))
    assert "opt/pack/__pycache__/module.pyc" in names(added.path)


def test_what_has_not_changed_is_not_built_again(workshop: Workshop, said: list[str]) -> None:
    first = workshop.layers(parse(COPIES, name=""))
    said.clear()
    assert workshop.layers(parse(COPIES, name="")) == first
    assert said == []


def test_what_has_changed_is_built_again(workshop: Workshop, source: Path, said: list[str]) -> None:
    _, first = workshop.layers(parse(COPIES, name=""))
    (source / "pack" / "module.py").write_text("2")
    said.clear()
    _, second = workshop.layers(parse(COPIES, name=""))
    assert first.digest != second.digest
    assert any("pack -> /opt/pack/" in line for line in said)


def test_another_base_of_the_same_recipe_is_another_image(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = workshop.layers(parse(COPIES, name=""))
    stages = {each.name for each in (tmp_path / "home" / "stages").iterdir()}
    (tmp_path / "home" / "base" / f"{base_key()}.tar").unlink()
    (tmp_path / "etc" / "os").write_text("debian of another day")

    def make(path: Path, *, epoch: int) -> None:
        assert epoch == EPOCH
        with tarfile.open(path, "w") as tar:
            tar.add(tmp_path / "etc", "./etc")

    monkeypatch.setattr(rootfs, "make_base", make)
    second, _ = workshop.layers(parse(COPIES, name=""))
    assert first.digest != second.digest
    assert len({each.name for each in (tmp_path / "home" / "stages").iterdir()} - stages) == 2


def test_byte_code_in_the_repository_changes_nothing(workshop: Workshop, source: Path) -> None:
    first = workshop.layers(parse(COPIES, name=""))
    (source / "pack" / "__pycache__" / "other.pyc").write_text("2")
    assert workshop.layers(parse(COPIES, name="")) == first


def test_a_file_that_is_not_there_is_named(workshop: Workshop) -> None:
    with pytest.raises(ImageError, match=r"COPY missing: no such file in the repository"):
        workshop.layers(parse("FROM ${BASE}\nCOPY missing /a\n", name=""))


def test_a_broken_build_leaves_nothing_that_a_later_one_takes_for_whole(workshop: Workshop, source: Path) -> None:
    stages = parse("FROM ${BASE}\nCOPY pack /opt/\nCOPY late /a\n", name="")
    with pytest.raises(ImageError):
        workshop.layers(stages)
    (source / "late").write_text("1")
    _, added = workshop.layers(stages)
    assert {"opt/module.py", "a"} <= set(names(added.path))


def test_what_no_build_uses_any_more_is_removed(
    workshop: Workshop, source: Path, tmp_path: Path, said: list[str]
) -> None:
    workshop.layers(parse(COPIES, name=""))
    (source / "pack" / "module.py").write_text("2")
    later = Workshop(tmp_path / "home", source, epoch=EPOCH, now=EPOCH, say=said.append)
    later.layers(parse(COPIES, name=""))
    later.tidy()
    assert len(list((tmp_path / "home" / "stages").iterdir())) == 2


# The program.


def test_an_unknown_image_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["kubelet"])
    assert end.value.code == 2
    assert "there are webhook, node" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["yesterday", "-1", "1e9", "1.5"])
def test_a_date_that_is_none_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", given)
    with pytest.raises(ImageError, match="whole seconds since 1970"):
        epoch()


def test_the_date_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
    assert epoch() == EPOCH


def test_a_failed_command_shows_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"(?s)^tar .*\nended with code 2:\n.*missing\.tar"):
        rootfs.unpack(tmp_path / "missing.tar", tmp_path)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
