"""Small files that would cost much, and values that would spoil a message."""

import time
from datetime import date

import pytest
import yaml

from omit_hf.parsing import MAX_BYTES, MAX_DEPTH, label, parse_json, parse_yaml, read_yaml, shown

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
    with pytest.raises(ValueError, match="a.yaml is larger than 1048576 bytes; expected a smaller file"):
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
