import re
import time
import typing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from samples import POOLING
from tiny import REGIONS, TEXT, tiny_config, tiny_recipe

from omit_hf import OmitModel, OmitProcessor
from omit_hf.cards import (
    CardPictures,
    check_card,
    environment,
    eval_results,
    model_card,
    recipe_card,
    with_results,
)
from omit_hf.cards.known_data import COCO, FLICKR30K
from omit_hf.training import Recipe, read_recipe_file

CONFIGS = Path(__file__).parents[1] / "examples" / "configs"
RECIPES = sorted(file for file in CONFIGS.glob("*.yaml") if not file.stem.startswith("compare_"))
PICTURES = CardPictures("sample.png", ("a star, and more", 'two "blue" circles'), "alignment.png")

METRICS = {
    "test": {f"{way}_{name}": 12.5 for way in ("i2t", "t2i") for name in ("r1", "r5", "r10", "medr", "meanr", "map")}
    | {"rsum": 75.0},
    "validation": {"rsum": 80.25},
    "best_epoch": 1,
    "epochs": 3,
    "steps": 12,
    "training_seconds": 5.5,
    "pairs_per_second": 123.4,
    "peak_memory": 3 * 2**30,
    "parameters": 2000,
    "trained_parameters": 1500,
    "splits": {"train": {"images": 8, "captions": 40}, "test": {"images": 6, "captions": 30}},
    "environment": environment() | {"numba": "0.1"},
}


def metrics(**options) -> dict:
    recipe = asdict(Recipe(**tiny_recipe(output_dir="outputs/tiny")))
    return {**METRICS, "recipe": {**recipe, **options}}


def card(**options) -> ModelCard:
    return ModelCard(model_card(metrics(**options)))


def flat(card: ModelCard) -> str:
    return " ".join(card.text.split())


def code_of(card: ModelCard) -> str:
    [code] = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    return code


def test_the_metadata_are_the_hubs():
    data = card().data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "zero-shot-image-classification")
    for split in ("test", "validation"):  # each with all that was measured
        results = {each.metric_type: each.metric_value for each in data.eval_results if each.dataset_split == split}
        assert results == METRICS[split]
    assert {result.dataset_split for result in data.eval_results} == {"test", "validation"}
    assert {result.metric_name for result in data.eval_results} >= {"R@1, image to text", "RSUM"}


def test_the_text_says_what_was_measured_and_where():
    text = " ".join(card().text.split())
    for said in ("RSUM 75.0", "6 images and 30 captions", "8 images and 40 captions", "validation 80.2", "12 steps"):
        assert said in text
    for package in ("torch", "transformers", "datasets", "accelerate", "numba"):
        assert f"{package} {METRICS['environment'][package]}," in text
    for said in (METRICS["environment"]["device"], "seed 0", "regularization 0.02"):
        assert said in text
    assert "1,500 of 2,000 parameters" in text
    assert "at 123 pairs/s and with at most 3.0 GiB of memory" in text
    without = metrics()
    without["environment"] = {name: what for name, what in without["environment"].items() if name != "numba"}
    assert "numba" not in model_card(without)


@pytest.mark.parametrize("matching", typing.get_args(Recipe.__dataclass_fields__["matching"].type))
@pytest.mark.parametrize("loss", typing.get_args(Recipe.__dataclass_fields__["loss"].type))
def test_a_card_tells_of_its_own_head_and_loss(matching, loss):
    published = card(matching=matching, loss=loss)
    text = " ".join(published.text.split())
    assert f"Matching `{matching}`, loss `{loss}` (" in text
    assert ("partial optimal transport" in text) == (matching == "omit")
    assert ("dustbin global" in text) == (matching == "omit")
    assert ("regularization" in text) == ("optimal-transport" in published.data.tags) == (matching in ("omit", "ot"))
    assert ("fine-grained" in text) == (matching not in dict(POOLING))
    assert ("margin 0.05" in text) == (loss == "triplet")


def test_a_card_tells_of_terms_that_are_not_the_papers():
    text = " ".join(card(global_weight=0.2, score="augmented").text.split())
    assert "what dustbins take is scored too; 0.2 of the score is the cosine of the global features." in text
    assert "score augmented, global_weight 0.2" in text
    assert "global features." not in card(global_weight=0).text
    older = metrics()
    del older["recipe"]["score"], older["recipe"]["global_weight"]
    assert "marginals uniform, margin" in model_card(older)


def test_results_are_added_to_a_card_or_replace_its_own():
    before = model_card({**METRICS, "recipe": asdict(Recipe(**tiny_recipe(output_dir="outputs/tiny")))})
    new = eval_results({"i2t_r1": 1.239, "t2i_r1": 2}, "coco_5k", "COCO 5K")
    once = with_results(before, "other", new)
    newer = eval_results({"i2t_r1": 50.0}, "coco_5k", "COCO 5K")
    data = ModelCard(with_results(once, "other", newer)).data
    tested = [each for each in data.eval_results if each.dataset_split == "test"]
    found = {(each.dataset_type, each.metric_type): each.metric_value for each in tested}
    expected = {("scenes", name): value for name, value in METRICS["test"].items()}
    assert found == {**expected, ("coco_5k", "i2t_r1"): 50.0, ("coco_5k", "t2i_r1"): 2}
    assert {each.metric_value for each in ModelCard(once).data.eval_results} >= {1.24, 2}
    assert data.model_name == "tiny"
    assert data.library_name == "transformers"
    assert ModelCard(once).text == ModelCard(before).text
    assert ModelCard(with_results("---\nlicense: mit\n---\nText\n", "new", new)).data.model_name == "new"
    with pytest.raises(ValueError, match="does not begin with metadata between two lines of ---"):
        with_results("# A model\n", "new", new)


def test_noise_is_told():
    assert "20% of the captions were given to other images." in card(caption_noise=0.2).text
    assert "0.5% of the captions were given to other images." in card(caption_noise=0.005).text
    assert "given to other images" not in card().text


def test_a_card_claims_no_licence_that_is_not_known():
    assert (card().data.license, card().data.language) == ("apache-2.0", "en")  # all of it generated here
    others = ({"data": "dataset_coco.json"}, {"text_model": "google-bert/bert-base-uncased"}, {"word_vectors": "glove"})
    for options in others:
        published = card(**options)
        assert published.data.license is None
        assert "No licence is given here: see those of the data" in " ".join(published.text.split())
    assert card(data="dataset_coco.json").data.language is None


def test_a_folder_on_this_machine_is_no_base_model(tmp_path):
    published = card(vision_model="facebook/dinov2-base", text_model=str(tmp_path))
    assert published.data.base_model == ["facebook/dinov2-base"]
    assert card(clip_model="openai/clip-vit-base-patch32").data.base_model == ["openai/clip-vit-base-patch32"]


def test_the_code_for_regions_runs(processor, tmp_path, monkeypatch, capsys):
    published = card(vision_config=REGIONS)
    assert published.data.pipeline_tag is None
    assert "It takes regions of the detector that it was trained with" in flat(published)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(processor.tokenizer)}
    OmitModel(tiny_config(vision_config=REGIONS, text_config=text)).save_pretrained("tiny")
    OmitProcessor(None, processor.tokenizer).save_pretrained("tiny")
    np.save("regions.npy", np.random.default_rng(0).normal(size=(36, 10)).astype(np.float32))
    exec(code_of(published), {})
    assert re.fullmatch(r"tensor\(\[\[.*, .*\]\]\)\n", capsys.readouterr().out)


def test_the_code_for_a_picture_of_ones_own_runs(scenes_model, processor, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scenes_model.save_pretrained("tiny")
    processor.save_pretrained("tiny")
    Image.new("L", (96, 96), 100).save("picture.png")
    exec(code_of(card()), {})
    assert capsys.readouterr().out.startswith("tensor([[")


def test_a_card_for_the_hub_shows_the_pictures_beside_it():
    published = ModelCard(model_card(metrics(), "user/model", pictures=PICTURES))
    assert published.data.model_name == "model"
    [widget] = published.data.widget
    assert widget["src"] == "sample.png"
    assert widget["candidate_labels"] == 'a star and more, two "blue" circles'  # whose commas part them
    assert "![Where the model finds the words of a caption](alignment.png)" in published.text
    assert "dark where the model finds it" in flat(published)  # as omit_hf.visualization draws it
    code = code_of(published)
    assert 'name = "user/model"\n' in code
    assert 'text=["a star, and more", "two \\"blue\\" circles"]' in code
    compile(code, "card", "exec")
    plain = ModelCard(model_card(metrics(), "user/model", pictures=CardPictures("sample.png", ("a star",))))
    assert "alignment.png" not in plain.text
    assert card().data.get("widget") is None
    with pytest.raises(ValueError, match="pictures are given without repo_id"):
        model_card(metrics(), pictures=PICTURES)


def test_a_caption_is_text_and_nothing_else():
    """It comes from the data, of which anybody may have written a line."""
    caption = "a <img src=x onerror=alert(1)> *star*\n\n# [here](javascript:x) ![pixel](http://example.com/a)"
    pictures = CardPictures("sample.png", (caption, "a ring"), "alignment.png")
    text = model_card(metrics(), "user/model", pictures=pictures)
    [line] = [line for line in text.splitlines() if "a caption of the test split" in line]
    assert line.startswith(
        r"*“a \<img src=x onerror=alert(1)\> \*star\* \# \[here\](javascript:x) !\[pixel\](http://example.com/a)”, a "
    )
    check_card(text, {"sample.png", "alignment.png"})
    compile(code_of(ModelCard(text)), "card", "exec")


def test_a_folder_with_quotes_in_its_name():
    compile(code_of(card(output_dir='outputs/my "best"')), "card", "exec")


def test_a_licence_that_is_chosen():
    published = ModelCard(model_card(metrics(data="dataset_coco.json"), "user/model", licence="cc-by-4.0"))
    assert published.data.license == "cc-by-4.0"
    assert "The weights are published under `cc-by-4.0`, which whoever published them chose." in flat(published)
    assert "The weights are under `apache-2.0`, since all that they come from is." in flat(card())


def test_scenes_with_pictures_from_elsewhere_are_not_ours():
    """As far as known: any option but the sizes and the seed may bring them."""
    published = card(data_options={"train_size": 8, "cut_outs": "emoji"})
    assert published.data.license is None
    assert "their terms are not known to us" in flat(published)


def of_size(train: int, test: int) -> dict:
    return {
        "splits": {"train": {"images": train, "captions": 5 * train}, "test": {"images": test, "captions": 5 * test}}
    }


@pytest.mark.parametrize(
    ("data", "known", "train", "test"),
    [("data/dataset_flickr30k.json", FLICKR30K, 29_000, 1_000), ("f30k_precomp", FLICKR30K, 29_000, 1_000)]
    + [("data/coco_regions", COCO, 113_287, 5_000)],
)
def test_known_data_is_told_of_with_what_others_published(data, known, train, test):
    def told(*size):
        return ModelCard(model_card({**metrics(data=data), **of_size(*size)}))

    published = told(train, test)
    assert published.data.datasets == [known.hub_id]
    assert {result.dataset_name for result in published.data.eval_results} == {known.name}
    assert published.data.language == "en"
    assert published.data.license is None
    assert f"Published by others on {known.measured_as}, **not measured by us**:" in flat(published)
    for method, encoders, *numbers, source in known.published:
        cells = [method, encoders, *(f"{number:.1f}" for number in numbers), source]
        assert f"| {' | '.join(cells)} |" in published.text
    values = {result.metric_value for result in published.data.eval_results}
    assert values == {*METRICS["test"].values(), *METRICS["validation"].values()}  # theirs are not among ours
    smaller = told(train - 1, test)  # another data set of that name
    assert smaller.data.datasets is None
    assert "Published by others" not in smaller.text


def test_figures_of_all_test_images_are_not_put_beside_those_of_some():
    published = ModelCard(model_card({**metrics(data="coco_precomp"), **of_size(113_287, 1_000)}))
    assert published.data.datasets == [COCO.hub_id]
    assert "Published by others" not in published.text


def test_a_data_set_of_the_hub():
    published = card(data="hub:user/pictures")
    assert published.data.datasets == ["user/pictures"]
    assert published.data.license is None


def test_backbones_on_this_machine_are_named_as_that(tmp_path):
    published = card(vision_model="facebook/dinov2-base", text_model="data/emoji/minilm", vision_config=None)
    assert published.data.base_model == ["facebook/dinov2-base"]  # three names are no id
    assert "[facebook/dinov2-base](https://huggingface.co/facebook/dinov2-base), under the licence" in flat(published)
    assert "Pretrained: `minilm`, a folder on the machine of the training." in flat(published)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_without_results_says_so(file):
    recipe = asdict(Recipe(**read_recipe_file(file)))
    text = recipe_card(recipe, file.stem)
    published = check_card(text, set())
    assert published.data.eval_results is None
    assert published.data.pipeline_tag is None
    assert "**Not trained yet by us.**" in text
    assert f"examples/configs/{file.stem}.yaml" in text
    assert "```python" not in text  # there is nothing to load
    known = {"flickr30k": FLICKR30K, "coco": COCO}.get(file.stem.split("_")[0])
    theirs = {f"{number:.1f}" for *_, a, b, c, _ in known.published for number in (a, b, c)} if known else set()
    assert set(re.findall(r"\b\d{2,3}\.\d\b", published.text)) == theirs
    assert ("not measured by us" in text) == bool(theirs)
    assert published.data.base_model == (
        [recipe[side] for side in ("clip_model", "vision_model", "text_model") if recipe[side]] or None
        if known
        else None
    )
    assert published.data.license == (None if file.stem != "scenes" else "apache-2.0")


def test_a_card_that_is_fit_for_the_hub():
    text = model_card(metrics(), "user/model", pictures=PICTURES)
    assert check_card(text, {"sample.png", "alignment.png"}).data.license == "apache-2.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.split("---\n")[-1], "it has no metadata; expected YAML between two lines of ---"),
        (lambda text: text.replace("library_name: transformers", "library_name: timm"), "library_name is 'timm'"),
        (lambda text: text.replace("license: apache-2.0", "license: All mine"), "license is 'All mine'; expected an"),
        (lambda text: text.replace("  candidate_labels", "  labels"), "widget 0 has no candidate_labels"),
        (
            lambda text: text.replace("src: sample.png", "src: gone.png"),
            "widget 0 has src 'gone.png', which is not among",
        ),
        (
            lambda text: text.replace("(alignment.png)", "(gone.png)"),
            "it shows 'gone.png', which is not among the files",
        ),
        (
            lambda text: re.sub("widget:\n(- .*\n|  .*\n)+", "widget:\n- a star\n", text),
            "widget 0 is 'a star'; expected src",
        ),
        (lambda text: text.replace("language: en", "language: [en"), "The card's metadata cannot be read: "),
        (lambda text: text.replace("- name: model\n", "- nom: model\n"), "The card's metadata cannot be read: "),
    ],
)
def test_a_card_that_is_not(change, message):
    text = model_card(metrics(), "user/model", pictures=PICTURES)
    assert change(text) != text
    with pytest.raises(ValueError, match=re.escape(message)):
        check_card(change(text), {"sample.png", "alignment.png"})


@pytest.mark.parametrize("name", [file.stem for file in RECIPES if file.stem.startswith(("flickr30k_", "coco_"))])
def test_the_card_of_an_untrained_recipe_is_up_to_date(name):
    fresh = recipe_card(asdict(Recipe(**read_recipe_file(CONFIGS / f"{name}.yaml"))), name)
    kept = (CONFIGS.parents[1] / "model_cards" / f"{name}.md").read_text(encoding="utf-8")
    assert kept == fresh, f"write what recipe_card gives for {name}.yaml to model_cards/{name}.md"


ALIASES = "a: &a [x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (ALIASES, "it has an anchor or alias"),
        ("license: mit\nlicense: gpl", "it has the name license twice"),
        ("license: 'mit", "it is no YAML"),
        ("license: \0", "it is no YAML"),
        ("- a", "repo card metadata block should be a dict"),
        ("model-index: 3", ""),
        ("model-index: [{name: a, results: [{}]}]", ""),
    ],
)
def test_metadata_that_are_none(head, message):
    text, began = f"---\n{head}\n---\nText\n", time.process_time()
    for use in (
        lambda: check_card(text, set()),
        lambda: with_results(text, "a", eval_results({"rsum": 1.0}, "a", "A")),
    ):
        with pytest.raises(ValueError, match=f"^The card's metadata cannot be read: {message}") as caught:
            use()
        assert str(caught.value).isprintable()
    assert time.process_time() - began < 1
