"""The config file is read strictly; each refusal names path, line and what would be valid."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.model.config import Config, DialectOptions, parse
from tessera.model.errors import ConfigError


class _Aliyun(DialectOptions, frozen=True, kw_only=True):
    memory_unit: Literal["auto", "GiB", "MiB"] = "auto"


KNOWN = {"hami": DialectOptions, "aliyun": _Aliyun}


def test_an_empty_file_is_the_defaults():
    for text in ("", "---\n", "# nothing\n", "{}"):
        assert parse(text, dialects=KNOWN) == parse("", dialects=KNOWN)
    assert parse("") == Config()


def test_dialects_are_on_off_or_options():
    config = parse("dialects:\n  hami: false\n  aliyun: {memoryUnit: MiB}", dialects=KNOWN)
    assert config.dialects == {"hami": DialectOptions(enabled=False), "aliyun": _Aliyun(memory_unit="MiB")}


def test_amounts_are_quantities():
    config = parse("memoryUnit: 1Gi\nheadroomPerGpu: 512Mi")
    assert (config.memory_unit, config.headroom_per_gpu) == (1024**3, 512 * 1024**2)
    assert config.names.memory_units == "tessera.dev/gpu-memory.1Gi"


def test_a_profile():
    config = parse(
        """
        profiles:
        - name: idc-first
          units:
          - name: idc
            nodeSelector: {site: idc}
          - name: cloud
            regions: [cn-hangzhou, cn-beijing]
            tolerations: [{key: cloud, operator: Exists, effect: NoSchedule}]
        """
    )
    units = config.profiles[0].units
    assert [unit.name for unit in units] == ["idc", "cloud"]
    assert units[1].regions == ("cn-hangzhou", "cn-beijing")
    assert units[1].tolerations[0].operator == "Exists"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("placment: {}", r"placment \(line 1\): unknown key; did you mean 'placement'"),
        ("x: 1\nplacement:\n  polcy: pack", r"unknown key"),
        ("\nplacement:\n  polcy: pack", r"placement\.polcy \(line 3\): unknown key; did you mean 'policy'"),
        (
            "placement:\n  policy: fast",
            r"placement\.policy \(line 2\).*'fast'; valid are best-fit, fragmentation, pack, priced, spread",
        ),
        ("domain: x", r"domain \(line 1\): 'x' is not a DNS name"),
        ("memoryUnit: 3Ki", r"memoryUnit \(line 1\): 3072 bytes"),
        ("memoryUnit: 1_0", r"'1_0' is not a quantity"),
        ("headroomPerGpu: -1Gi", r"headroomPerGpu \(line 1\): '-1Gi' is negative"),
        ("headroomPerGpu: [1]", r"headroomPerGpu"),
        ("dialects:\n  aliyn: true", r"dialects\.aliyn \(line 2\): no such dialect; did you mean 'aliyun'"),
        ("dialects:\n  aliyun:\n    memoryUnit: kB", r"dialects\.aliyun\.memoryUnit \(line 3\).*valid are"),
        ("dialects: 3", r"dialects \(line 1\)"),
        ("profiles:\n- name: a\n  units: []", r"profiles\[0\]\.units \(line 3\)"),
        ("profiles:\n- name: a\n  units:\n  - name: x\n    region: [a]", r"region \(line 5\).*did you mean 'regions'"),
        ("profiles:\n- {name: a, units: [{name: x}]}\n- {name: a, units: [{name: x}]}", r"'a' stands twice"),
        ("profiles:\n- {name: a, units: [{name: x}, {name: x}]}", r"units \(line 2\): one unit's name stands twice"),
        (
            "profiles:\n- {name: a, units: [{name: x}, {name: y}]}",
            r"units\[0\] \(line 2\): 'x' names neither labels nor",
        ),
        ("isolation: [kern]", r"isolation\[0\] \(line 1\).*valid are kernel, process"),
        ("isolation: [none, none]", r"names one guarantee twice"),
        ("limits:\n  team-a:\n    memory: 1x", r"limits\.team-a\.memory \(line 3\)"),
        ("a: [", r"not YAML"),
        ("- 1", r"list at the top"),
        ("&a [*a]", r"config is"),
        ("domain: a.b\ndomain: c.d", r"domain \(line 2\): this key stands twice"),
        ("placement: {policy: pack, policy: spread}", r"policy \(line 1\): this key stands twice"),
        ("domain: !!python/object/apply:os.system [id]", r"not YAML"),
        ("#" * 1_100_000, r"at most 1048576"),
    ],
)
def test_refusals(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text, dialects=KNOWN)


def test_aliases_that_double_cost_nothing():
    text = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    with pytest.raises(ConfigError, match="unknown key"):
        parse(text)


_yaml = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["placement", "policy", "profiles", "units", "name", "dialects", "aliyun", "limits", "zz"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(_yaml)
def test_any_document_is_taken_or_refused_in_words(plain):
    import yaml

    text = yaml.safe_dump(plain)
    try:
        config = parse(text, dialects=KNOWN)
    except ConfigError as error:
        config = None
        assert "Traceback" not in str(error)  # noqa: PT017 - both outcomes are right, for different documents
    assert config is None or isinstance(config, Config)
