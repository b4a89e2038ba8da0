"""Text, YAML and JSON that others wrote, read within bounds, and how their values are quoted in messages.

A recipe may come with a model of the Hub, so a small file must not cost much: no aliases, which make a billion values
of nine lines, no tags, and caps on size, depth, the number of values and the length of numbers. A name that stands
twice in an object is refused, where Python's readers silently take the last.
"""

import io
import json
from collections.abc import Hashable
from pathlib import Path

import yaml
from yaml.events import AliasEvent
from yaml.nodes import Node, ScalarNode

MAX_BYTES = 2**18  # of a YAML file
MAX_VALUES = 20_000  # and all that it names and lists; PyYAML takes a second for 50 000
MAX_DEPTH = 50  # of lists and mappings within each other; a recipe has five
MAX_NUMBER = 100  # characters; YAML reads 1:30:00 as a number too, and a long one of this kind takes minutes
MAX_SHOWN, MAX_TOLD = 80, 300  # characters of a value, or of another error, in a message
BYTE_ORDER_MARK = "\ufeff"


def shown(value) -> str:
    """A value for a message: its repr, cut where it is long."""
    try:
        return _cut(repr(value))
    except RecursionError:
        return f"a {type(value).__name__} nested too deep"


def label(name) -> str:
    """A name for a message: as it is, or its repr where it would spoil the line; cut where it is long."""
    text = str(name)
    return _cut(text) if text.isprintable() else shown(text)


def told(error: Exception) -> str:
    """What an error says, for a message: in one printable line, cut where it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return _cut(text if text.isprintable() else repr(text), MAX_TOLD)


def is_text(value) -> bool:
    """Whether a value is text that a file or a table can hold; JSON may also have halves of characters."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _cut(text: str, most: int = MAX_SHOWN) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def read_text(file: str | Path) -> str:
    """The text of a UTF-8 file, with its line ends as they are and without a byte-order mark.

    Raises:
        OSError: if it cannot be read.
        ValueError: what `decode_text` raises.
    """
    return decode_text(Path(file).read_bytes(), file)


def text_lines(file: str | Path) -> list[str]:
    """The lines of a UTF-8 file, each with its end: `\\n` alone, since a caption may hold other separators.

    Raises:
        OSError, ValueError: as `read_text`.
    """
    return [line.lstrip(BYTE_ORDER_MARK) for line in io.StringIO(read_text(file), newline="\n")]  # of files in a row


def decode_text(content: bytes, where: str | Path) -> str:
    """UTF-8 as text, without a byte-order mark.

    Raises:
        ValueError: if it is UTF-16 or no UTF-8, or holds a null character; begins with `where`.
    """
    check_encoding(content, where)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where} is no UTF-8 text: line {line} has the byte {content[error.start]:#04x}. Save it anew as UTF-8."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(
            f"{where} line {line} has a null character, as UTF-16 has; expected UTF-8 text. Save it anew as UTF-8."
        )
    return text


def check_encoding(beginning: bytes, where: str | Path) -> None:
    """Raise a ValueError, which begins with `where`, if the first bytes of a text are the mark of UTF-16 or UTF-32."""
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        kind = "UTF-32" if beginning.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")) else "UTF-16"
        raise ValueError(f"{where} is no UTF-8 text, but {kind}. Save it anew as UTF-8.")


def read_json(file: str | Path, max_depth: int | None = MAX_DEPTH):
    """What a file of JSON says.

    Raises:
        OSError: if it cannot be read.
        ValueError: what `read_text` and `parse_json` raise; begins with the file.
    """
    text = read_text(file)
    try:
        return parse_json(text, max_depth)
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {told(error)}.") from error


def read_yaml(file: str | Path):
    """What a YAML file holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is larger than `MAX_BYTES`, and what `check_encoding` and `parse_yaml` raise.
    """
    with Path(file).open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{file} is larger than {MAX_BYTES} bytes; expected a smaller file, of fields and values.")
    check_encoding(content, file)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no YAML: {error}; expected UTF-8.") from error
    return parse_yaml(text, file)


def parse_yaml(text: str, where: str | Path):
    """What YAML says: mappings, lists, text, numbers, booleans and None. A date is text.

    Raises:
        ValueError: if it is no YAML, says a name twice, has anchors, aliases, merges or tags, more than `MAX_VALUES`
            values, values nested too deep, or text that no file can hold; begins with `where`.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except _Refused as error:
        raise ValueError(f"{where} has {error}.") from None
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{where} is no YAML: {label(error.problem)}{line}.") from error
    except (yaml.YAMLError, ValueError) as error:  # a control character; 0b_, which it takes for a number
        raise ValueError(f"{where} is no YAML: {label(' '.join(str(error).split()))}.") from error


class _Refused(Exception):
    """YAML that is not read here."""

    def __init__(self, what: str, place):
        super().__init__(f"{what}, in line {place.start_mark.line + 1}")


class _Loader(yaml.SafeLoader):
    """Safe, and no slower than the length of the text allows."""

    depth = count = 0
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent, index) -> Node:
        event = self.peek_event()
        if isinstance(event, AliasEvent) or event.anchor is not None:
            raise _Refused("an anchor or alias (& or *); expected every value written out", event)
        if event.tag is not None:
            raise _Refused("a tag (!); expected plain values", event)
        if self.depth == MAX_DEPTH:
            raise _Refused(f"values nested more than {MAX_DEPTH} deep", event)
        self.count += 1
        if self.count > MAX_VALUES:
            raise _Refused(f"more than {MAX_VALUES} names and values", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, ScalarNode):
            if len(node.value) > MAX_NUMBER and not node.tag.endswith(":str"):
                raise _Refused(f"a number of more than {MAX_NUMBER} characters", event)
            if not is_text(node.value) or "\0" in node.value:
                raise _Refused("a null character, or half of a surrogate pair; expected text", event)
        return node

    def construct_mapping(self, node, deep=False) -> dict:
        names = set()
        for each, _ in node.value:
            if each.tag.endswith(":merge"):
                raise _Refused("a merge (<<); expected every value written out", each)
            name = self.construct_object(each, deep=True)
            if isinstance(name, Hashable):  # others are refused anyway
                if name in names:
                    raise _Refused(f"the name {label(name)} twice; expected it once", each)
                names.add(name)
        return super().construct_mapping(node, deep)


def parse_json(text: str, max_depth: int | None = MAX_DEPTH):
    """What JSON says.

    Args:
        text: JSON, perhaps with a byte-order mark.
        max_depth: of lists and mappings within each other; None for what Python reads, without a look at every value.

    Raises:
        ValueError: if it is no JSON, says a name of an object twice, or is nested too deep.
    """
    try:
        value = json.loads(text.lstrip(BYTE_ORDER_MARK), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("values nested too deep") from None
    if max_depth is not None and _is_deeper(value, max_depth):
        raise ValueError(f"values nested more than {max_depth} deep")
    return value


def _object(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))
        raise ValueError(f"the name {label(twice)} stands twice in an object; expected it once")
    return found


def _is_deeper(value, depth: int) -> bool:
    """Whether lists and mappings lie within each other more than so deep."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(each, depth - 1) for each in inner)
