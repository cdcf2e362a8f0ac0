"""docs/dialects.md is what the code does: its examples are made from the cases, its names and options are all there.

`WRITE_DOCS=1 python -m pytest tests/dialects/test_document.py` writes the examples anew; without it a difference fails.
"""

import copy
import os
import re
from pathlib import Path

import msgspec
import pytest
import yaml

from tessera.dialects.dialect import ForeignOptions
from tessera.dialects.registry import FOREIGN, OPTIONS
from tessera.model.errors import RequestError
from tessera.model.tickets import describe

PAGE = Path(__file__).parents[2] / "docs" / "dialects.md"
_BLOCK = re.compile(r"(<!-- examples of (\w+): .*? -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


def test_the_examples_are_what_the_code_does(page, every_case, admit, fill):
    made = _BLOCK.sub(lambda found: found[1] + examples(found[2], every_case, admit, fill) + found[4], page)
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(made, encoding="utf-8")
        return
    assert made == page, "refresh it: WRITE_DOCS=1 python -m pytest tests/dialects/test_document.py"


def test_every_dialect_has_its_examples_and_its_row(page):
    assert [found[2] for found in _BLOCK.finditer(page)] == list(rows(page))
    assert set(rows(page)) == set(OPTIONS)


@pytest.mark.parametrize("dialect", FOREIGN, ids=lambda dialect: dialect.name)
def test_every_name_that_is_read_is_told(page, dialect):
    told = section(page, dialect.name)
    read = (*dialect.resources, *dialect.prefixes, *dialect.annotations, *dialect.annotation_prefixes, *dialect.labels)
    assert [name for name in sorted(read) if name not in told] == []


@pytest.mark.parametrize("dialect", FOREIGN, ids=lambda dialect: dialect.name)
def test_every_option_is_told_with_its_default(page, dialect):
    shared = {field.name for field in msgspec.structs.fields(ForeignOptions)}
    for field in msgspec.structs.fields(dialect.options):
        if field.name in shared:
            continue
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        assert f"`{field.encode_name}: {default}`" in rows(page)[dialect.name]
        assert re.search(rf"`{field.encode_name}[`:]", section(page, dialect.name))


def rows(page):
    """The table of dialects: name -> row."""
    return {found[1]: found[0] for found in re.finditer(r"^\| [^|]+ \| `(\w+)` \|.*$", page, re.MULTILINE)}


def section(page, name):
    """What the page says of one dialect: from its heading to the next."""
    return next(part for part in re.split(r"^### ", page, flags=re.MULTILINE) if f"<!-- examples of {name}:" in part)


# Making the examples.


def examples(dialect, every_case, admit, fill):
    """Before and after, then one line for each other case."""
    ours = [case for case in every_case if case.dialect == dialect]
    shown = "".join(before_and_after(case, admit, fill) for case in ours if case.document)
    lines = "".join(line(case, admit, fill) for case in ours if not case.document)
    return f"{shown}\n| case | written | understood |\n| --- | --- | --- |\n{lines}\n"


def before_and_after(case, admit, fill):
    after, outcome = admit(fill(case.pod), case.config)
    said = "".join(f"# warning: {warning}\n" for warning in outcome.warnings)
    meant = "; ".join(f"{name}: {describe(asked)}" for name, asked in outcome.request.containers.items())
    return (
        f"\nBefore: {case.name}{options(case)}.\n\n```yaml\n{dump(case.pod)}```\n\n"
        f"After: {meant}.\n\n```yaml\n{said}{dump(plain(after))}```\n"
    )


def line(case, admit, fill):
    try:
        _, outcome = admit(fill(case.pod), case.config)
    except RequestError as error:
        found = f"refused: {error}"
    else:
        found = "left as it is"
        if outcome.request is not None:
            asked = outcome.request.containers.items()
            found = "; ".join((f"{name}: " if len(asked) > 1 else "") + describe(each) for name, each in asked)
    return f"| {case.name} | {written(case.pod)}{options(case)} | {cell(found)} |\n"


def options(case):
    if not case.config:
        return ""
    return f"; config `{yaml.safe_dump({'dialects': case.config}, default_flow_style=True, width=1000).strip()[1:-1]}`"


def written(pod):
    """A pod in one line: what in it asks."""
    spec, metadata = pod.get("spec", {}), pod.get("metadata") or {}
    parts = [f"annotation {shown(key, value)}" for key, value in (metadata.get("annotations") or {}).items()]
    parts += [f"label {shown(key, value)}" for key, value in (metadata.get("labels") or {}).items()]
    parts += [f"nodeSelector {shown(key, value)}" for key, value in spec.get("nodeSelector", {}).items()]
    if "schedulerName" in spec:
        parts.append(shown("schedulerName", spec["schedulerName"]))
    every = spec.get("initContainers", []) + spec.get("containers", [])
    for container in every:
        sides = container.get("resources", {})
        asks = sides.get("limits") or sides.get("requests") or {}
        env = [f"env {shown(each['name'], each['value'])}" for each in container.get("env", [])]
        own = [*(shown(key, value) for key, value in asks.items()), *env]
        parts.append((f"{container['name']} " if len(every) > 1 and own else "") + ", ".join(own))
    return ", ".join(part for part in parts if part)


def shown(key, value):
    return cell(f"`{key}: {value}`")


def cell(text):
    return text.replace("|", "\\|")


def plain(pod):
    """A pod without what every pod has and no case says."""
    pod = copy.deepcopy(pod)
    del pod["metadata"]["name"]
    for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
        del container["image"]
    return {"metadata": pod["metadata"], "spec": pod["spec"]}


def dump(value):
    return yaml.safe_dump(value, sort_keys=False, width=1000)
