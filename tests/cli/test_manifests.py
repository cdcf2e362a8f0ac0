"""Files, folders and standard input: what can be read is, and what can't is named with file, document and line."""

import io
import json

import pytest

from tessera.cli.manifests import LARGEST, Manifest, read


@pytest.fixture
def read_text(tmp_path):
    """Read a text as a file; returns objects' kinds and names, and errors as texts without the folder."""

    def run(text, name="m.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return _told(read(str(path), stdin=io.BytesIO()), tmp_path)

    return run


def _told(found, folder):
    return [
        f"{each.kind} {each.name}" if isinstance(each, Manifest) else str(each).replace(f"{folder}/", "")
        for each in found
    ]


def _pod(name, **more):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **more}


def test_documents_in_order_and_mistakes_among_them(read_text):
    text = "kind: Pod\nmetadata: {name: a}\n---\na: 1\na: 2\n---\n- x\n---\nmetadata: {}\n---\nkind: Pod\nmetadata: {name: b}\n"
    assert read_text(text) == [
        "Pod a",
        "m.yaml: document 2, line 5: the key 'a' stands twice",
        "m.yaml: document 3 (line 7) is a list; write an object with apiVersion, kind and metadata",
        "m.yaml: document 4 (line 9) has no kind; write what it is, such as kind: Pod",
        "Pod b",
    ]


def test_after_a_mistake_of_syntax_the_rest_is_said_to_be_unread(read_text):
    assert read_text("kind: Pod\n---\na: [\n---\nkind: Pod") == [
        "Pod ",
        ("m.yaml: document 2, line 4: not YAML: while parsing a flow node, did not find expected node content"
         "; nothing after it is read"),
    ]  # fmt: skip


@pytest.mark.parametrize("value", ["text", "7", "[]", "true", "[{kind: Pod}]"])
def test_what_is_no_object(read_text, value):
    (said,) = read_text(value)
    assert "write an object with apiVersion, kind and metadata" in said


@pytest.mark.parametrize("kind", ["", "7", "null", "[Pod]", "{a: b}", "true"])
def test_a_kind_is_a_text(read_text, kind):
    (said,) = read_text(f"kind: {kind}\nmetadata: {{name: a}}")
    assert "has no kind" in said


def test_lists_are_taken_apart(read_text):
    inner = {"kind": "List", "items": [_pod("c")]}
    whole = {
        "apiVersion": "v1",
        "kind": "List",
        "items": [_pod("a"), {"kind": "Service"}, inner, 7, None, {"metadata": {}}],
    }
    assert read_text(json.dumps(whole)) == [
        "Pod a",
        "Service ",
        "Pod c",
        "m.yaml: document 1 (line 1): items[3] is no object",
        "m.yaml: document 1 (line 1): items[4] is no object",
        "m.yaml: document 1 (line 1): items[5] has no kind; write what it is, such as kind: Pod",
    ]


def test_items_of_a_typed_list_have_its_kind(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(
        json.dumps({"apiVersion": "apps/v1", "kind": "DeploymentList", "items": [{"metadata": {"name": "a"}}]})
    )
    (found,) = read(str(path), stdin=io.BytesIO())
    assert found.value == {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}}
    assert read_names(read(str(path), stdin=io.BytesIO())) == ["a"]


def read_names(found):
    return [each.name for each in found]


def test_a_list_in_a_list_in_a_list(read_text):
    text = '{"kind": "List", "items": [' * 45 + "7" + "]}" * 45
    (said,) = read_text(text)
    assert said.endswith("is no object")


def test_names_and_namespaces(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(
        "kind: Pod\nmetadata: {generateName: gen-, namespace: team}\n---\nkind: Pod\nmetadata: {name: [1], namespace: 7}\n"
        "---\nkind: Pod\nmetadata: text\n---\nkind: Pod"
    )
    found = list(read(str(path), stdin=io.BytesIO()))
    assert [(each.name, each.namespace) for each in found] == [("gen-", "team"), ("", ""), ("", ""), ("", "")]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfkind: Pod\r\nmetadata: {name: \xc3\xa9}\r\n",
        "kind: Pod\nmetadata: {name: é}\n".encode("utf-16"),
        b"\xfe\xff" + "kind: Pod\r\nmetadata: {name: é}\r\n".encode("utf-16-be"),
        b'\xef\xbb\xbf{"kind": "Pod", "metadata": {"name": "\\u00e9"}}',
    ],
)
def test_marks_in_front_of_a_file(read_text, data):
    assert read_text(data) == ["Pod é"]


@pytest.mark.parametrize("data", [b"kind: Pod\nx: \xff\n", b"kind: Pod\nx: \xc3", b"\xff\xfe\x00", b"a\n\xed\xa0\x80"])
def test_bytes_that_are_no_text(read_text, data):
    (said,) = read_text(data)
    assert said.startswith("m.yaml: line ")
    assert "not UTF-8" in said


def test_a_file_is_read_up_to_a_limit(read_text):
    assert read_text(b"kind: Pod\n#" + b"x" * (LARGEST - 11)) == ["Pod "]
    (said,) = read_text(b"kind: Pod\n#" + b"x" * LARGEST)
    assert f"more than {LARGEST} bytes" in said


def test_what_can_not_be_opened(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("absent.yaml", "file/x", "nul\x00", "x" * 5000, ""):
        (said,) = _told(read(str(tmp_path / name) if name else "", stdin=io.BytesIO()), tmp_path)
        assert "can't be read" in said or "holds 0 files" in said


def test_a_device_without_end_is_not_read_for_ever():
    (said,) = read("/dev/zero", stdin=io.BytesIO())
    assert "more than" in str(said)


def test_a_folder_is_its_manifests_in_order(tmp_path):
    for name, text in {
        "b.yml": "kind: B",
        "a.yaml": "kind: A",
        "c.json": '{"kind": "C"}',
        "d.txt": "kind: D",
        "e.yaml": "- 1",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.yaml").write_text("kind: X")
    assert _told(read(str(tmp_path), stdin=io.BytesIO()), tmp_path) == [
        "A ",
        "B ",
        "C ",
        "e.yaml: document 1 (line 1) is a list; write an object with apiVersion, kind and metadata",
    ]


def test_a_folder_without_manifests_is_said(tmp_path):
    (said,) = read(str(tmp_path), stdin=io.BytesIO())
    assert "holds 0 files named *.yaml, *.yml, *.json" in str(said)


def test_standard_input_is_read_within_the_same_limit():
    assert _told(read("-", stdin=io.BytesIO(b"kind: Pod")), "") == ["Pod "]
    (said,) = _told(read("-", stdin=io.BytesIO(b" " * (LARGEST + 1))), "")
    assert said.startswith("standard input: more than")
