"""What is done to a whole file, or to a value of it, so that a reader may stumble; drawn at random."""

import json
import random
from collections.abc import Callable

EVIL = "\nEVIL LINE"  # what a message must not print as a line of its own
TEXTS = {
    "empty text": "",
    "blank": " \t ",
    "NUL": "a\0b",
    "half of a surrogate": "a \ud83d b",
    "line break": f"a{EVIL}",
    "quotes": "a\"b'c`d\\",
    "escape": "\x1b[31mred\x1b[2J",
    "right to left": "\u202eabc\u2066 \u05d0\u05d1",
    "separator": "a\u2028b\u2029c\x85d",
    "mark inside": "a\ufeffb",
    "accents": "a" + "\u0301" * 3000,
    "flags": "\U0001f1e9\U0001f1ea" * 3000,
    "family": "\U0001f469\u200d\U0001f469\u200d\U0001f467" * 500,
    "outside": "../../../../etc/hostname",
    "absolute": "/etc/hostname",
    "device": "/dev/zero",
    "a loop of links": "loop.png",
    "a link to nothing": "dangling.png",
    "a pipe": "pipe.png",
    "a folder": "a",
    "home": "~nobody\0/x",
    "other home": "~no such user/x",
    "drive": "C:\\windows\\win.ini",
    "file URL": "file:///etc/hostname",
    "format": "{0.__class__} %s %n ${HOME} {}",
    "300 characters": "x" * 300,
    "100 000 characters": "x" * 100_000,
    "100 000 digits": "1" * 100_000,
    "20 000 blanks": "a" + " " * 20_000 + "b",
    "number as text": "1e999",
    "other digits": "\u0663\uff11",
}
NUMBERS = {
    "0": 0,
    "-1": -1,
    "2**31": 2**31,
    "2**63": 2**63,
    "-2**63 - 1": -(2**63) - 1,
    "10**30": 10**30,
    "10**400": 10**400,
    "1e308": 1e308,
    "-0.0": -0.0,
    "a half": 0.5,
    "infinity": float("inf"),
    "NaN": float("nan"),
}
OTHERS = {"null": None, "true": True, "list": [], "object": {}, "list of a list": [[]], "object of null": {"a": None}}
VALUES = TEXTS | NUMBERS | OTHERS
FOREIGN = {
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0",
    "a zip": b"PK\x05\x06" + bytes(18),
    "a web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a program": b"\x7fELF\x02\x01\x01" + bytes(57),
    "zeros": bytes(4096),
    "blanks": b" \n" * 3000,
}


class Raw(str):
    """Text that stands in JSON as it is."""


class Pairs(list):
    """Names and values of an object; a name may come twice."""


def dump(value) -> str:
    """JSON, also of what is none: NaN, `Raw` and names that come twice."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict | Pairs):
        pairs = value.items() if isinstance(value, dict) else value
        return "{" + ", ".join(f"{dump(str(name))}: {dump(each)}" for name, each in pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value)


def places_of(value, place=()) -> list[tuple]:
    """All places in a value, but for itself: names and numbers from the outside in."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [each for name, one in inner for each in [(*place, name), *places_of(one, (*place, name))]]


def replaced(value, place: tuple, change: Callable):
    """A copy in which the list or object that holds a place is what `change` makes of it and the place's last name."""
    if len(place) == 1:
        return change(value.copy(), place[0])
    copy = value.copy()
    copy[place[0]] = replaced(value[place[0]], place[1:], change)
    return copy


def _set(holder, name, value):
    holder[name] = value
    return holder


def _delete(holder, name):
    del holder[name]
    return holder


def _twice(holder, name, rng):
    if isinstance(holder, list):
        return [*holder, holder[name]]
    pairs = Pairs(holder.items())
    pairs.insert(rng.randrange(len(pairs) + 1), (name, rng.choice([*VALUES.values(), holder[name]])))
    return pairs


def _rename(holder, name, other):
    return Pairs((other if each == name else each, value) for each, value in holder.items())


def hostile_value(rng: random.Random, value) -> tuple[str, object]:
    """Another value in the place of one, and what it is."""
    way = rng.randrange(10)
    if way < 7:
        what = rng.choice(list(VALUES))
        return what, VALUES[what]
    if way == 7:
        depth = rng.choice([3, 49, 50, 51, 200, 2000, 100_000])
        return "nested", Raw("[" * depth + dump(value) + "]" * depth)
    if way == 8:
        return "many", [value] * rng.choice([2, 1000, 30_000])
    number = rng.choice(["9" * 5000, "1e99999", "-", "01", "+1", ".5", "0x10", "1_000", "Infinity", "nul", "'a'"])
    return "no JSON number", Raw(number)


def mutate_value(rng: random.Random, document) -> tuple[str, object]:
    """A change at one place of a value that JSON holds, and what it is."""
    places = places_of(document)
    if not places or rng.random() < 0.03:
        what, value = hostile_value(rng, document)
        return f"all of it: {what}", value
    place = rng.choice(places)
    way = rng.randrange(12)
    if way < 7:
        what, value = hostile_value(rng, _at(document, place))
        return what, replaced(document, place, lambda holder, name: _set(holder, name, value))
    if way < 9:
        return "left out", replaced(document, place, _delete)
    if way == 9:
        kind = "name" if isinstance(place[-1], str) else "item"
        return f"{kind} twice", replaced(document, place, lambda holder, name: _twice(holder, name, rng))
    if way == 10 and isinstance(place[-1], str):
        what = rng.choice(list(TEXTS))
        return f"name: {what}", replaced(document, place, lambda holder, name: _rename(holder, name, TEXTS[what]))
    other = _at(document, rng.choice(places))
    return "a value of another place", replaced(document, place, lambda holder, name: _set(holder, name, other))


def _at(value, place: tuple):
    for name in place:
        value = value[name]
    return value


def mutate_bytes(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """A change of a file that knows nothing of its form, and what it is."""
    size = len(content)
    start, end = sorted(rng.randrange(size + 1) for _ in range(2))
    other = FOREIGN[rng.choice(list(FOREIGN))]
    return rng.choice(
        [
            lambda: ("cut", content[:start]),
            lambda: ("cut by little", content[: max(0, size - rng.randint(1, 9))]),
            lambda: ("flipped bits", _flipped(rng, content, rng.choice([1, 1, 3, 30]))),
            lambda: ("flipped bits of the head", _flipped(rng, content[:64], 2) + content[64:]),
            lambda: ("a stretch is gone", content[:start] + content[end:]),
            lambda: ("a stretch is zeros", content[:start] + bytes(end - start) + content[end:]),
            lambda: ("a stretch twice", content[:end] + content[start:]),
            lambda: ("noise within", content[:start] + rng.randbytes(rng.randint(1, 40)) + content[start:]),
            lambda: ("noise at the end", content + rng.randbytes(rng.randint(1, 40))),
            lambda: ("all of it twice", content + content),
            lambda: ("empty", b""),
            lambda: ("another file", other),
            lambda: ("another file, then it", other + content),
        ]
    )()


def _flipped(rng: random.Random, content: bytes, count: int) -> bytes:
    changed = bytearray(content)
    for _ in range(count if content else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def mutate_encoding(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Text that is encoded in another way, and what it is."""
    text = content.decode(errors="replace")
    place = rng.randrange(len(content) + 1)
    found = {
        "UTF-16": text.encode("utf-16"),
        "UTF-16 without a mark": text.encode("utf-16-le"),
        "UTF-32": text.encode("utf-32"),
        "Latin-1": content[:place] + b"\xe9" + content[place:],
        "a NUL": content[:place] + b"\0" + content[place:],
        "a surrogate in bytes": content[:place] + b"\xed\xa0\x80" + content[place:],
        "a mark within": content[:place] + b"\xef\xbb\xbf" + content[place:],
        "two marks": b"\xef\xbb\xbf" * 2 + content,
    }
    what = rng.choice(list(found))
    return what, found[what]


def harmless_text(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """The same text in another form, and what it is; of files whose lines may end in blanks."""
    return rng.choice(
        [
            lambda: ("byte-order mark", b"\xef\xbb\xbf" + content),
            lambda: ("CRLF", content.replace(b"\n", b"\r\n")),
            lambda: ("no last line end", content.removesuffix(b"\n")),
            lambda: ("as it is", content),
        ]
    )()


def harmless_json(rng: random.Random, document) -> tuple[str, bytes]:
    """The same JSON in another form, and what it is."""
    return rng.choice(
        [
            lambda: ("byte-order mark", b"\xef\xbb\xbf" + json.dumps(document).encode()),
            lambda: ("blanks", b"\n \t" + json.dumps(document, indent=rng.choice([0, 3, "\t"])).encode() + b"\r\n  "),
            lambda: ("not in ASCII", json.dumps(document, ensure_ascii=False).encode()),
            lambda: ("other order", json.dumps(_reversed(document)).encode()),
        ]
    )()


def _reversed(value):
    if isinstance(value, dict):
        return {name: _reversed(each) for name, each in reversed(value.items())}
    return [_reversed(each) for each in value] if isinstance(value, list) else value


def mutate_json(rng: random.Random, document) -> tuple[str, bytes]:
    """Bytes of a file of JSON that someone has changed, and how."""
    way = rng.randrange(10)
    if way < 2:
        return harmless_json(rng, document)
    if way < 7:
        what, value = mutate_value(rng, document)
        return what, dump(value).encode(errors="surrogatepass")
    content = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode()
    return mutate_bytes(rng, content) if way < 9 else mutate_encoding(rng, content)


def mutate_lines(rng: random.Random, documents: list) -> tuple[str, bytes]:
    """The same of a file with a JSON value a line."""
    lines = [json.dumps(each).encode() for each in documents]
    way = rng.randrange(10)
    if way < 2:
        return harmless_text(rng, b"\n".join(lines) + b"\n")
    if way < 7 and lines:
        number = rng.randrange(len(lines))
        what, lines[number] = mutate_json(rng, documents[number])
        return what, b"\n".join(lines) + b"\n"
    content = b"\n".join(lines) + b"\n"
    return mutate_bytes(rng, content) if way < 9 else mutate_encoding(rng, content)


def mutate_text(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """The same of a file of lines of text."""
    way = rng.randrange(10)
    if way < 2:
        return harmless_text(rng, content)
    if way < 6:
        lines = content.split(b"\n")
        number, what = rng.randrange(len(lines)), rng.choice(list(TEXTS))
        text = TEXTS[what].encode(errors="surrogatepass")
        place = rng.randrange(len(lines[number]) + 1)
        whole = rng.random() < 0.4
        lines[number] = text if whole else lines[number][:place] + text + lines[number][place:]
        return what, b"\n".join(lines)
    return mutate_bytes(rng, content) if way < 9 else mutate_encoding(rng, content)
