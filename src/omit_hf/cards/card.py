"""Writes cards of trained models from their metrics, and cards of recipes that have no trained model yet."""

from pathlib import Path

from omit_hf.cards.environment import PACKAGES
from omit_hf.cards.heads import kind_of_model, method_of_model
from omit_hf.cards.known_data import known_data
from omit_hf.cards.metadata import card_metadata, eval_results, takes_regions
from omit_hf.cards.sections import (
    CardPictures,
    drawing,
    ingredients,
    licence_text,
    limitations,
    published_table,
    settings,
    usage,
)
from omit_hf.evaluation.retrieval import metrics_table

CITATION = """@inproceedings{pan2025omit,
  title     = {Learning Image-Text Matching with Optimal Partial Transport},
  author    = {Pan and others},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year      = {2025},
  note      = {arXiv:2603.14349}
}"""


def model_card(
    metrics: dict, repo_id: str | None = None, *, licence: str | None = None, pictures: CardPictures | None = None
) -> str:
    """Write the README.md of a trained model.

    Args:
        metrics: content of `metrics.json`, as `omit_hf.training.train` writes it.
        repo_id: the model's future place on the Hub, `user/name`; None for a folder on this machine.
        licence: licence of the weights, as the Hub spells it. Default: the licence of the data if they are generated
            here and the model has no pretrained backbone or word vectors; otherwise none.
        pictures: pictures of the card; only for the Hub.

    Raises:
        ValueError: if pictures are given without a `repo_id`.
    """
    if pictures is not None and repo_id is None:
        raise ValueError("pictures are given without repo_id; expected the repository that they are going to be in.")
    recipe, test, place = metrics["recipe"], metrics["test"], metrics["environment"]
    packages = ", ".join(f"{name} {place[name]}" for name in PACKAGES if name in place)
    name = repo_id or Path(recipe["output_dir"]).name
    split = metrics["splits"]
    known = known_data(recipe["data"], recipe.get("data_options"), split)
    kind, method = kind_of_model(recipe["matching"]), method_of_model(recipe)
    data = card_metadata(recipe, known, licence)
    data.pipeline_tag = None if takes_regions(recipe) else "zero-shot-image-classification"  # it gives pictures
    data.model_name = name.split("/")[-1]
    dataset = (known.hub_id or Path(recipe["data"]).stem, known.name)
    data.eval_results = [
        result for measured in ("test", "validation") for result in eval_results(metrics[measured], *dataset, measured)
    ]
    if pictures is not None and data.pipeline_tag is not None:
        labels = [caption.replace(",", " ") for caption in pictures.captions]  # a comma parts the labels of a widget
        data.widget = [
            {
                "src": pictures.sample,
                "candidate_labels": ", ".join(" ".join(label.split()) for label in labels),
                "example_title": Path(pictures.sample).stem,
            }
        ]
    noise = (
        f" {100 * recipe['caption_noise']:.3g}% of the captions were given to other images."
        if recipe["caption_noise"]
        else ""
    )
    return f"""---
{data.to_yaml()}
---

# {name.split("/")[-1]}

{kind}, trained with omit-hf on {known.name}: {method}.
{drawing(pictures)}
## Use

{usage(recipe, name, repo_id, pictures)}

## Results

Test split, {split["test"]["images"]} images and {split["test"]["captions"]} captions; recalls in percent.

{metrics_table(test)} (validation {metrics["validation"]["rsum"]:.1f}, best of {metrics["epochs"]} epochs: number \
{metrics["best_epoch"] + 1}).
{published_table(known)}
## Training

Matching `{recipe["matching"]}`, loss `{recipe["loss"]}` ({settings(recipe)}), seed {recipe["seed"]}.{noise} \
{metrics["trained_parameters"]:,} of {metrics["parameters"]:,} \
parameters trained in {metrics["steps"]} steps and {metrics["training_seconds"]:.0f} s, at \
{metrics["pairs_per_second"]:.0f} pairs/s and with at most {metrics["peak_memory"] / 2**30:.1f} GiB of memory. All of \
it is in `recipe.yaml`.

## Data and licence

{ingredients(recipe, known, split)} {licence_text(data.license, chosen=licence is not None)}

## Environment

Measured at commit {place["commit"] or "unknown"} on {place["device"]}, {place["cores"]} cores, {place["processes"]} \
process(es): omit-hf {place["omit_hf"]}, {packages}, Python {place["python"]}.

## Limitations

{limitations(recipe, known)}

## Citation

```bibtex
{CITATION}
```
"""


def recipe_card(recipe: dict, name: str) -> str:
    """Write the card of a recipe without a trained model: no weights, and no figures of ours.

    Args:
        recipe: its fields, from `dataclasses.asdict(Recipe(…))`.
        name: name of the recipe file, without suffix.
    """
    known = known_data(recipe["data"], recipe.get("data_options"))
    kind, method = kind_of_model(recipe["matching"]), method_of_model(recipe)
    return f"""---
{card_metadata(recipe, known, None).to_yaml()}
---

# {name}

{kind}, to be trained with omit-hf on {known.name}: {method}.

**Not trained yet by us.** This is the card of a recipe: there are no weights, and nothing has been measured with it.

## Use

Train it, with the data where the recipe looks for them:

```bash
accelerate launch examples/train.py examples/configs/{name}.yaml
```

The folder that this makes loads with `OmitModel.from_pretrained` and `OmitProcessor.from_pretrained`, and has a card \
with what was measured.

## Results

None of ours.
{published_table(known)}
## Training

Matching `{recipe["matching"]}`, loss `{recipe["loss"]}` ({settings(recipe)}), {recipe["num_epochs"]} epochs of \
batches of {recipe["batch_size"]}, peak learning rate {recipe["learning_rate"]:g}.

## Data and licence

{ingredients(recipe, known)} {licence_text(None, chosen=False)}

## Limitations

{limitations(recipe, known)}

## Citation

```bibtex
{CITATION}
```
"""
