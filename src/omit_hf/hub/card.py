"""Model cards from what was measured."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from omit_hf.evaluation.retrieval import metrics_table

DATASETS = {"scenes": "Scenes (generated, omit_hf.data.scenes)"}
IMAGES_IMPORT = "import torch\nfrom PIL import Image\n"
IMAGES_INPUT = 'images=Image.open("picture.png").convert("RGB")'
REGIONS_IMPORT = "import numpy as np\nimport torch\n"
REGIONS_INPUT = 'regions=np.load("regions.npy")'
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


def model_card(metrics: dict) -> str:
    """The README.md of a trained model.

    Args:
        metrics: the content of `metrics.json`, as `omit_hf.training.train` writes it.
    """
    recipe, test, place = metrics["recipe"], metrics["test"], metrics["environment"]
    name = Path(recipe["output_dir"]).name
    dataset = DATASETS.get(recipe["data"], Path(recipe["data"]).stem)
    kind, method, head_fields = HEADS[recipe["matching"]]
    settings = ", ".join(f"{field} {recipe[field]}" for field in (*head_fields, *LOSS_FIELDS[recipe["loss"]]))
    base_models = [recipe[side] for side in ("clip_model", "vision_model", "text_model") if recipe[side] is not None]
    regions = (recipe["vision_config"] or {}).get("model_type") == "omit_region"
    data = ModelCardData(
        # Known of what is generated here alone; otherwise the data and the backbones decide.
        language="en" if recipe["data"] == "scenes" else None,
        license="apache-2.0" if recipe["data"] == "scenes" and not base_models else None,
        library_name="transformers",
        pipeline_tag=None if regions else "zero-shot-image-classification",  # whose widget gives pictures
        tags=["omit", "image-text-matching", "image-text-retrieval"]
        + ["optimal-transport"] * (recipe["matching"] in ("omit", "ot")),
        base_model=[model for model in base_models if not Path(model).exists()] or None,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-text-retrieval",
                dataset_type=Path(recipe["data"]).stem,
                dataset_name=dataset,
                dataset_split="test",
                metric_type=metric,
                metric_name=metric,
                metric_value=round(value, 2),
            )
            for metric, value in test.items()
        ],
    )
    split = metrics["splits"]
    licence = "" if data.license else " No licence is given here: see those of the data and of the backbones."
    return f"""---
{data.to_yaml()}
---

# {name}

{kind}, trained with omit-hf on {dataset}: {method}.

## Use

```python
{REGIONS_IMPORT if regions else IMAGES_IMPORT}
from omit_hf import OmitModel, OmitProcessor

name = "{name}"  # the folder that this file is in; on the Hub, with its owner before it: "owner/{name}"
model, processor = OmitModel.from_pretrained(name), OmitProcessor.from_pretrained(name)
inputs = processor({REGIONS_INPUT if regions else IMAGES_INPUT}, text=["one caption", "another caption"])
with torch.inference_mode():
    print(model(**inputs).similarity)
```

## Results

Test split, {split["test"]["images"]} images and {split["test"]["captions"]} captions; recalls in percent.

{metrics_table(test)} (validation {metrics["validation"]["rsum"]:.1f}, best of {metrics["epochs"]} epochs: number \
{metrics["best_epoch"] + 1}).

## Training

Data: {dataset}, {split["train"]["images"]} images and {split["train"]["captions"]} captions. Matching \
`{recipe["matching"]}`, loss `{recipe["loss"]}` ({settings}), seed {recipe["seed"]}. \
{metrics["trained_parameters"]:,} of {metrics["parameters"]:,} \
parameters trained in {metrics["steps"]} steps and {metrics["training_seconds"]:.0f} s, at \
{metrics["pairs_per_second"]:.0f} pairs/s and with at most {metrics["peak_memory"] / 2**30:.1f} GiB of memory. All of \
it is in `recipe.yaml`.

## Environment

Measured at commit {place["commit"] or "unknown"} on {place["device"]}, {place["cores"]} cores, {place["processes"]} \
process(es): omit-hf {place["omit_hf"]}, torch {place["torch"]}, transformers {place["transformers"]}, datasets \
{place["datasets"]}, accelerate {place["accelerate"]}, Python {place["python"]}.

## Limitations

The model knows what its training data shows and no more. A score compares captions of one image, or images for one
caption; it is no probability that they match.{licence}

## Citation

```bibtex
{CITATION}
```
"""
