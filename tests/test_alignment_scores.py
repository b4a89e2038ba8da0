import itertools
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import miniatures
import numpy as np
import ot
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny import lay_evenly, tiny_config, tiny_recipe

from omit_hf import OmitModel, OmitProcessor
from omit_hf.alignment import alignment_table, evaluate_alignment
from omit_hf.alignment.cells import grid_cells
from omit_hf.alignment.scores import (
    dustbin_scores,
    dustbin_share,
    mass_inside,
    pair_scores,
    phrase_scores,
    phrase_words,
    pointing_game,
    ranking_auc,
)
from omit_hf.alignment.split import AlignedPair
from omit_hf.data.phrases import Phrase
from omit_hf.data.sources.scenes import FEATURES
from omit_hf.modeling.matching_omit import MATCHING, Match
from omit_hf.training import Recipe, write_recipe_file

SCRIPT = Path(__file__).parents[1] / "examples" / "evaluate_alignment.py"
CELLS = grid_cells(np.array([0, 0, 8, 8]), rows=2, columns=2)  # of 4 x 4 pixels
few_levels = arrays.arrays(float, 6, elements=st.integers(0, 3).map(float))
inside = arrays.arrays(bool, 6)


# --- of one phrase ----------------------------------------------------------------------------------------------------


@given(few_levels, inside)
def test_the_pointing_game_asks_every_cell_that_has_the_most(mass, inside):
    best = [k for k in range(6) if all(mass[k] >= other for other in mass)]
    assert pointing_game(mass, inside) == all(inside[k] for k in best)


@given(few_levels, inside)
def test_the_auc_counts_pairs(mass, inside):
    wins, pairs = 0.0, 0
    for a in range(6):
        for b in range(6):
            if inside[a] and not inside[b]:
                pairs += 1
                wins += 1.0 if mass[a] > mass[b] else 0.5 if mass[a] == mass[b] else 0.0
    if pairs == 0:
        assert np.isnan(ranking_auc(mass, inside))
    else:
        assert ranking_auc(mass, inside) == pytest.approx(wins / pairs)


@given(few_levels, arrays.arrays(float, 6, elements=st.floats(0, 1)))
def test_mass_counts_by_the_share_of_its_cell(mass, share):
    total = sum(mass)
    expected = sum(m * s for m, s in zip(mass, share, strict=True)) / total if total else 0
    assert mass_inside(mass, share) == pytest.approx(expected)


def test_a_plan_made_by_hand():
    """The box has the left upper cell, and half of the one to its right without the centre."""
    scores = phrase_scores(np.array([0.3, 0.2, 0.0, 0.5]), CELLS, np.array([[0, 0, 6, 4]]))
    assert scores["pointing"] == 0  # the last cell has the most
    assert scores["mass_inside"] == pytest.approx(0.3 + 0.2 / 2)
    assert scores["auc"] == pytest.approx(2 / 3)
    assert [scores[f"{name}_chance"] for name in ("pointing", "mass_inside", "auc")] == [0.25, 1.5 / 4, 0.5]
    assert [scores[f"{name}_oracle"] for name in ("pointing", "mass_inside", "auc")] == [1, 1, 1]


def test_any_of_several_boxes_will_do():
    boxes = np.array([[0, 0, 4, 4], [4, 4, 8, 8]])
    scores = phrase_scores(np.array([0.1, 0.2, 0.0, 0.7]), CELLS, boxes)
    assert scores["pointing"] == 1
    assert scores["mass_inside"] == pytest.approx(0.8)


def test_the_least_mass_is_mass():
    assert mass_inside(np.array([5e-324, 0.0]), np.array([0.5625, 0.0])) == 0.5625


def test_a_phrase_without_mass_is_a_miss():
    scores = phrase_scores(np.zeros(4), CELLS, np.array([[0, 0, 4, 4]]))
    assert (scores["pointing"], scores["mass_inside"], scores["auc"]) == (0, 0, 0.5)


@given(
    arrays.arrays(float, 4, elements=st.floats(0.01, 1), unique=True),
    st.lists(st.integers(0, 8), min_size=4, max_size=4).filter(lambda box: box[0] < box[2] and box[1] < box[3]),
)
def test_chance_is_the_mean_over_all_ways_to_deal_out_the_mass(mass, box):
    box = np.array([box], dtype=float)
    dealt = [phrase_scores(np.array(each), CELLS, box) for each in itertools.permutations(mass)]
    for name in ("pointing", "mass_inside", "auc"):
        mean = np.mean([scores[name] for scores in dealt])
        np.testing.assert_allclose(mean, dealt[0][f"{name}_chance"], atol=1e-12)


@given(
    arrays.arrays(float, 4, elements=st.floats(0, 1)),
    st.lists(st.integers(0, 8), min_size=4, max_size=4).filter(lambda box: box[0] < box[2] and box[1] < box[3]),
)
def test_the_oracle_is_reached_and_never_passed(mass, box):
    box = np.array([box], dtype=float)
    some = phrase_scores(mass, CELLS, box)
    corners = [phrase_scores(one, CELLS, box) for one in np.eye(4)]
    for name in ("pointing", "mass_inside", "auc"):
        best = max(scores[name] for scores in corners)
        if name != "auc" or not np.isnan(best):
            assert some[name] <= some[f"{name}_oracle"] + 1e-12
        if name != "auc":
            assert best == some[f"{name}_oracle"]
    centres = np.array([box[0, 0] < x < box[0, 2] and box[0, 1] < y < box[0, 3] for y in (2, 6) for x in (2, 6)])
    np.testing.assert_array_equal(phrase_scores(centres * 1.0, CELLS, box)["auc"], some["auc_oracle"])


@pytest.mark.parametrize(
    ("mass", "cells", "boxes", "message"),
    [
        (np.ones(3), CELLS, [[0, 0, 1, 1]], r"mass has shape \(3,\) and cells \(4, 4\); expected \[K\] and \[K, 4\]"),
        (np.ones(4), CELLS, np.empty((0, 4)), r"boxes has shape \(0, 4\); expected \[N, 4\], at least one"),
        (np.array([0, 1, np.nan, 1]), CELLS, [[0, 0, 1, 1]], r"mass holds nan at \[2\]; expected at least 0"),
        (np.array([0, 1, -1, 1]), CELLS, [[0, 0, 1, 1]], r"mass holds -1.0 at \[2\]; expected at least 0"),
    ],
)
def test_what_is_no_alignment(mass, cells, boxes, message):
    with pytest.raises(ValueError, match=message):
        phrase_scores(mass, cells, np.array(boxes))


@pytest.mark.parametrize("kind", ["words", "bert", "roberta", "clip_text_model", "siglip_text_model"])
def test_the_words_of_a_phrase(kind, processor):
    """The characters of the chosen tokens are those of the phrase, whatever the tokenizer makes of `ﬁ`."""
    tokenizer = processor.tokenizer if kind == "words" else miniatures.text_tokenizer(kind)
    caption = "a ﬁn, Red"
    inputs = OmitProcessor(None, tokenizer)(text=[caption, "a"], return_offsets_mapping=True)
    offsets = inputs["offset_mapping"][0].numpy()
    for start, end in ((0, 1), (2, 4), (6, 9), (2, 9), (0, len(caption))):
        words = phrase_words(caption, offsets, start, end)
        found = {place for first, last in offsets[words] for place in range(first, last) if caption[place] != " "}
        wanted = {place for place in range(start, end) if caption[place] != " "}
        missing = set() if kind != "words" else {place for place in wanted if caption[place] in ",."}
        assert found == wanted - missing
        special = np.isin(inputs["input_ids"][0], tokenizer.all_special_ids) & (offsets == 0).all(axis=1)
        assert not (words & special).any()


# --- of the dustbins --------------------------------------------------------------------------------------------------


@given(
    arrays.arrays(float, (4, 5), elements=st.floats(0.01, 1)),
    arrays.arrays(bool, 4).filter(np.any),
)
def test_dustbin_bounds_are_those_of_all_plans_with_these_marginals(plan, words):
    share, chance, least, most = dustbin_share(plan, words)
    rows, columns = plan.sum(axis=1), plan.sum(axis=0)
    chosen = [l + 1 for l in range(4) if words[l]]
    mass = sum(columns[l] for l in chosen)
    assert share == pytest.approx(sum(plan[0, l] for l in chosen) / mass)
    product = np.outer(rows, columns) / plan.sum()
    assert chance == pytest.approx(sum(product[0, l] for l in chosen) / mass)
    gain = np.zeros_like(plan)
    gain[0, chosen] = 1
    for bound, sign in ((most, -1), (least, 1)):  # by linear programming
        best = ot.emd(rows / plan.sum(), columns / plan.sum(), sign * gain) * plan.sum()
        assert bound == pytest.approx(best[0, chosen].sum() / mass, abs=1e-9)


def test_dustbins_by_hand():
    """Two cells, of which the first is an object's; two words, of which the second is of no phrase."""
    plan = np.array([[0.0, 0.0, 0.3], [0.1, 0.3, 0.0], [0.2, 0.0, 0.1]])
    cells, box = np.array([[0, 0, 4, 4], [4, 0, 8, 4]]), np.array([[1, 1, 3, 3]])
    scores = dustbin_scores(plan, np.array([False, True]), np.array([True, False]), cells, box, np.empty((0, 4)))
    expected = {"unnamed_words": 0.75, "named_words": 0, "background_cells": 2 / 3, "object_cells": 0.25}
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value)
        assert scores[f"{name}_chance"] == pytest.approx(0.3)
    assert scores["unnamed_words_oracle"] == pytest.approx(0.75)  # all that the dustbin has
    assert scores["background_cells_oracle"] == pytest.approx(1)
    assert scores["object_cells_oracle"] == scores["named_words_oracle"] == 0
    assert np.isnan(scores["named_cells"])  # the caption names nothing


def pair(**changes) -> AlignedPair:
    fields = {
        "caption": "a dog and it",
        "phrases": [Phrase(0, 5, np.array([[0.0, 0.0, 4.0, 4.0]])), Phrase(10, 12, np.empty((0, 4)))],
        "boxes": np.array([[0.0, 0.0, 4.0, 4.0]]),
        "cells": CELLS,
        "offsets": np.array([[0, 1], [2, 5], [6, 9], [10, 12]]),
        "alignment": np.array([[0.0, 0.3, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0], [0.1, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 0.1]]),
        "plan": None,
    }
    return AlignedPair(**{**fields, **changes})


def test_the_mass_of_a_phrase_is_that_of_its_words():
    scores, skipped = pair_scores(pair())
    assert len(scores) == 1
    assert skipped == 0
    assert scores[0]["pointing"] == 1
    assert scores[0]["mass_inside"] == pytest.approx(0.3 / 0.5)


def test_words_of_a_phrase_without_a_box_are_in_neither_group():
    plan = np.zeros((5, 5))
    plan[1:, 1:] = pair().alignment
    plan[0] = [0, 0.1, 0.2, 0.4, 0.8]
    _, dustbins = pair_scores(pair(plan=plan))[0]
    assert dustbins["named_words"] == pytest.approx(0.3 / 0.8)
    assert dustbins["unnamed_words"] == pytest.approx(0.4 / 0.5)  # "and" alone, not "it"


def test_a_phrase_that_the_tokenizer_cut_off():
    scores, skipped = pair_scores(pair(offsets=np.array([[6, 9], [10, 12]]), alignment=pair().alignment[:, 2:]))
    assert (scores, skipped) == ([], 1)


# --- of a model on a split --------------------------------------------------------------------------------------------


def by_loops(model, processor, split):
    """Scores of every phrase by plain loops, a forward pass a pair; for Scenes, and cells of 16 pixels."""
    found = {"pointing": [], "mass_inside": [], "auc": []}
    for row in split:
        for number, caption in enumerate(row["captions"]):
            out = model(**processor(images=row["image"], text=caption), output_transport=True)
            plan = out.alignment[0, 0].double().numpy()
            spans, at = [], 0
            for word in caption.replace(",", " ").split():
                at = caption.index(word, at)
                spans.append((at, at + len(word)))
                at += len(word)
            assert len(spans) == plan.shape[1]
            for phrase in row["phrases"]:
                if phrase["caption"] != number:
                    continue
                mass = [0.0] * 36
                for word, (start, end) in enumerate(spans):
                    if phrase["start"] <= start and end <= phrase["end"]:
                        mass = [mass[k] + plan[k, word] for k in range(36)]
                x0, y0, x1, y1 = row["boxes"][phrase["object"]]
                within, share = [], []
                for k in range(36):
                    left, top = 16 * (k % 6), 16 * (k // 6)
                    within.append(x0 < left + 8 < x1 and y0 < top + 8 < y1)
                    wide, high = min(x1, left + 16) - max(x0, left), min(y1, top + 16) - max(y0, top)
                    share.append(max(wide, 0) * max(high, 0) / 256)
                found["pointing"].append(all(within[k] for k in range(36) if mass[k] == max(mass)))
                found["mass_inside"].append(sum(m * s for m, s in zip(mass, share, strict=True)) / sum(mass))
                pairs = [(mass[a], mass[b]) for a in range(36) for b in range(36) if within[a] and not within[b]]
                if pairs:
                    found["auc"].append(np.mean([(a > b) + (a == b) / 2 for a, b in pairs]))
    return {name: 100 * np.mean(values) for name, values in found.items()}


@torch.no_grad()
@pytest.mark.parametrize("matching", [name for name, head in MATCHING.items() if head.aligns])
def test_the_scores_of_a_model_are_those_of_plain_loops(scenes, scenes_model, processor, matching):
    torch.manual_seed(0)
    model = OmitModel(tiny_config(matching=matching, text_config=scenes_model.config.text_config.to_dict())).eval()
    lay_evenly(model, 96, 96)
    split = scenes["test"].select(range(4))
    metrics = evaluate_alignment(model, processor, split, batch_size=3, progress=False)
    for name, value in by_loops(model, processor, split).items():
        assert metrics[name] == pytest.approx(value, abs=1e-4)
        assert metrics[f"{name}_chance"] <= metrics[f"{name}_oracle"]
    assert metrics["phrases"] == sum(map(len, split["phrases"]))
    assert ("unnamed_words" in metrics) == (matching == "omit")
    assert json.loads(json.dumps(metrics)) == metrics


def test_batches_do_not_change_the_scores(scenes, scenes_model, processor):
    one = evaluate_alignment(scenes_model, processor, scenes["test"], batch_size=1, progress=False)
    all_at_once = evaluate_alignment(scenes_model, processor, scenes["test"], batch_size=50, progress=False)
    assert one == pytest.approx(all_at_once, abs=1e-3)


def test_an_alignment_that_knows_the_boxes_reaches_the_oracle(scenes, scenes_model, processor, monkeypatch):
    """Each word of a phrase has all of its mass on the cell of 16 pixels that lies in the box the most."""
    rows = iter(scenes["test"])

    def knows(image, text):
        row = next(rows)
        out = torch.zeros(1, len(row["captions"]), 36, text.embeds.shape[1])
        offsets = processor(text=row["captions"], return_offsets_mapping=True)["offset_mapping"]
        for phrase in row["phrases"]:
            x0, y0, x1, y1 = row["boxes"][phrase["object"]]
            areas = [
                max(0, min(x1, x + 16) - max(x0, x)) * max(0, min(y1, y + 16) - max(y0, y))
                for y in range(0, 96, 16)
                for x in range(0, 96, 16)
            ]
            for word, (start, end) in enumerate(offsets[phrase["caption"]].tolist()):
                if phrase["start"] <= start < end <= phrase["end"]:
                    out[0, phrase["caption"], areas.index(max(areas)), word] = 1
        return Match(None, out)

    model = OmitModel(tiny_config(matching="ot", text_config=scenes_model.config.text_config.to_dict())).eval()
    lay_evenly(model, 96, 96)
    monkeypatch.setattr(model.matching, "match", knows)
    metrics = evaluate_alignment(model, processor, scenes["test"], progress=False)
    assert metrics["mass_inside"] == pytest.approx(metrics["mass_inside_oracle"])
    assert metrics["pointing"] == pytest.approx(metrics["pointing_oracle"])
    assert metrics["auc"] > 80


def test_the_table(scenes, scenes_model, processor):
    metrics = evaluate_alignment(scenes_model, processor, scenes["test"], progress=False)
    lines = alignment_table({**metrics, "pointing": 12.34, "skipped_phrases": 2}).splitlines()
    assert lines[0] == "| score (%) | model | chance | oracle |"
    assert lines[2].startswith("| pointing game | 12.3 | ")
    assert len(lines) == 2 + 8 + 2
    assert lines[-1].startswith(f"{metrics['phrases']} phrases, {metrics['auc_phrases']} of them with cells both")
    assert lines[-1].endswith("; 2 more of which the tokenizer leaves nothing.")


def test_the_model_comes_back_in_its_mode(scenes, scenes_model, processor):
    scenes_model.train()
    evaluate_alignment(scenes_model, processor, scenes["validation"], progress=False)
    assert scenes_model.training
    with torch.no_grad():
        scenes_model.vision_encoder.projection.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"alignment of scenes-0-validation-00000 and caption 0 holds nan at \[0, 0\]"):
        evaluate_alignment(scenes_model, processor, scenes["validation"], progress=False)
    assert scenes_model.training


@pytest.mark.parametrize("matching", ["mean", "gpo", "pem"])
def test_a_head_that_does_not_align(scenes, scenes_model, processor, matching):
    model = OmitModel(tiny_config(matching=matching, text_config=scenes_model.config.text_config.to_dict()))
    with pytest.raises(ValueError, match=f"matching is '{matching}', which pools each side into one vector"):
        evaluate_alignment(model, processor, scenes["test"], progress=False)


def test_a_slow_tokenizer(scenes, scenes_model, processor):
    class Slow:
        is_fast = False

    slow = OmitProcessor(processor.image_processor, processor.tokenizer)
    slow.tokenizer = Slow()
    with pytest.raises(ValueError, match="tokenizer is a Slow, a slow one, which does not tell the characters"):
        evaluate_alignment(scenes_model, slow, scenes["test"], progress=False)


def test_sizes_below_one(scenes, scenes_model, processor):
    with pytest.raises(ValueError, match="batch_size is 0; expected at least 1"):
        evaluate_alignment(scenes_model, processor, scenes["test"], batch_size=0, progress=False)


def test_no_phrase_with_a_box(scenes, scenes_model, processor):
    rows = [{**row, "phrases": []} for row in scenes["validation"]]
    with pytest.raises(ValueError, match="No phrase of the split names a box"):
        evaluate_alignment(scenes_model, processor, Dataset.from_list(rows, features=FEATURES), progress=False)


# --- the script -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    text = {"model_type": "omit_bigru", "embedding_size": 8, "hidden_size": 16, "vocab_size": len(processor.tokenizer)}
    OmitModel(tiny_config(text_config=text)).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_recipe_file(Recipe(**tiny_recipe()), folder / "recipe.yaml")
    return folder


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs the script in this process, which spares importing everything for each test."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate_alignment.py", *map(str, arguments)])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().out

    return run


def test_the_script_on_scenes(published, script, tmp_path):
    code, out = script(published, "--json", tmp_path / "scores.json", "--markdown", tmp_path / "scores.md")
    assert code == 0
    metrics = json.loads((tmp_path / "scores.json").read_text())
    assert out.strip() == alignment_table(metrics) == (tmp_path / "scores.md").read_text().strip()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["scores.json", "scores.md"]
    code, _ = script(published, "--json", tmp_path / "nowhere" / "scores.json")
    assert code == f"error: There is no folder {tmp_path / 'nowhere'} for scores.json; make it first."
    code, _ = script(published, "--split", "testing")
    assert code == "error: split is 'testing'; expected one of train, validation, test."


def test_one_process_of_several_does_it(published, script, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "omit_hf.command_line.evaluate_alignment.PartialState", lambda: SimpleNamespace(is_main_process=False)
    )
    assert script(published, "--json", tmp_path / "scores.json") == (0, "")
    assert not list(tmp_path.iterdir())


def test_the_script_on_flickr30k_entities(published, script, tmp_path):
    data, images = miniatures.karpathy(tmp_path / "flickr")
    miniatures.entities(tmp_path / "entities")
    options = ["--data", data, "--data_options", json.dumps({"image_folder": str(images)})]
    code, out = script(published, *options, "--entities", tmp_path / "entities")
    assert code == 0
    assert out.startswith("Flickr30K Entities: 4 images, 20 captions, ")
    assert "| pointing game | " in out
    code, _ = script(published, *options, "--entities", tmp_path / "nowhere")
    assert code.startswith("error: No Sentences in")
    code, _ = script(published, *options)
    assert code.startswith("error: The split has no column width, height, boxes, phrases; expected")
