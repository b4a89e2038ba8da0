"""Every kind of image encoder with every kind of text encoder learns 64 pairs by heart."""

import random

import miniatures
import pytest
import torch
from tiny import tiny_config
from transformers import AutoImageProcessor, AutoTokenizer

from omit_hf import OmitModel, OmitProcessor, retrieval_metrics
from omit_hf.data import build_word_tokenizer
from omit_hf.modeling.backbones_omit import text_settings
from omit_hf.modeling.matching_omit import MATCHING

PAIRS = 64
STEPS = 600
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VISION = {
    "region": {"model_type": "omit_region", "feature_size": 16, "hidden_size": 32},
    "resnet": {"model_type": "resnet", **miniatures.VISION["resnet"], "hidden_sizes": [16, 32]},
    "vit": {"model_type": "vit", **miniatures.VISION["vit"], **SMALL},
}
TEXT = ("bigru", "bert")


def captions() -> list[str]:
    """Different ones, of the same letters: the order or choice of the words has to be learnt."""
    letters = random.Random(0)
    found = set()
    while len(found) < PAIRS:
        found.add(" ".join(letters.choice("abcdefgh") for _ in range(letters.randint(3, 6))))
    return sorted(found)


def encoders(vision: str, text: str, **options) -> tuple[OmitModel, OmitProcessor]:
    if text == "bigru":
        tokenizer = build_word_tokenizer(captions())
        config = {"model_type": "omit_bigru", "vocab_size": len(tokenizer), "embedding_size": 16, "hidden_size": 32}
    else:
        tokenizer = miniatures.text_tokenizer(text)
        config = {"model_type": text, **miniatures.text_options(text, tokenizer), **SMALL}
    options = {"projection_dim": 32, "loss": "infonce", **text_settings(tokenizer), **options}
    return OmitModel(tiny_config(vision_config=VISION[vision], text_config=config, **options)), OmitProcessor(
        tokenizer=tokenizer
    )


def learn(model: OmitModel, inputs: dict) -> None:
    """Train until every image finds its caption and every caption its image, which takes some 30 to 110 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    for step in range(1, STEPS + 1):
        model.train()
        # Over all negatives, as training begins: from random weights the hardest one pulls everything together.
        model(**inputs, return_loss=True, negatives="all").loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            with torch.inference_mode():
                similarity = model.eval()(**inputs).similarity
            metrics = retrieval_metrics(similarity, torch.arange(PAIRS))
            if metrics["i2t_r1"] == metrics["t2i_r1"] == 100:
                return
    pytest.fail(f"after {STEPS} steps R@1 is {metrics['i2t_r1']:.1f} and {metrics['t2i_r1']:.1f}")


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("vision", VISION)
def test_every_kind_with_every_kind(vision, text):
    torch.manual_seed(0)
    model, processor = encoders(vision, text)
    images = {"region_features": torch.randn(PAIRS, 12, 16)} if vision == "region" else {"pixel_values": pixels()}
    learn(model, {**images, **processor(text=captions())})


@pytest.mark.parametrize("loss", ["infonce", "triplet"])
@pytest.mark.parametrize("matching", [name for name in MATCHING if name != "omit"])
def test_every_head_with_every_loss(matching, loss):
    torch.manual_seed(0)
    model, processor = encoders("region", "bigru", matching=matching, loss=loss, margin=0.2)
    learn(model, {"region_features": torch.randn(PAIRS, 12, 16), **processor(text=captions())})


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_from_a_checkpoint_with_both_sides(kind, tmp_path):
    folder = miniatures.save_clip(kind, tmp_path)
    torch.manual_seed(0)
    model = OmitModel.from_clip(folder, loss="infonce", logit_scale_init_value=2.6592)
    processor = OmitProcessor(AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    learn(model, {"pixel_values": pixels(), **processor(text=captions())})


def pixels() -> torch.Tensor:
    return torch.nn.functional.interpolate(torch.randn(PAIRS, 3, 8, 8), scale_factor=4)
