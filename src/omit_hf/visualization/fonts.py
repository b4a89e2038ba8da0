"""Finds fonts for any script: matplotlib's own, and installed ones for the characters that it lacks."""

import contextlib
import functools
import unicodedata
import warnings

from matplotlib import rcParams
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, get_font

# Fonts of matplotlib that claim characters which they lack: one draws boxes for everything, others mathematics.
NO_TEXT = ("Last Resort", "cm")
CJK = ("CJK", "HANGUL", "HIRAGANA", "KATAKANA", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH", "KANGXI")
_told: set[str] = set()  # the scripts that were warned of


def families(text: str) -> list[str]:
    """Find fonts that together have the characters of a text: matplotlib's default, and as few others as possible.

    Finds newly installed fonts too, even if matplotlib's list of fonts is older. Warns, once per script, of characters
    that no font has; they are drawn as boxes.
    """
    return list(_families(text, tuple(rcParams["font.family"]), len(fontManager.ttflist)))


def font_files(text: str) -> list[str]:
    """List the files of `families`, the one with most of the text's characters first."""
    return [str(_file(each)) for each in sorted(families(text), key=lambda each: -len(set(text) & _characters(each)))]


@functools.lru_cache(maxsize=4096)
def _families(text: str, default: tuple[str, ...], _: int) -> list[str]:
    missing = {each for each in text if unicodedata.category(each)[0] not in "CZ"}
    missing -= set().union(*map(_characters, default))
    if missing:
        _add_installed()
    found = list(default)
    upright = [entry for entry in fontManager.ttflist if entry.style == "normal" and entry.weight in (400, "normal")]
    names = sorted({entry.name for entry in upright if not entry.name.startswith(NO_TEXT)})
    while missing:
        has = {name: len(missing & _characters(name)) for name in names}
        best = max(names, key=lambda name: (has[name], name.startswith("Noto Sans"), "Serif" not in name))
        if not has[best]:
            _warn(missing)
            break
        found.append(best)
        missing -= _characters(best)
    return found


@functools.cache
def _characters(family: str) -> frozenset[str]:
    with contextlib.suppress(Exception):  # of a file that FreeType does not read, or that is not there any more
        font = get_font(_file(family))
        if font.scalable:  # fonts of coloured pictures are not, and cannot be drawn
            return frozenset(map(chr, font.get_charmap()))
    return frozenset()


def _file(family: str):
    return findfont(FontProperties(family=[family]))


@functools.cache
def _add_installed() -> None:
    """Add the fonts that matplotlib's cached list does not know yet."""
    known = {entry.fname for entry in fontManager.ttflist}
    for file in sorted(set(findSystemFonts()) - known):
        with contextlib.suppress(Exception):  # FreeType raises several kinds for a file that it does not read
            fontManager.addfont(file)


def _warn(missing: set[str]) -> None:
    of_script: dict[str, list[str]] = {}
    for character in sorted(missing):
        of_script.setdefault(_script(character), []).append(character)
    new = {script: each for script, each in of_script.items() if script not in _told}
    _told.update(new)
    if new:
        listed = ", ".join(f"{script} ({''.join(each[:8])})" for script, each in new.items())
        packages = " ".join(sorted({_package(script) for script in new}))
        warnings.warn(
            f"No installed font has the characters of {listed}; they are drawn as boxes. Install one: in Debian and "
            f"Ubuntu, apt-get install {packages}.",
            stacklevel=2,
        )


def _script(character: str) -> str:
    """Return the first word of a character's name: Tamil, CJK, …"""
    if unicodedata.category(character).startswith("S") or 0xFE00 <= ord(character) <= 0xFE0F:
        return "symbols"
    name = unicodedata.name(character, "unassigned").split()[0]
    return "CJK" if name in CJK else name.capitalize()


def _package(script: str) -> str:
    return {"CJK": "fonts-noto-cjk", "symbols": "fonts-symbola"}.get(script, "fonts-noto-core")
