"""Links that hold in the repository and on the site: to model cards, their pictures, and pages that docstrings cite."""

import re
from pathlib import Path

from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url

CARDS = Path(__file__).parents[2] / "model_cards"
CITED = re.compile(r"<code>docs/([\w/-]+\.md)(?:#([\w-]+))?</code>")


def on_files(files, config):
    """Put the model cards and their pictures on the site, though they lie beside the documentation."""
    for file in sorted(CARDS.iterdir()):
        files.append(File.generated(config, f"model_cards/{file.name}", abs_src_path=str(file)))
    return files


def on_page_markdown(markdown, page, **_):
    """Let links of a page to `../model_cards`, where it is in the repository, lead to where it is on the site."""
    up = "../" * page.file.src_uri.count("/")
    return markdown.replace(f"({up}../model_cards/", f"({up}model_cards/")


def on_page_content(html, page, files, **_):
    """Make a link of each page that a docstring cites by its path in the repository, with or without a heading."""

    def link(cited):
        path, heading = cited.groups()
        target = files.get_file_from_path(path)
        if target is None:
            raise ValueError(f"{page.file.src_uri} cites docs/{path}, which is not there.")
        title = path.removesuffix(".md").split("/")[-1].replace("-", " ")
        title += f", {heading.replace('-', ' ')}" if heading else ""
        anchor = f"#{heading}" if heading else ""
        return f'<a href="{get_relative_url(target.url, page.url)}{anchor}">{title}</a>'

    return CITED.sub(link, html)
