"""Every recipe of Flickr30K and COCO, end to end, on a miniature of its data and with miniatures of its backbones."""

from pathlib import Path

import miniatures
import numpy as np
import pytest
import sources
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModel, ResNetConfig, SwinConfig, ViTConfig

from omit_hf import OmitModel, OmitProcessor
from omit_hf.data import load_image_text
from omit_hf.evaluation import evaluate_split
from omit_hf.training import Recipe, read_recipe_file, train
from omit_hf.training.optimisation import backbone_stages

CONFIGS = Path(__file__).parents[1] / "examples" / "configs"
SETS = ("flickr30k", "coco")
VARIANTS = ("region_bigru", "region_bert", "grid_resnet_bert", "vit_bert", "swin_bert", "clip")
NAMES = [f"{data}_{variant}" for data in SETS for variant in VARIANTS]
# The real backbones: architecture, and the miniature that stands for it.
BACKBONES = {
    "microsoft/resnet-152": (ResNetConfig(depths=[3, 8, 36, 3]), "resnet"),
    "google/vit-base-patch16-224-in21k": (ViTConfig(), "vit"),
    "microsoft/swin-base-patch4-window7-224": (SwinConfig(embed_dim=128, depths=[2, 2, 18, 2]), "swin"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniatures")
    for kind in ("resnet", "vit", "swin"):
        miniatures.save_vision(kind, folder / kind)
    miniatures.save_text("bert", folder / "bert")
    miniatures.save_clip("clip", folder / "clip")
    miniatures.karpathy(folder / "karpathy")
    miniatures.regions(folder / "regions")
    miniatures.word_vectors(folder / "glove.txt", 8)
    return folder


@pytest.fixture(autouse=True)
def accelerate_begins_anew():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def miniature(name: str, folder: Path, output_dir: Path) -> Recipe:
    """A recipe with other data and backbones, smaller widths and a smaller length; the rest is as it is written."""
    fields = read_recipe_file(CONFIGS / f"{name}.yaml")
    if "_region_" in name:
        assert fields["data"] == f"data/{name.split('_')[0]}_regions"
        fields["data"] = str(folder / "regions")
        fields["vision_config"] = {**fields["vision_config"], "feature_size": 10, "hidden_size": 8}
    else:
        fields["data"] = str(folder / "karpathy" / "dataset.json")
        fields["data_options"] = {"image_folder": str(folder / "karpathy" / "images")}
    if "vision_model" in fields:
        fields["vision_model"] = str(folder / BACKBONES[fields["vision_model"]][1])
        fields["unfreeze_epochs"] = fields["unfreeze_epochs"][:2]
    if "text_model" in fields:
        assert fields["text_model"] == "google-bert/bert-base-uncased"
        fields["text_model"] = str(folder / "bert")
    if "text_config" in fields:
        fields["text_config"] = {**fields["text_config"], "embedding_size": 8, "hidden_size": 16}
        fields["word_vectors"] = str(folder / "glove.txt")
    if "clip_model" in fields:
        assert fields["clip_model"] == "openai/clip-vit-base-patch32"
        fields["clip_model"] = str(folder / "clip")
    fields["projection_dim"] = 24 if "clip_model" in fields else 16
    small = {"num_epochs": 2, "batch_size": 20, "num_workers": 0, "tensorboard": False, "cpu_threads": 1}
    return Recipe(**{**fields, **small, "output_dir": str(output_dir)})


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_evaluates_saves_and_loads(name, folder, tmp_path):
    recipe = miniature(name, folder, tmp_path / name)
    metrics = train(recipe)
    assert metrics["steps"] == 2 * 3
    assert metrics["test"].keys() >= {"rsum", "i2t_r1", "t2i_r1"}
    if "bigru" in name:
        vocabulary = OmitProcessor.from_pretrained(tmp_path / name).tokenizer.get_vocab()
        assert metrics["word_vectors"]["found"] == len(vocabulary.keys() & miniatures.WORDS) >= 2
    test = load_image_text(recipe.data, **(recipe.data_options or {}))["test"]
    scores = []
    for _ in range(2):
        model, processor = OmitModel.from_pretrained(tmp_path / name), OmitProcessor.from_pretrained(tmp_path / name)
        found, similarity = evaluate_split(model, processor, test, progress=False)
        assert found == metrics["test"]
        scores.append(similarity)
    assert scores[0].shape == (4, 20)
    assert np.array_equal(*scores)
    model.save_pretrained(tmp_path / "again")
    again = evaluate_split(OmitModel.from_pretrained(tmp_path / "again"), processor, test, progress=False)[1]
    assert np.array_equal(again, scores[0])


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """The same data in every layout, as source and options of its loader."""
    folder = tmp_path_factory.mktemp("layouts")
    made = {name: write(folder / name) for name, write in sources.WITH_PICTURES.items()}
    made["regions"] = sources.regions(folder / "regions")
    made["regions_a_caption"] = sources.regions(folder / "regions_a_caption", repeat=5)
    return made


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (name, layout)
        for name in NAMES
        for layout in (("regions", "regions_a_caption") if "_region_" in name else sources.WITH_PICTURES)
    ],
)
def test_every_loader_with_every_recipe(name, layout, folder, layouts, tmp_path):
    recipe = miniature(name, folder, tmp_path / "model")
    source, recipe.data_options = layouts[layout]
    recipe.data, recipe.num_epochs, recipe.decay_epochs = str(source), 1, []
    recipe.unfreeze_epochs = [0] * len(recipe.unfreeze_epochs)
    if "_region_" in name:
        recipe.vision_config = {**recipe.vision_config, "feature_size": 8}
    if "bigru" in name:
        recipe.min_word_count = 1
    metrics = train(recipe)
    test = load_image_text(recipe.data, **recipe.data_options)["test"]
    model, processor = OmitModel.from_pretrained(recipe.output_dir), OmitProcessor.from_pretrained(recipe.output_dir)
    found, similarity = evaluate_split(model, processor, test, progress=False)
    assert found == metrics["test"]
    assert similarity.shape == (3, 15)
    model.save_pretrained(tmp_path / "again")
    again = evaluate_split(OmitModel.from_pretrained(tmp_path / "again"), processor, test, progress=False)[1]
    assert np.array_equal(again, similarity)


def test_there_is_a_recipe_of_each():
    assert {file.stem for file in CONFIGS.glob("*.yaml") if file.stem.startswith(SETS)} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_hyper_parameters_are_those_of_the_family(name):
    recipe = Recipe(**read_recipe_file(CONFIGS / f"{name}.yaml"))
    assert (recipe.matching, recipe.regularization, recipe.num_iterations) == ("omit", 0.02, 3)
    assert (recipe.batch_size, recipe.weight_decay, recipe.max_grad_norm) == (128, 1e-4, 2.0)
    if "clip" not in name:
        assert (recipe.loss, recipe.margin, recipe.all_negatives_epochs) == ("triplet", 0.05, 1)
        assert (recipe.learning_rate, recipe.num_epochs, recipe.decay_epochs) == (5e-4, 25, [15])
        assert (recipe.projection_dim, recipe.word_augmentation) == (1024, 0.2)
        assert recipe.text_lr_factor == (1.0 if "bigru" in name else 0.1)
        assert recipe.vision_lr_factor == (1.0 if "region" in name else 0.01)
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert f"examples/configs/{name}.yaml" in text
    assert "# Source: " in text


@pytest.mark.parametrize("data", SETS)
@pytest.mark.parametrize("variant", ["grid_resnet_bert", "vit_bert", "swin_bert"])
def test_the_real_backbones_have_the_stages(data, variant):
    """All are unfrozen one after the other, but for the embeddings."""
    fields = read_recipe_file(CONFIGS / f"{data}_{variant}.yaml")
    with torch.device("meta"):
        backbone = AutoModel.from_config(BACKBONES[fields["vision_model"]][0])
    assert len(fields["unfreeze_epochs"]) == len(backbone_stages(backbone)) - 1
    assert min(fields["unfreeze_epochs"]) == 1  # frozen in the first epoch
