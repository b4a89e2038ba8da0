"""Formulas: a fenced block of `math` becomes MathML, which browsers show by themselves, without a script."""

from latex2mathml.converter import convert


def on_config(config):
    """Teach the fences of Markdown the language `math`, which GitHub shows as a formula too."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "math", "format": formula})
    return config


def formula(source: str, *_, **__) -> str:
    """MathML of a block of LaTeX, a formula a paragraph."""
    return "\n".join(f"<p>{convert(each, display='block')}</p>" for each in source.strip().split("\n\n"))
