"""The README, the pages in docs/, and what cites them: every link leads somewhere."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Tracked and new files, so that a built site, a virtual environment or an output is not looked at.
LISTED = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.py", "*.md", "*.yaml"]
NAMES = subprocess.run(LISTED, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
FILES = [ROOT / name for name in NAMES if (ROOT / name).is_file() and name != "tests/test_documentation.py"]
PAGES = [file for file in FILES if file.suffix == ".md"]

CITED = re.compile(r"(?<![\w/.])docs/[\w/-]+\.md(?:#[\w-]+)?")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SECTION = re.compile(r"\bsections?\s+\d", flags=re.IGNORECASE)
FENCE = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub and the site call the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(link: str, folder: Path) -> str | None:
    """Why a relative link leads nowhere from a folder; None if it leads somewhere."""
    path, _, anchor = link.partition("#")
    page = (folder / path).resolve()
    if not page.exists() or not page.is_relative_to(ROOT):
        return f"{path} is not there"
    if anchor and anchor not in anchors(page):
        return f"{path} has no heading #{anchor}; it has {', '.join(sorted(anchors(page)))}"
    return None


def test_every_page_that_is_cited_is_there():
    """By its path from the repository's top, as docstrings do: ``docs/concepts/method.md#partial-matching``."""
    cited = [(file, link) for file in FILES for link in CITED.findall(file.read_text(encoding="utf-8"))]
    assert len(cited) > 10
    wrong = [f"{file.relative_to(ROOT)}: {why}" for file, link in cited if (why := broken(link, ROOT))]
    assert not wrong, "\n".join(wrong)


def test_nothing_cites_a_section_by_its_number():
    """Of which text, a reader could not know."""
    wrong = []
    for file in FILES:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if SECTION.search(line):
                wrong.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    """In the repository, where GitHub shows them; `make docs` checks those of the site."""
    links = LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    links = [page.name + link if link.startswith("#") else link for link in links if not re.match(r"\w+:", link)]
    assert [why for link in links if (why := broken(link, page.parent))] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
