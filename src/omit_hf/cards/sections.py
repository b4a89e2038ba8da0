"""Writes the sections of a card that trained models and recipes share."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from omit_hf.cards.heads import LOSS_FIELDS
from omit_hf.cards.known_data import KnownData
from omit_hf.cards.metadata import backbones, is_on_the_hub, takes_regions
from omit_hf.modeling.matching_omit import MATCHING

IMAGES_IMPORT = "import torch\nfrom PIL import Image\n"
REGIONS_IMPORT = "import numpy as np\nimport torch\n"
SAMPLE_IMPORT = "import torch\nfrom huggingface_hub import hf_hub_download\nfrom PIL import Image\n"


@dataclass(frozen=True)
class CardPictures:
    """Picture files that go to the Hub with a card.

    Args:
        sample: name of a picture, for the widget and the code.
        captions: captions for the sample, the true one first.
        alignment: name of a drawing that aligns the first caption with the sample; None if there is none.
    """

    sample: str
    captions: tuple[str, ...]
    alignment: str | None = None


def settings(recipe: dict) -> str:
    """List the fields that the head and the loss of a recipe read, with their values."""
    fields = (*MATCHING[recipe["matching"]].fields, *LOSS_FIELDS[recipe["loss"]])
    return ", ".join(f"{field} {recipe[field]}" for field in fields if field in recipe)  # an older one has fewer


def drawing(pictures: CardPictures | None) -> str:
    """Show the drawing of an alignment with its caption, if there is one."""
    if pictures is None or pictures.alignment is None:
        return ""
    caption = _as_it_is(pictures.captions[0])
    return f"""
![Where the model finds the words of a caption]({pictures.alignment})

*“{caption}”, a caption of the test split: a panel a word, dark where the model finds it in the picture.*
"""


def _as_it_is(text: str) -> str:
    """Escape a line so that Markdown shows it as it is written, HTML included."""
    return re.sub(r"([\\`*_{}\[\]<>&#|~])", r"\\\1", " ".join(text.split()))


def usage(recipe: dict, name: str, repo_id: str | None, pictures: CardPictures | None) -> str:
    """Write code that loads a model and scores two captions; a test runs it."""
    captions = '["one caption", "another caption"]'
    if takes_regions(recipe):
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


def published_table(known: KnownData) -> str:
    """Tabulate what others report on the same data, marked as theirs."""
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


def ingredients(recipe: dict, known: KnownData, splits: dict | None = None) -> str:
    """List the data, backbones and other sources of the weights, with their terms as far as known."""
    counts = ""
    if splits is not None and "train" not in splits:
        counts = ", its training split read as a stream"
    elif splits is not None:
        counts = f", {splits['train']['images']} images and {splits['train']['captions']} captions for training"
    terms = f"{known.terms}." if known.terms else "their terms are not known to us."
    lines = [f"Data: {known.name}{counts}; {terms}"]
    if takes_regions(recipe):
        lines.append(
            "The images are precomputed regions of a detector, whose terms and whose training data's hold as well."
        )
    for name in backbones(recipe):
        if is_on_the_hub(name):
            lines.append(f"Pretrained: [{name}](https://huggingface.co/{name}), under the licence of its own card.")
        else:
            lines.append(f"Pretrained: `{Path(name).name}`, a folder on the machine of the training.")
    if recipe["word_vectors"] is not None:
        lines.append(f"Word vectors: `{Path(recipe['word_vectors']).name}`, under their own licence.")
    return " ".join(lines)


def licence_text(licence: str | None, chosen: bool) -> str:
    """Tell the licence of the weights, and where it comes from."""
    if licence is None:
        return "No licence is given here: see those of the data and of the backbones."
    if chosen:
        return f"The weights are published under `{licence}`, which whoever published them chose."
    return f"The weights are under `{licence}`, since all that they come from is."


def limitations(recipe: dict, known: KnownData) -> str:
    """Tell what a model does not know, and what its scores do not say."""
    lines = [
        known.knows,
        "A score compares captions of one image, or images for one caption; it is no probability that they match, and "
        "the classes that a pipeline makes of it are only as good as the captions that it is given.",
        "Where a word's mass comes from shows what the score is made of; it is no proof that the model knows the word.",
    ]
    if takes_regions(recipe):
        lines.append("It takes regions of the detector that it was trained with, and no pictures.")
    return " ".join(lines)
