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


def model_card(metrics: dict) -> str:
    """The README.md of a trained model.

    Args:
        metrics: the content of `metrics.json`, as `omit_hf.training.train` writes it.
    """
    recipe, test, place = metrics["recipe"], metrics["test"], metrics["environment"]
    name = Path(recipe["output_dir"]).name
    dataset = DATASETS.get(recipe["data"], Path(recipe["data"]).stem)
    base_models = [recipe[side] for side in ("clip_model", "vision_model", "text_model") if recipe[side] is not None]
    regions = (recipe["vision_config"] or {}).get("model_type") == "omit_region"
    data = ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=None if regions else "zero-shot-image-classification",  # whose widget gives pictures
        tags=["omit", "image-text-matching", "image-text-retrieval", "optimal-transport"],
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
    return f"""---
{data.to_yaml()}
---

# {name}

An [OMIT](https://arxiv.org/abs/2603.14349) model for fine-grained image-text matching, trained with
omit-hf on {dataset}: it moves the fragments of an image onto the words of a caption by
partial optimal transport, and scores what is matched.

## Use

```python
{REGIONS_IMPORT if regions else IMAGES_IMPORT}
from omit_hf import OmitModel, OmitProcessor

model, processor = OmitModel.from_pretrained("PATH"), OmitProcessor.from_pretrained("PATH")
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
`{recipe["matching"]}`, λ = {recipe["regularization"]}, {recipe["num_iterations"]} iterations, loss \
`{recipe["loss"]}`, seed {recipe["seed"]}. {metrics["trained_parameters"]:,} of {metrics["parameters"]:,} \
parameters trained in {metrics["steps"]} steps and {metrics["training_seconds"]:.0f} s, at \
{metrics["pairs_per_second"]:.0f} pairs/s and with at most {metrics["peak_memory"] / 2**30:.1f} GiB of memory. All of \
it is in `recipe.yaml`.

## Environment

Measured at commit {place["commit"] or "unknown"} on {place["device"]}, {place["cores"]} cores, {place["processes"]} \
process(es): omit-hf {place["omit_hf"]}, torch {place["torch"]}, transformers {place["transformers"]}, datasets \
{place["datasets"]}, accelerate {place["accelerate"]}, Python {place["python"]}.

## Limitations

The model knows what its training data shows and no more. A score compares captions of one image, or images for one
caption; it is no probability that they match.

## Citation

```bibtex
{CITATION}
```
"""
