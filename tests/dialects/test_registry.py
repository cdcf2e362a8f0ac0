"""The table of dialects: complete, in an order that decides who reads `nvidia.com/gpu`, and each one switched by config."""

import importlib
import pkgutil

import pytest

import tessera.dialects
from tessera.dialects import cce, gke, hami, nvidia
from tessera.dialects.recognise import Dialects
from tessera.dialects.registry import FOREIGN, OPTIONS
from tessera.model.config import Config, parse
from tessera.model.errors import ConfigError


def test_every_file_with_a_dialect_is_in_the_table_once():
    modules = [
        importlib.import_module(f"tessera.dialects.{each.name}")
        for each in pkgutil.iter_modules(tessera.dialects.__path__)
    ]
    written = [module.DIALECT for module in modules if hasattr(module, "DIALECT")]
    assert sorted(dialect.name for dialect in FOREIGN) == sorted(dialect.name for dialect in written)
    assert len({dialect.name for dialect in FOREIGN}) == len(FOREIGN)


def test_whoever_knows_more_of_a_plain_card_is_asked_before_nvidia():
    readers = [dialect.name for dialect in FOREIGN if dialect.owns(nvidia.COUNT)]
    assert readers[-1] == nvidia.DIALECT.name
    assert {each.DIALECT.name for each in (gke, cce, hami, nvidia)} == set(readers)


@pytest.mark.parametrize("dialect", FOREIGN, ids=lambda dialect: dialect.name)
def test_each_has_something_that_triggers_it_and_says_whose_it_is(dialect):
    triggers = (dialect.resources, dialect.prefixes, dialect.annotations, dialect.annotation_prefixes, dialect.labels)
    assert any(triggers)
    assert dialect.about
    assert all(name.strip() == name and name for kind in triggers for name in kind)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_each_is_on_without_a_config_and_can_be_switched_off(name):
    assert name in {dialect.name for dialect in Dialects(Config()).active}
    off = parse(f"dialects: {{{name}: false}}", dialects=OPTIONS)
    assert {dialect.name for dialect in Dialects(off).active} == set(OPTIONS) - {name}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dialects: {hamii: true}", ["dialects.hamii", "hami"]),
        ("dialects: {hami: {memoryFaktor: 2}}", ["memoryFaktor", "memoryFactor"]),
        ("dialects: {hami: {memoryFactor: 0}}", ["memoryFactor"]),
        ("dialects: {aliyun: {memoryUnit: GB}}", ["memoryUnit"]),
        ("dialects: {nvidia: {sharedPercent: 101}}", ["sharedPercent"]),
        ("dialects: [hami]", ["dialects"]),
        ("dialects: {hami: 7}", ["hami"]),
    ],
)
def test_a_typo_in_their_options_is_refused_by_its_path(text, words):
    with pytest.raises(ConfigError) as caught:
        parse(text, dialects=OPTIONS)
    assert [word for word in words if word not in str(caught.value)] == []
