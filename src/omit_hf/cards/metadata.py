"""The metadata of a card, as the Hub reads them: parts of the model, its results, and a check of both."""

import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from omit_hf.cards.known_data import KnownData
from omit_hf.evaluation.retrieval import COLUMNS, DIRECTIONS
from omit_hf.modeling.matching_omit import MATCHING
from omit_hf.parsing import parse_yaml, told

HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"


def eval_results(
    metrics: dict[str, float], dataset_type: str, dataset_name: str, split: str = "test"
) -> list[EvalResult]:
    """Make the entries of a card's model-index, one per metric.

    Args:
        metrics: names → values.
        dataset_type: short name without spaces; groups the entries of one data set or protocol.
        dataset_name: the same for people.
        split: split of the data.
    """
    return [
        EvalResult(
            task_type="image-text-retrieval",
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            dataset_split=split,
            metric_type=metric,
            metric_name=metric_name(metric),
            metric_value=round(value, 2),
        )
        for metric, value in metrics.items()
    ]


def with_results(card: str, name: str, results: list[EvalResult]) -> str:
    """Put results into the model-index of a card; they replace older ones of the same data and metric.

    Args:
        card: content of a README.md.
        name: name of the model, used if the card has no results that name it.
        results: results from `eval_results`.

    Raises:
        ValueError: if the card has no metadata, or the Hub would not accept them.
    """
    if not card.startswith("---"):
        raise ValueError("The model card does not begin with metadata between two lines of ---; expected a model's.")
    card = read_card(card)
    new = {_identity(result) for result in results}
    card.data.eval_results = [r for r in card.data.eval_results or [] if _identity(r) not in new] + results
    card.data.model_name = card.data.model_name or name
    return str(card)


def _identity(result: EvalResult) -> tuple:
    return (*result.unique_identifier, result.metric_type)


def read_card(text: str) -> ModelCard:
    """Read a README.md.

    Raises:
        ValueError: if its metadata are not what `parse_yaml` reads, or not those of a card.
    """
    head = REGEX_YAML_BLOCK.search(text)
    try:
        if head is not None:  # before the Hub's client reads it, with which aliases may come to any number of values
            parse_yaml(head[2], "it")
        return ModelCard(text)
    except Exception as error:  # of PyYAML, of the model-index, of a field of another type
        raise ValueError(f"The card's metadata cannot be read: {told(error)}") from error


def check_card(text: str, files: set[str]) -> ModelCard:
    """Check, offline, that the Hub can read a card's metadata.

    Args:
        text: content of the README.md.
        files: names of the files that go with it.

    Raises:
        ValueError: lists all that is wrong.
    """
    card, problems = read_card(text), []
    if not text.lstrip().startswith("---") or not card.data.to_dict():
        problems.append("it has no metadata; expected YAML between two lines of ---")
    if card.data.library_name != "transformers":
        problems.append(f"library_name is {card.data.library_name!r}; expected 'transformers', by which it is found")
    licence = card.data.license
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", str(licence)):
        problems.append(f"license is {licence!r}; expected an identifier of the Hub, such as 'apache-2.0' or 'other'")
    for number, each in enumerate(card.data.get("widget") or []):
        if not isinstance(each, dict):
            problems.append(f"widget {number} is {each!r:.80}; expected src and candidate_labels")
            continue
        source = str(each.get("src"))
        if not each.get("candidate_labels"):
            problems.append(f"widget {number} has no candidate_labels; expected them, parted by commas")
        if "://" not in source and source not in files:
            problems.append(f"widget {number} has src {source!r}, which is not among the files")
    shown = [name for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card.text) if "://" not in name]
    problems += [f"it shows {name!r}, which is not among the files" for name in shown if name not in files]
    if problems:
        raise ValueError("\n  ".join(["The card is not fit for the Hub:", *problems]))
    return card


def metric_name(metric: str) -> str:
    """Spell out a metric's name for readers: `i2t_r1` is "R@1, image to text"."""
    way, _, measure = metric.partition("_")
    if way not in DIRECTIONS or measure not in COLUMNS:
        return metric.upper()
    return f"{COLUMNS[measure][0]}, {DIRECTIONS[way].replace('→', 'to')}"


def card_metadata(recipe: dict, known: KnownData, licence: str | None) -> ModelCardData:
    """Make the metadata of a card, without the results.

    Args:
        recipe: its fields.
        known: the data set.
        licence: licence of the weights, if the publisher chose one.
    """
    pretrained = backbones(recipe)
    return ModelCardData(
        language=known.language,
        license=licence or (None if pretrained or recipe["word_vectors"] is not None else known.licence),
        library_name="transformers",
        tags=["omit", "image-text-matching", "image-text-retrieval"]
        + ["optimal-transport"] * MATCHING[recipe["matching"]].transports,
        datasets=None if known.hub_id is None else [known.hub_id],
        base_model=[name for name in pretrained if is_on_the_hub(name)] or None,
    )


def backbones(recipe: dict) -> list[str]:
    """List the pretrained backbones of a recipe: names on the Hub, or folders."""
    return [recipe[side] for side in ("clip_model", "vision_model", "text_model") if recipe[side] is not None]


def is_on_the_hub(name: str) -> bool:
    """Tell whether a backbone's name is one of the Hub rather than a folder here."""
    return re.fullmatch(HUB_ID, name) is not None and not Path(name).exists()


def takes_regions(recipe: dict) -> bool:
    """Tell whether a recipe's model takes precomputed regions instead of pictures."""
    return (recipe["vision_config"] or {}).get("model_type") == "omit_region"
