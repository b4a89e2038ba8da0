"""Model cards from what was measured, and cards of recipes with which nothing has been trained yet."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from omit_hf.evaluation.retrieval import COLUMNS, DIRECTIONS, metrics_table
from omit_hf.hub.environment import PACKAGES
from omit_hf.hub.known_data import KnownData, known_data

HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"
IMAGES_IMPORT = "import torch\nfrom PIL import Image\n"
REGIONS_IMPORT = "import numpy as np\nimport torch\n"
SAMPLE_IMPORT = "import torch\nfrom huggingface_hub import hf_hub_download\nfrom PIL import Image\n"
CITATION = """@inproceedings{pan2025omit,
  title     = {Learning Image-Text Matching with Optimal Partial Transport},
  author    = {Pan and others},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year      = {2025},
  note      = {arXiv:2603.14349}
}"""

OMIT = "[OMIT](https://arxiv.org/abs/2603.14349)"
# What each head does, and the fields of a recipe that it reads.
HEADS = {
    "omit": (
        f"An {OMIT} model for fine-grained image-text matching",
        "it moves the fragments of an image onto the words of a caption by partial optimal transport, scores what is "
        "matched, and leaves the rest to dustbins",
        ("regularization", "num_iterations", "dustbin", "marginals"),
    ),
    "ot": (
        f"A baseline of {OMIT} for fine-grained image-text matching",
        "it moves all fragments of an image onto the words of a caption by optimal transport, and scores how alike "
        "they are",
        ("regularization", "num_iterations", "marginals"),
    ),
    "maxsim": (
        f"A baseline of {OMIT} for fine-grained image-text matching",
        "it finds for each word of a caption the most similar fragment of an image, and scores "
        "the mean (late interaction)",
        (),
    ),
    "chan": (
        f"A baseline of {OMIT} for fine-grained image-text matching",
        "it finds for each word of a caption the most similar fragment of an image, and scores their log-sum-exp",
        (),
    ),
    "scan_t2i": (
        f"A baseline of {OMIT} for fine-grained image-text matching",
        "each word of a caption attends over the fragments of an image, and is compared to what it attends to",
        (),
    ),
    "scan_i2t": (
        f"A baseline of {OMIT} for fine-grained image-text matching",
        "each fragment of an image attends over the words of a caption, and is compared to what it attends to",
        (),
    ),
    "gpo": (
        f"A baseline of {OMIT} for image-text matching",
        "it scores the cosine of two vectors, pooled from the ranked fragments of an image and the ranked words of a "
        "caption with learned weights",
        (),
    ),
    "pem": (
        f"A baseline of {OMIT} for image-text matching",
        "it makes a Gaussian of an image's fragments and one of a caption's words, and scores how near they are",
        (),
    ),
    "mean": (
        f"A baseline of {OMIT} for image-text matching",
        "it scores the cosine of the mean of an image's fragments and the mean of a caption's words",
        (),
    ),
}
LOSS_FIELDS = {"triplet": ("margin", "all_negatives_epochs"), "infonce": ("logit_scale_init_value",)}


@dataclass(frozen=True)
class CardPictures:
    """Files that go to the Hub with a card.

    Args:
        sample: name of a picture, for the widget and the code.
        captions: of the sample, the true one first.
        alignment: name of the drawing of where the model finds the words of the first caption in the sample; None if
            there is none.
    """

    sample: str
    captions: tuple[str, ...]
    alignment: str | None = None


def eval_results(
    metrics: dict[str, float], dataset_type: str, dataset_name: str, split: str = "test"
) -> list[EvalResult]:
    """Entries of a card's model-index, one a metric.

    Args:
        metrics: names → values.
        dataset_type: a short name without spaces, by which the entries of one data set or protocol belong together.
        dataset_name: the same for people.
        split: of the data.
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
    """A model card with some results in its model-index, instead of those that it has of the same data and metrics.

    Args:
        card: content of a README.md.
        name: of the model, where the card has no results yet that name it.
        results: from `eval_results`.

    Raises:
        ValueError: if the card has no metadata, or some that are not the Hub's.
    """
    if not card.startswith("---"):
        raise ValueError("The model card does not begin with metadata between two lines of ---; expected a model's.")
    card = ModelCard(card)
    new = {_identity(result) for result in results}
    card.data.eval_results = [r for r in card.data.eval_results or [] if _identity(r) not in new] + results
    card.data.model_name = card.data.model_name or name
    return str(card)


def _identity(result: EvalResult) -> tuple:
    return (*result.unique_identifier, result.metric_type)


def model_card(
    metrics: dict, repo_id: str | None = None, *, licence: str | None = None, pictures: CardPictures | None = None
) -> str:
    """The README.md of a trained model.

    Args:
        metrics: the content of `metrics.json`, as `omit_hf.training.train` writes it.
        repo_id: where the model is going to be on the Hub, `user/name`; None for a folder on this machine.
        licence: of the weights, as the Hub spells it. By default that of data that are generated here, if no pretrained
            backbone or word vectors are in the model, and else none.
        pictures: that go with the card; only to the Hub.

    Raises:
        ValueError: if there are pictures without a `repo_id` to find them in.
    """
    if pictures is not None and repo_id is None:
        raise ValueError("pictures are given without repo_id; expected the repository that they are going to be in.")
    recipe, test, place = metrics["recipe"], metrics["test"], metrics["environment"]
    packages = ", ".join(f"{name} {place[name]}" for name in PACKAGES if name in place)
    name = repo_id or Path(recipe["output_dir"]).name
    split = metrics["splits"]
    known = known_data(recipe["data"], recipe.get("data_options"), split)
    kind, method, _ = HEADS[recipe["matching"]]
    data = _metadata(recipe, known, licence)
    data.pipeline_tag = None if _takes_regions(recipe) else "zero-shot-image-classification"  # it gives pictures
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
    licence_text = _licence_text(data.license, chosen=licence is not None)
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
{_drawing(pictures)}
## Use

{_usage(recipe, name, repo_id, pictures)}

## Results

Test split, {split["test"]["images"]} images and {split["test"]["captions"]} captions; recalls in percent.

{metrics_table(test)} (validation {metrics["validation"]["rsum"]:.1f}, best of {metrics["epochs"]} epochs: number \
{metrics["best_epoch"] + 1}).
{_published_table(known)}
## Training

Matching `{recipe["matching"]}`, loss `{recipe["loss"]}` ({_settings(recipe)}), seed {recipe["seed"]}.{noise} \
{metrics["trained_parameters"]:,} of {metrics["parameters"]:,} \
parameters trained in {metrics["steps"]} steps and {metrics["training_seconds"]:.0f} s, at \
{metrics["pairs_per_second"]:.0f} pairs/s and with at most {metrics["peak_memory"] / 2**30:.1f} GiB of memory. All of \
it is in `recipe.yaml`.

## Data and licence

{_ingredients(recipe, known, split)} {licence_text}

## Environment

Measured at commit {place["commit"] or "unknown"} on {place["device"]}, {place["cores"]} cores, {place["processes"]} \
process(es): omit-hf {place["omit_hf"]}, {packages}, Python {place["python"]}.

## Limitations

{_limitations(recipe, known)}

## Citation

```bibtex
{CITATION}
```
"""


def recipe_card(recipe: dict, name: str) -> str:
    """The card of a recipe with which nothing has been trained yet: no weights, and no number of ours.

    Args:
        recipe: its fields, as `dataclasses.asdict(Recipe(…))` gives them.
        name: of the recipe file, without its ending.
    """
    known = known_data(recipe["data"], recipe.get("data_options"))
    kind, method, _ = HEADS[recipe["matching"]]
    return f"""---
{_metadata(recipe, known, None).to_yaml()}
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
{_published_table(known)}
## Training

Matching `{recipe["matching"]}`, loss `{recipe["loss"]}` ({_settings(recipe)}), {recipe["num_epochs"]} epochs of \
batches of {recipe["batch_size"]}, peak learning rate {recipe["learning_rate"]:g}.

## Data and licence

{_ingredients(recipe, known)} {_licence_text(None, chosen=False)}

## Limitations

{_limitations(recipe, known)}

## Citation

```bibtex
{CITATION}
```
"""


def check_card(text: str, files: set[str]) -> ModelCard:
    """See that a card's metadata are what the Hub reads, without asking it.

    Args:
        text: of the README.md.
        files: names of the files that go with it.

    Raises:
        ValueError: if they are not; with all that is wrong.
    """
    problems = []
    try:
        card = ModelCard(text)
    except Exception as error:  # of PyYAML, of the model-index, of a field of another type
        raise ValueError(f"The card's metadata cannot be read: {error}") from error
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
    """A metric's name for readers: `i2t_r1` is "R@1, image to text"."""
    way, _, measure = metric.partition("_")
    if way not in DIRECTIONS or measure not in COLUMNS:
        return metric.upper()
    return f"{COLUMNS[measure][0]}, {DIRECTIONS[way].replace('→', 'to')}"


def _metadata(recipe: dict, known: KnownData, licence: str | None) -> ModelCardData:
    backbones = [name for name in _backbones(recipe) if _on_the_hub(name)]
    return ModelCardData(
        language=known.language,
        license=licence or (None if _backbones(recipe) or recipe["word_vectors"] is not None else known.licence),
        library_name="transformers",
        tags=["omit", "image-text-matching", "image-text-retrieval"]
        + ["optimal-transport"] * (recipe["matching"] in ("omit", "ot")),
        datasets=None if known.hub_id is None else [known.hub_id],
        base_model=backbones or None,
    )


def _backbones(recipe: dict) -> list[str]:
    return [recipe[side] for side in ("clip_model", "vision_model", "text_model") if recipe[side] is not None]


def _on_the_hub(name: str) -> bool:
    return re.fullmatch(HUB_ID, name) is not None and not Path(name).exists()


def _takes_regions(recipe: dict) -> bool:
    return (recipe["vision_config"] or {}).get("model_type") == "omit_region"


def _settings(recipe: dict) -> str:
    return ", ".join(
        f"{field} {recipe[field]}" for field in (*HEADS[recipe["matching"]][2], *LOSS_FIELDS[recipe["loss"]])
    )


def _drawing(pictures: CardPictures | None) -> str:
    if pictures is None or pictures.alignment is None:
        return ""
    caption = _as_it_is(pictures.captions[0])
    return f"""
![Where the model finds the words of a caption]({pictures.alignment})

*“{caption}”, a caption of the test split: a panel a word, dark where the model finds it in the picture.*
"""


def _as_it_is(text: str) -> str:
    """A line that Markdown shows as it is written, HTML in it too."""
    return re.sub(r"([\\`*_{}\[\]<>&#|~])", r"\\\1", " ".join(text.split()))


def _usage(recipe: dict, name: str, repo_id: str | None, pictures: CardPictures | None) -> str:
    captions = '["one caption", "another caption"]'
    if _takes_regions(recipe):
        imports, source = REGIONS_IMPORT, 'regions=np.load("regions.npy")'  # [K, width] of one image
        lead = "`regions.npy` holds the precomputed regions of one image, `[regions, width]`, float32."
    elif pictures is not None:
        imports, captions = SAMPLE_IMPORT, json.dumps(pictures.captions, ensure_ascii=False)
        source = f'images=Image.open(hf_hub_download(name, "{pictures.sample}"))'
        lead = "With the picture beside this file; the first caption is its own."
    else:
        imports, source = IMAGES_IMPORT, 'images=Image.open("picture.png")'
        lead = "`picture.png` is a picture of yours."
    where = "" if repo_id else f'  # the folder that this file is in; on the Hub, with its owner: "owner/{name}"'
    return f"""With the package omit-hf. {lead}

```python
{imports}
from omit_hf import OmitModel, OmitProcessor

name = {json.dumps(name, ensure_ascii=False)}{where}
model, processor = OmitModel.from_pretrained(name), OmitProcessor.from_pretrained(name)
inputs = processor(
    {source},
    text={captions},
)
with torch.inference_mode():
    print(model(**inputs).similarity)  # [images, captions]
```"""


def _published_table(known: KnownData) -> str:
    """What others report on the same data, marked as theirs."""
    if not known.published:
        return ""
    rows = "\n".join(
        f"| {method} | {encoders} | {image:.1f} | {text:.1f} | {rsum:.1f} | {source} |"
        for method, encoders, image, text, rsum, source in known.published
    )
    return f"""
Published by others on {known.measured_as}, **not measured by us**:

| method | encoders | i2t R@1 | t2i R@1 | RSUM | source |
|---|---|---|---|---|---|
{rows}
"""


def _ingredients(recipe: dict, known: KnownData, splits: dict | None = None) -> str:
    """The data, the backbones and whatever else the weights come from, with the terms of each as far as known."""
    counts = ""
    if splits is not None:
        counts = f", {splits['train']['images']} images and {splits['train']['captions']} captions for training"
    terms = f"{known.terms}." if known.terms else "their terms are not known to us."
    lines = [f"Data: {known.name}{counts}; {terms}"]
    if _takes_regions(recipe):
        lines.append(
            "The images are precomputed regions of a detector, whose terms and whose training data's hold as well."
        )
    for name in _backbones(recipe):
        if _on_the_hub(name):
            lines.append(f"Pretrained: [{name}](https://huggingface.co/{name}), under the licence of its own card.")
        else:
            lines.append(f"Pretrained: `{Path(name).name}`, a folder on the machine of the training.")
    if recipe["word_vectors"] is not None:
        lines.append(f"Word vectors: `{Path(recipe['word_vectors']).name}`, under their own licence.")
    return " ".join(lines)


def _licence_text(licence: str | None, chosen: bool) -> str:
    if licence is None:
        return "No licence is given here: see those of the data and of the backbones."
    if chosen:
        return f"The weights are published under `{licence}`, which whoever published them chose."
    return f"The weights are under `{licence}`, since all that they come from is."


def _limitations(recipe: dict, known: KnownData) -> str:
    lines = [
        known.knows,
        "A score compares captions of one image, or images for one caption; it is no probability that they match, and "
        "the classes that a pipeline makes of it are only as good as the captions that it is given.",
        "Where a word's mass comes from shows what the score is made of; it is no proof that the model knows the word.",
    ]
    if _takes_regions(recipe):
        lines.append("It takes regions of the detector that it was trained with, and no pictures.")
    return " ".join(lines)
