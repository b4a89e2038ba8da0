"""Small files that would cost much, and values that would spoil a message."""

import contextlib
import re
import time
from datetime import date

import pytest
import yaml

from omit_hf.parsing import MAX_BYTES, MAX_DEPTH, label, parse_json, parse_yaml, read_json, read_yaml, shown, told

# Nine levels of ten aliases each: a billion values.
ALIASES = "a: &a [" + ", ".join(["x"] * 10) + "]\n"
ALIASES += "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
LEVELS = 10_000


def test_what_yaml_says():
    text = "a: 1\nb: [1.5, true, null, ~/x]\nc: {d: 'λ', 2001-01-01: 0x10}\n"
    assert parse_yaml(text, "a.yaml") == {
        "a": 1,
        "b": [1.5, True, None, "~/x"],
        "c": {"d": "λ", "2001-01-01": 16},
    }


def test_a_date_is_text_and_written_as_one():
    text = yaml.safe_dump({"revision": "2001-01-01", "noon": "2001-01-01 12:00:00"})
    assert parse_yaml(text, "a.yaml") == yaml.safe_load(text)
    assert parse_yaml("2001-01-01", "a.yaml") == "2001-01-01"
    assert yaml.safe_load("2001-01-01") == date(2001, 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, r"an anchor or alias \(& or \*\); expected every value written out, in line 1"),
        ("a: 1\nb: *a", "an anchor or alias .*, in line 2"),
        ("a: &a\n  b: *a", "an anchor or alias"),
        ("<<: &a {b: 1}", "an anchor or alias"),
        ("a: 1\nb: !!python/object/apply:os.system ['true']", r"a tag \(!\); expected plain values, in line 2"),
        ("!!timestamp x", "a tag"),
        ("!!int ''", "a tag"),
        ("[" * LEVELS, f"values nested more than {MAX_DEPTH} deep, in line 1"),
        ("{a: " * LEVELS, "values nested more than"),
        ("- " * LEVELS, "values nested more than"),
        ("\n".join(" " * level + "a:" for level in range(500)), f"values nested more than {MAX_DEPTH} deep, in line 5"),
        ("seed: 1" + ":1" * 500_000, "a number of more than 100 characters, in line 1"),
        ("seed: 1" + ":1" * 500_000 + ".5", "a number of more than 100 characters"),
        ("seed: 1" + "0" * 500_000, "a number of more than 100 characters"),
        ("a: [", "is no YAML: expected the node content, but found '<stream end>' in line 1"),
        ("a: 1\nb: \t- 'x", "is no YAML: .* in line 2"),
        ("a: 1\n---\nb: 2", "is no YAML: but found another document in line 2"),
        ("a: \x1b[31m", "is no YAML: unacceptable character #x001b"),
        ("a: \0", "is no YAML: unacceptable character #x0000"),
        ("a: 0b_", "is no YAML: invalid literal"),
        ('a: "\\U00110000"', "is no YAML: "),
        ("? [a]\n: 1", "is no YAML: found unhashable key in line 1"),
        ("a: =", "is no YAML: could not determine a constructor"),
        ("a: 1\nb: 2\na: 1", "the name a twice; expected it once, in line 3"),
        ("a: {b: 1, b: 1}", "the name b twice; expected it once, in line 1"),
        ("a: {1: x, true: y}", "the name True twice"),  # Python's names of one value
        ("? [a]\n: {b: 1, b: 2}", "is no YAML: found unhashable key|the name b twice"),
        ("<<: {a: 1}\na: 2", r"a merge \(<<\); expected every value written out, in line 1"),
        ('a: "\\ud800"', "a null character, or half of a surrogate pair; expected text, in line 1"),
        ('"\\0": 1', "a null character, or half of a surrogate pair"),
        ("a: [" + "1," * 20_000 + "]", "more than 20000 names and values, in line 1"),
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_is_not_read(text, message):
    began = time.process_time()
    with pytest.raises(ValueError, match=f"^a.yaml (has )?{message}") as caught:
        parse_yaml(text, "a.yaml")
    assert time.process_time() - began < 10  # minutes, if it were read
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_aliases_are_refused_before_they_cost_anything():
    assert ALIASES.count("\n") == 9
    began = time.process_time()
    with pytest.raises(ValueError, match="an anchor or alias"):
        parse_yaml(ALIASES, "a.yaml")
    assert time.process_time() - began < 0.5


def test_values_at_the_depth_that_is_read():
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_yaml(text, "a.yaml") == parse_json(text)
    for parse in (lambda text: parse_yaml(text, "a.yaml"), parse_json):
        with pytest.raises(ValueError, match=f"nested more than {MAX_DEPTH} deep"):
            parse(f"[{text}]")


def test_a_large_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\n" + "#" * (MAX_BYTES - 5))
    assert read_yaml(file) == {"a": 1}
    file.write_text("a: 1\n" + "#" * (MAX_BYTES - 4))
    with pytest.raises(ValueError, match="a.yaml is larger than 262144 bytes; expected a smaller file"):
        read_yaml(file)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1}


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match="a.yaml is no YAML: .*byte 0xff.*; expected UTF-8"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[" * 100_000, "nested too deep"),
        ("[" * 51 + "]" * 51, "nested more than 50 deep"),
        ("1" * 5000, "4300 digits"),
    ],
    ids=lambda text: text[:20],
)
def test_json_that_is_not_read(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '[{"b": {"a": 1, "a": 2}}]', '\ufeff{"a": {}, "a": {}}'])
def test_a_name_twice_in_json(text):
    for depth in (MAX_DEPTH, None):
        with pytest.raises(ValueError, match="^the name a stands twice in an object; expected it once$"):
            parse_json(text, depth)
    assert parse_json('[{"a": 1}, {"a": {"a": 2}}]') == [{"a": 1}, {"a": {"a": 2}}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no JSON: Expecting value: line 1"),
        (b'{"a": 1, "a": 2}', "is no JSON: the name a stands twice in an object"),
        (b'{"a": 1', "is no JSON: Expecting ',' delimiter"),
        (b"[" * 100_000, "is no JSON: values nested too deep"),
        (b'"\xff"', "is no UTF-8 text: line 1 has the byte 0xff"),
        ("1".encode("utf-16"), "is no UTF-8 text, but UTF-16"),
    ],
)
def test_a_file_of_json_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}/a.json {message}"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "a.json") == [1]


@pytest.mark.parametrize(
    "text",
    [
        "a: [" + "[1]," * 60_000 + "]",
        "\n".join(f"a{n}: 1" for n in range(20_000)),
        "#\n" * 130_000,
        " " * 260_000,
        "a: |\n" + " a\n" * 86_000,
        "a: a\n" + " a\n" * 86_000,
        'a: "' + "\\x41" * 65_000 + '"',
        "a: '" + "''" * 130_000 + "'",
    ],
    ids=["lists", "lines", "comments", "blanks", "block", "folds", "escapes", "quotes"],
)
def test_dense_yaml_takes_no_time(tmp_path, text):
    """As much as there may be of it took ten seconds."""
    (tmp_path / "a.yaml").write_text(text)
    dense = text.count("1") > 20_000 and "\\" not in text
    began = time.process_time()
    with pytest.raises(ValueError, match="more than 20000 names") if dense else contextlib.nullcontext():
        read_yaml(tmp_path / "a.yaml")
    assert time.process_time() - began < 4


def test_json_as_deep_as_it_is():
    text = "[" * 200 + "]" * 200
    assert str(parse_json(text, max_depth=None)) == text
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * 100_000, max_depth=None)


def test_values_in_messages():
    assert shown({"a": [1]}) == "{'a': [1]}"
    assert shown("x" * 78) == "'" + "x" * 78 + "'"
    assert shown("x" * 79) == "'" + "x" * 78 + "…"
    assert label("../a") == "../a"
    assert label("a\x1b[31m\nb") == r"'a\x1b[31m\nb'"
    assert len(label("\n" * 1000)) == len(label("x" * 1000)) == 80
    assert told(KeyError()) == "KeyError"
    assert told(ValueError("a\n  b\t c")) == "a b c"
    assert told(ValueError("\x1b[31m\nb")) == r"'\x1b[31m b'"
    assert len(told(ValueError("x" * 1000))) == 300
