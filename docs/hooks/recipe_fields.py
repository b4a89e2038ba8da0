"""The tables of reference/recipe.md, made from the fields of `Recipe` each time the site is built."""

import dataclasses
import json

MARKER = "<!-- the fields of a recipe -->"


def on_page_markdown(markdown, **_):
    """Put the fields where a page has the marker."""
    return markdown.replace(MARKER, fields_as_markdown()) if MARKER in markdown else markdown


def fields_as_markdown() -> str:
    """A heading and a table for each group of fields, in their order."""
    from omit_hf.training import Recipe  # loads torch, which a page without the marker does not need

    lines, group = [], None
    for field in dataclasses.fields(Recipe):
        if group_of(Recipe, field.name) != group:
            group = group_of(Recipe, field.name)
            lines += ["", f"## {group}", "", "| field | default | meaning |", "|---|---|---|"]
        lines.append(row(field))
    return "\n".join(lines)


def group_of(recipe: type, name: str) -> str:
    """The name of the group that a field is in: that of the base class that declares it."""
    [declares, *_] = [base for base in reversed(recipe.__mro__) if name in vars(base).get("__annotations__", {})]
    return getattr(declares, "_argument_group_name", "fields").capitalize()


def row(field: dataclasses.Field) -> str:
    """A field's name, default and help."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    help_text = field.metadata["help"].replace("|", "\\|").replace("<", "&lt;")
    return f"| `{field.name}` | `{json.dumps(default, ensure_ascii=False)}` | {help_text} |"
