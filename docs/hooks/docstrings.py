"""What our docstrings have that mkdocstrings does not know: links of transformers' kind, and a section `Example:`."""

import re

from griffe import Extension, NameResolutionError

NAME = re.compile(r"\[`([\w.]+)`\](?![\[(])")
EXAMPLE = re.compile(r"^Example:$", flags=re.MULTILINE)


class OurDocstrings(Extension):
    """Turns [`Name`] into a link, where the name is known in its module and has a page, and shows examples as code."""

    def on_object(self, *, obj, **_):
        if obj.docstring is None:
            return

        def link(named):
            try:
                name = obj.resolve(named[1])
            except NameResolutionError:
                return f"`{named[1]}`"
            return f'<autoref identifier="{name}" optional><code>{named[1]}</code></autoref>'

        obj.docstring.value = NAME.sub(link, EXAMPLE.sub("Examples:", obj.docstring.value))
