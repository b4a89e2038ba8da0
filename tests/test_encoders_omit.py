import contextlib
import copy
from types import SimpleNamespace

import miniatures
import pytest
import torch
from tiny import REGIONS, TEXT, tiny_config
from torch import nn

from omit_hf import OmitModel, OmitProcessor
from omit_hf.modeling.backbones_omit import backbone_width, cell_grid, fit_tokenizer, most_tokens, text_settings
from omit_hf.modeling.encoders_omit import keep_regions

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
# What each vision backbone makes of 64 x 96 pixels (CLIP and SigLIP: 64 x 64): cells, and whether it has a CLS state.
VISION = {
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}, 8 * 12, False),
    "convnext": ({"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}, 8 * 12, False),
    "efficientnet": ({"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128}, 2 * 3, False),
    "vit": ({**SMALL, "image_size": [64, 96], "patch_size": 16}, 4 * 6, True),
    "dinov2": ({**SMALL, "image_size": 64, "patch_size": 16}, 4 * 6, True),
    "dinov2_with_registers": ({**SMALL, "image_size": 64, "patch_size": 16, "num_register_tokens": 4}, 4 * 6, True),
    "clip_vision_model": ({**SMALL, "image_size": 64, "patch_size": 16}, 4 * 4, True),
    "siglip_vision_model": ({**SMALL, "image_size": 64, "patch_size": 16}, 4 * 4, False),
    "mobilevit": (
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 40],
            "num_attention_heads": 2,
        },
        2 * 3,
        False,
    ),
    "swin": (
        {"image_size": [64, 96], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        8 * 12,
        False,
    ),
}
TEXT_ENCODERS = {
    "bert": SMALL,
    "roberta": {**SMALL, "pad_token_id": 1},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "clip_text_model": {**SMALL, "eos_token_id": 3},
    "mpnet": {**SMALL, "pad_token_id": 1},
}


@pytest.mark.parametrize("kind", VISION)
def test_cells_of_every_vision_backbone(kind):
    """The right number of cells, none of them CLS or a register, and the right global feature."""
    options, cells, has_cls = VISION[kind]
    pixels = torch.rand(2, 3, 64, 64 if "clip" in kind or "siglip" in kind else 96)
    model = OmitModel(tiny_config(vision_config={"model_type": kind, **options})).eval()
    if kind == "efficientnet":  # untrained, its narrow layers let nothing through
        nn.init.uniform_(model.vision_encoder.backbone.encoder.top_bn.bias, -1, 1)
    elif kind == "mobilevit":
        nn.init.uniform_(model.vision_encoder.backbone.conv_1x1_exp.normalization.bias, -1, 1)
    out = model.get_image_features(pixels)
    assert out.embeds.shape == (2, cells, 16)
    assert out.mask.all()
    torch.testing.assert_close(out.embeds.norm(dim=-1), torch.ones(2, cells))
    states = out.last_hidden_state
    if kind == "clip_vision_model":
        states = model.vision_encoder.backbone.post_layernorm(states)  # as CLIP does with the CLS state
    projection = model.vision_encoder.projection
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)
    prefix = states.shape[1] - cells
    expected = states[:, 0] if has_cls else states.mean(1)
    assert (prefix > 0) == has_cls
    torch.testing.assert_close(out.pooled, nn.functional.normalize(projection(expected), dim=-1))
    torch.testing.assert_close(out.embeds, nn.functional.normalize(projection(states[:, prefix:]), dim=-1))
    assert model.vision_encoder.projection.in_features == backbone_width(model.vision_encoder.backbone)


OTHER_SIZES = {  # cells of 80 x 48 pixels
    "resnet": 10 * 6,
    "convnext": 10 * 6,
    "vit": 5 * 3,
    "dinov2": 5 * 3,
    "dinov2_with_registers": 5 * 3,
    "clip_vision_model": 5 * 3,
    "siglip_vision_model": 5 * 3,
    "swin": 10 * 6,
}


@pytest.mark.parametrize("kind", OTHER_SIZES)
def test_any_resolution(kind):
    """Pictures that are not square and not of the backbone's own size: its positions are interpolated."""
    options = {**VISION[kind][0], **({"image_size": 64} if "image_size" in VISION[kind][0] else {})}
    model = OmitModel(tiny_config(vision_config={"model_type": kind, **options})).eval()
    pixels = torch.rand(2, 3, 80, 48)
    encoder = model.vision_encoder
    fragments, mask, _, _ = encoder(pixels)
    assert fragments.shape == (2, OTHER_SIZES[kind], 16)
    assert mask.all()
    told = kind in ("vit", "clip_vision_model", "siglip_vision_model", "swin")  # the others do so by themselves
    interpolated = {"interpolate_pos_encoding": True} if told else {}
    states = encoder.backbone(pixels, **interpolated).last_hidden_state
    states = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states[:, -OTHER_SIZES[kind] :]
    if kind == "clip_vision_model":
        states = encoder.backbone.post_layernorm(states)
    torch.testing.assert_close(fragments, encoder.projection(states))


def test_the_pooling_head_of_siglip():
    """The global feature is the head's; a fragment is what the head gives for its patch alone."""
    config = {"model_type": "siglip_vision_model", **VISION["siglip_vision_model"][0]}
    encoder = OmitModel(tiny_config(vision_config=config, vision_pooling_head=True)).eval().vision_encoder
    fragments, _, pooled, output = encoder(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(pooled, encoder.projection(output.pooler_output))
    for patch in (0, 7):
        alone = encoder.backbone.head(output.last_hidden_state[:, patch : patch + 1])
        torch.testing.assert_close(fragments[:, patch], encoder.projection(alone))


def test_a_pooling_head_that_is_not_there():
    with pytest.raises(ValueError, match="vision_pooling_head is on, but 'resnet' has no attention pooling head"):
        OmitModel(tiny_config(vision_config={"model_type": "resnet"}, vision_pooling_head=True))


def test_an_earlier_stage_by_autobackbone():
    options, _, _ = VISION["resnet"]
    config = {"model_type": "resnet", **options, "out_features": ["stage1"]}
    model = OmitModel(tiny_config(vision_config=config))
    assert type(model.vision_encoder.backbone).__name__ == "ResNetBackbone"
    out = model.get_image_features(torch.rand(2, 3, 64, 96))
    assert out.embeds.shape == (2, 16 * 24, 16)


STRIPS = {  # rows and columns of the cells of 95 x 31, 8 x 130 and 8 x 16 pixels
    "resnet": [(12, 4), (1, 17), (1, 2)],
    "convnext": [(11, 3), (1, 16), (1, 2)],
    "vit": [(11, 3), (1, 16), (1, 2)],
    "dinov2_with_registers": [(11, 3), (1, 16), (1, 2)],
    "swin": [(12, 4), (1, 17), (1, 2)],
}


@pytest.mark.parametrize("kind", STRIPS)
def test_the_grid_of_strips(kind):
    smaller = {"patch_size": 8, "image_size": 64} if "patch_size" in VISION[kind][0] else {}
    if kind == "swin":
        smaller = {"window_size": 1}  # transformers' Swin fails on what is narrower than a window
    options = {**VISION[kind][0], **smaller}
    encoder = OmitModel(tiny_config(vision_config={"model_type": kind, **options})).eval().vision_encoder
    for pixels, expected in zip(((95, 31), (8, 130), (8, 16)), STRIPS[kind], strict=True):
        fragments, _, _, output = encoder(torch.rand(1, 3, *pixels))
        assert encoder.grid(pixels, output.last_hidden_state) == expected
        assert fragments.shape[1] == expected[0] * expected[1]


@pytest.mark.parametrize("side", [32, 16], ids=["of one window in the last stage", "refused"])
def test_a_small_picture_leaves_nothing_in_swin(side):
    """transformers' layers keep the window, and the lack of a shift, that fit the smallest picture so far."""
    swin = {"model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2]}
    encoder = OmitModel(tiny_config(vision_config={**swin, "window_size": 4})).eval().vision_encoder
    picture, small = torch.rand(1, 3, 64, 96), torch.rand(1, 3, side, side)
    before = encoder(picture)[0]
    with contextlib.nullcontext() if side == 32 else pytest.raises(ValueError, match="takes at least 25 x 25"):
        encoder(small)
    assert torch.equal(encoder(picture)[0], before)
    assert torch.equal(copy.deepcopy(encoder)(picture)[0], before)


@pytest.mark.parametrize("pixels", [(48, 80), (32, 128), (16, 16), (96, 96)])  # the second has as many patches
def test_a_picture_that_the_positions_do_not_fit(pixels):
    vision = {"model_type": "aimv2_vision_model", **SMALL, "image_size": 64, "patch_size": 16}
    encoder = OmitModel(tiny_config(vision_config=vision)).eval().vision_encoder
    assert encoder(torch.rand(1, 3, 64, 64))[0].shape == (1, 16, 16)
    found = f"pixel_values has pictures of {pixels[1]} x {pixels[0]} pixels; expected 64 x 64, all that 'aimv2"
    with pytest.raises(ValueError, match=f"{found}.*do_resize=True"):
        encoder(torch.rand(1, 3, *pixels))
    native = OmitModel(tiny_config(vision_config={**vision, "is_native": True})).eval().vision_encoder
    assert native(torch.rand(1, 3, *pixels))[0].shape[1] == pixels[0] * pixels[1] // 16**2


def test_the_grid_of_an_earlier_stage():
    config = {"model_type": "resnet", **VISION["resnet"][0], "out_features": ["stage1"]}
    encoder = OmitModel(tiny_config(vision_config=config)).eval().vision_encoder
    assert encoder.grid((64, 96), encoder(torch.rand(1, 3, 64, 96))[3].last_hidden_state) == (16, 24)


@pytest.mark.parametrize(
    ("pixels", "cells", "grid"), [((64, 96), 24, (4, 6)), ((200, 3), 7, (7, 1)), ((9, 9), 1, (1, 1))]
)
def test_the_grid_of_a_hierarchy_that_halves_otherwise(pixels, cells, grid):
    config = SimpleNamespace(depths=[1, 1, 1], patch_size=7)
    assert cell_grid(config, pixels, torch.zeros(1, cells, 4)) == grid


def test_fewer_states_than_patches():
    config = SimpleNamespace(model_type="vit", patch_size=16)
    with pytest.raises(ValueError, match=r"vit gave 23 tokens for an image of \(64, 96\) pixels; expected at least 24"):
        cell_grid(config, (64, 96), torch.zeros(1, 23, 4))


def test_states_replace_pixels(model, inputs):
    states, _ = model.vision_encoder.encode(inputs["pixel_values"])
    live = model.get_image_features(inputs["pixel_values"])
    cached = model.get_image_features(image_states=states)
    for name in ("embeds", "mask", "pooled", "norms"):
        assert torch.equal(cached[name], live[name])


@pytest.mark.parametrize("kind", TEXT_ENCODERS)
@pytest.mark.parametrize("pooling", ["cls", "last", "mean"])
def test_words_of_every_text_encoder(kind, pooling):
    """Neither special tokens nor padding are fragments, wherever the padding is."""
    options = {"vocab_size": 40, "max_position_embeddings": 32, **TEXT_ENCODERS[kind]}
    config = {"model_type": kind, **options}
    model = OmitModel(tiny_config(text_config=config, special_token_ids=[1, 2, 3], text_pooling=pooling)).eval()
    ids = torch.tensor([[2, 10, 11, 12, 3, 1, 1], [2, 13, 3, 1, 1, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
    out = model.get_text_features(ids, mask)
    assert out.mask.tolist() == [[False, True, True, True, False, False, False], [False, True] + [False] * 5]
    assert (out.embeds[~out.mask] == 0).all()
    fragments = model.text_encoder.projection(out.last_hidden_state)
    expected = {
        "cls": fragments[:, 0],
        "last": fragments[torch.arange(2), torch.tensor([4, 2])],
        "mean": torch.stack([fragments[0, 1:4].mean(0), fragments[1, 1]]),
    }[pooling]
    torch.testing.assert_close(out.pooled, nn.functional.normalize(expected, dim=-1))
    alone = model.get_text_features(ids[1:, :3], mask[1:, :3])
    torch.testing.assert_close(alone.embeds, out.embeds[1:, :3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.pooled, out.pooled[1:], rtol=1e-4, atol=1e-5)


def test_pooling_with_padding_on_the_left():
    config = {"model_type": "bert", **SMALL, "vocab_size": 40}
    ids, mask = torch.tensor([[1, 1, 2, 10, 3]]), torch.tensor([[0, 0, 1, 1, 1]])
    for pooling, place in (("cls", 2), ("last", 4)):
        model = OmitModel(tiny_config(text_config=config, text_pooling=pooling)).eval()
        fragments, _, pooled, _ = model.text_encoder(ids, mask)
        torch.testing.assert_close(pooled, fragments[:, place])


class TestRegions:
    @pytest.fixture
    def regions(self):
        torch.manual_seed(2)
        return torch.randn(3, 6, 10)

    @pytest.fixture
    def region_model(self):
        torch.manual_seed(0)
        return OmitModel(tiny_config(vision_config=REGIONS)).eval()

    def test_fc_plus_mlp_with_batch_norm(self, region_model, regions):
        encoder = region_model.vision_encoder
        first, norm, _, _, second = encoder.mlp
        nn.init.uniform_(norm.running_mean, -1, 1)
        out = region_model.get_image_features(region_features=regions)
        hidden = first(regions)
        hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        expected = encoder.projection(regions) + second(hidden.relu())
        torch.testing.assert_close(out.embeds, nn.functional.normalize(expected, dim=-1))
        torch.testing.assert_close(out.pooled, nn.functional.normalize(expected.mean(1), dim=-1))
        assert out.mask.all()

    @pytest.mark.parametrize("training", [False, True])
    def test_padding_changes_nothing(self, region_model, regions, training):
        """Neither the fragments nor the mean nor the statistics of the batch norm."""
        region_model.vision_encoder.kept_share = 1
        region_model.train(training)
        mask = torch.ones(3, 9, dtype=torch.bool)
        mask[:, [1, 4, 8]] = False
        padded = torch.full((3, 9, 10), 1e3)
        padded[mask] = regions.flatten(0, 1)
        norm = region_model.vision_encoder.mlp[1]
        outs, statistics = [], []
        for inputs in ({"region_features": regions}, {"region_features": padded, "region_mask": mask}):
            norm.reset_running_stats()
            outs.append(region_model.get_image_features(**inputs))
            statistics.append((norm.running_mean.clone(), norm.running_var.clone()))
        assert outs[1].mask.equal(mask)
        torch.testing.assert_close(outs[1].embeds[mask].view(3, 6, 16), outs[0].embeds)
        torch.testing.assert_close(outs[1].pooled, outs[0].pooled)
        torch.testing.assert_close(statistics[1], statistics[0])
        assert (outs[1].embeds[~mask] == 0).all()

    def test_training_keeps_a_share_of_them(self, region_model, regions):
        assert region_model.get_image_features(region_features=regions).embeds.shape[1] == 6
        region_model.train()
        seen = [region_model.get_image_features(region_features=regions) for _ in range(20)]
        assert {out.embeds.shape[1] for out in seen} == {4}  # int(0.8 * 6)
        chosen = {tuple(map(tuple, out.last_hidden_state[0, :, :1].tolist())) for out in seen}
        assert len(chosen) > 5

    @pytest.mark.parametrize(("share", "of", "kept"), [(0.8, 36, 28), (0.8, 5, 4), (0.5, 7, 3), (0.1, 3, 1)])
    def test_exactly_so_many_are_kept(self, share, of, kept):
        regions = torch.arange(of, dtype=torch.float).expand(50, of)[..., None]
        chosen, mask = keep_regions(regions, None, share)
        assert chosen.shape == (50, kept, 1)
        assert mask is None
        for row in chosen[..., 0].tolist():
            assert row == sorted(set(row))  # each once, in order
        assert len({tuple(row) for row in chosen[..., 0].tolist()}) > 1  # another choice for each image
        assert set(chosen.flatten().tolist()) == set(range(of))  # any may be chosen

    def test_each_image_keeps_a_share_of_its_own(self):
        lengths = torch.tensor([10, 5, 1, 0])
        mask = torch.arange(10) < lengths[:, None]
        mask[1] = mask[1].flip(0)
        regions = torch.where(mask, torch.arange(10), -1)[..., None].float()
        chosen, kept = keep_regions(regions, mask, 0.8)
        assert kept.sum(1).tolist() == [8, 4, 1, 0]
        assert (chosen[kept] >= 0).all()
        assert set(chosen[1][kept[1]].flatten().tolist()) < {5.0, 6.0, 7.0, 8.0, 9.0}

    def test_every_parameter_gets_a_gradient(self, region_model, regions, inputs):
        region_model.train()
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        loss = region_model(ids, region_features=regions[:2], attention_mask=mask, return_loss=True).loss
        loss.backward()
        without = {name for name, each in region_model.named_parameters() if each.grad is None}
        assert without == {"logit_scale"}

    def test_saves_and_loads(self, region_model, regions, inputs, tmp_path):
        region_model.vision_encoder.mlp[1].running_mean.fill_(0.3)
        region_model.save_pretrained(tmp_path)
        loaded = OmitModel.from_pretrained(tmp_path)
        ids = inputs["input_ids"]
        expected = region_model(ids, region_features=regions).similarity
        assert torch.equal(loaded(ids, region_features=regions).similarity, expected)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, r"No image given; expected region_features, .* OmitProcessor\(regions=…\) makes region_features"),
            (
                {"pixel_values": torch.rand(3, 3, 32, 32)},
                "pixel_values given; expected region_features, and",
            ),
            ({"image_states": torch.rand(3, 3, 8)}, "image_states given; expected region_features"),
            (
                {"pixel_values": torch.rand(3, 3, 32, 32), "region_features": torch.rand(3, 6, 10)},
                "pixel_values and region_features given; expected region_features",
            ),
            (
                {"region_features": torch.rand(3, 6, 11)},
                r"region_features has shape \(3, 6, 11\); expected \[B, K, 10\], as vision_config.feature_size has it",
            ),
            ({"region_features": torch.rand(6, 10)}, r"region_features has shape \(6, 10\); expected \[B, K, 10\]"),
            (
                {"region_features": torch.rand(3, 6, 10), "region_mask": torch.ones(3, 5)},
                r"region_mask has shape \(3, 5\); expected \(3, 6\)",
            ),
        ],
    )
    def test_bad_input(self, region_model, arguments, message):
        with pytest.raises(ValueError, match=message):
            region_model.get_image_features(**arguments)

    def test_regions_for_a_model_of_pixels(self, model, inputs):
        regions = torch.rand(3, 6, 10)
        with pytest.raises(ValueError, match="region_features given; expected pixel_values or image_states"):
            model(inputs["input_ids"], region_features=regions)
        with pytest.raises(ValueError, match="pixel_values and region_features given; expected pixel_values or"):
            model(**inputs, region_features=regions)
        with pytest.raises(ValueError, match="region_mask given; expected none"):
            model(**inputs, region_mask=regions[..., 0])


class TestBiGRU:
    def test_padding_does_not_reach_the_words(self, model, inputs):
        out = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        alone = model.get_text_features(inputs["input_ids"][1:, :2])
        torch.testing.assert_close(out.embeds[1:, :2], alone.embeds)
        torch.testing.assert_close(out.pooled[1:], alone.pooled)
        assert out.mask.sum(1).tolist() == [4, 2]

    def test_words_are_the_mean_of_both_directions(self, model, inputs):
        encoder = model.text_encoder
        assert isinstance(encoder.projection, nn.Identity)
        words = encoder.backbone.embeddings(inputs["input_ids"][:1])
        both, _ = encoder.backbone.gru(words)
        expected = (both[..., :16] + both[..., 16:]) / 2
        fragments, _, pooled, _ = encoder(inputs["input_ids"][:1])
        torch.testing.assert_close(fragments, expected)
        torch.testing.assert_close(pooled, expected.mean(1))

    def test_another_width_is_projected(self):
        model = OmitModel(tiny_config(text_config={**TEXT, "hidden_size": 10}))
        assert model.get_text_features(torch.tensor([[1, 2]])).embeds.shape == (1, 2, 16)

    @pytest.mark.parametrize("length", [0, 3])
    @pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
    def test_captions_without_a_word(self, model, inputs, length, pooling):
        model.text_encoder.pooling = pooling
        ids = torch.zeros(2, length, dtype=torch.long)
        out = model.get_text_features(ids, torch.zeros_like(ids))
        assert out.embeds.shape == (2, length, 16)
        assert not out.mask.any()
        assert (out.pooled == 0).all() or (length and pooling != "mean")
        assert (model.similarity(model.get_image_features(inputs["pixel_values"]), out) == 0).all()

    def test_no_captions(self, model, inputs):
        """As there may be no images."""
        ids = torch.zeros(0, 3, dtype=torch.long)
        out = model.get_text_features(ids, torch.zeros_like(ids), output_hidden_states=True)
        assert out.embeds.shape == (0, 3, 16)
        assert len(out.hidden_states) == 2
        assert model(**{**inputs, "input_ids": ids, "attention_mask": None}).similarity.shape == (3, 0)
        assert model(**{**inputs, "pixel_values": inputs["pixel_values"][:0]}).similarity.shape == (0, 2)

    def test_hidden_states_that_the_configuration_asks_for(self, model, inputs):
        model.config.text_config.output_hidden_states = True
        assert len(model.get_text_features(inputs["input_ids"]).hidden_states) == 2
        assert model.get_text_features(inputs["input_ids"], output_hidden_states=False).hidden_states is None

    def test_padding_on_the_left_is_an_error(self, model):
        with pytest.raises(ValueError, match="token after padding; a BiGRU needs padding on the right"):
            model.get_text_features(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 1]]))


def test_a_frozen_backbone_stays_in_evaluation_mode():
    options, _, _ = VISION["resnet"]
    model = OmitModel(tiny_config(vision_config={"model_type": "resnet", **options}))
    model.vision_encoder.backbone.requires_grad_(False)
    model.train()
    assert not any(module.training for module in model.vision_encoder.backbone.modules())
    assert model.vision_encoder.projection.training
    assert model.text_encoder.backbone.training
    before = {name: value.clone() for name, value in model.vision_encoder.backbone.state_dict().items()}
    model.get_image_features(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in model.vision_encoder.backbone.state_dict().items())


def test_every_parameter_of_the_default_encoders_gets_a_gradient(model, inputs):
    out = model(inputs["input_ids"], inputs["pixel_values"][:2], inputs["attention_mask"])
    out.similarity.sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    # ConvNeXt's last norm serves its pooler alone; training freezes it, see optimisation.freeze_unreached
    assert without == {
        "logit_scale",
        "vision_encoder.backbone.layernorm.weight",
        "vision_encoder.backbone.layernorm.bias",
    }


def test_a_text_encoder_that_automodel_does_not_know():
    with pytest.raises(ValueError, match="AutoModel has no model for .*siglip2_text_model"):
        OmitModel(tiny_config(text_config={"model_type": "siglip2_text_model"}))


@pytest.mark.parametrize("kind", miniatures.TEXT)
def test_words_with_the_tokenizer_of_every_text_encoder(kind):
    """What is found from each tokenizer: letters alone are fragments, however a caption is padded."""
    tokenizer = miniatures.text_tokenizer(kind)
    settings = text_settings(tokenizer)
    assert set(settings["special_token_ids"]) == set(tokenizer("")["input_ids"]) | {tokenizer.pad_token_id}
    assert settings["text_pooling"] == ("cls" if "bert" in kind else "last")
    config = {"model_type": kind, **miniatures.text_options(kind, tokenizer)}
    model = OmitModel(tiny_config(text_config=config, **settings)).eval()
    processor = OmitProcessor(tokenizer=tokenizer)
    inputs = processor(text=["abc", "fghijk"])
    assert inputs["attention_mask"].shape == inputs["input_ids"].shape
    out = model.get_text_features(**inputs)
    for ids, mask, letters in zip(inputs["input_ids"], out.mask, ("abc", "fghijk"), strict=True):
        tokens = tokenizer.convert_ids_to_tokens(ids[mask].tolist())
        assert "".join(tokens).replace("##", "").replace("</w>", "").replace("▁", "") == letters
    for number, caption in enumerate(("abc", "fghijk")):  # and in a batch of its own
        alone = model.get_text_features(**processor(text=caption))
        torch.testing.assert_close(alone.pooled[0], out.pooled[number], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.embeds[0][alone.mask[0]], out.embeds[number][out.mask[number]])


class TestSiglipText:
    """It reads its padding: without a mask, at one length."""

    @pytest.fixture
    def tokenizer(self):
        return miniatures.text_tokenizer("siglip_text_model")

    @pytest.fixture
    def siglip_model(self, tokenizer):
        config = miniatures.text_options("siglip_text_model", tokenizer)
        config = {"model_type": "siglip_text_model", **config}
        return OmitModel(tiny_config(text_config=config, **text_settings(tokenizer))).eval()

    def test_a_mask_is_not_read(self, siglip_model, tokenizer):
        inputs = tokenizer(["abc"], padding="max_length", return_attention_mask=True, return_tensors="pt")
        assert not inputs["attention_mask"].all()
        out = siglip_model.get_text_features(**inputs)
        expected = siglip_model.text_encoder.backbone(input_ids=inputs["input_ids"]).last_hidden_state
        torch.testing.assert_close(out.last_hidden_state, expected)
        projected = siglip_model.text_encoder.projection(expected[:, -1])
        torch.testing.assert_close(out.pooled, nn.functional.normalize(projected, dim=-1))

    def test_shorter_captions_are_padded(self, siglip_model, tokenizer):
        """As pipelines give them, which do not know of this model's one length."""
        padded = siglip_model.get_text_features(**tokenizer(["abc", "d"], padding="max_length", return_tensors="pt"))
        short = siglip_model.get_text_features(**tokenizer(["abc", "d"], padding=True, return_tensors="pt"))
        for name in ("embeds", "mask", "pooled"):
            assert torch.equal(short[name], padded[name])

    def test_longer_captions_are_an_error(self, siglip_model):
        with pytest.raises(ValueError, match=r"13 tokens a caption; the text encoder takes 12\. Cut them"):
            siglip_model.get_text_features(torch.full((1, 13), 5))


def test_a_vocabulary_that_does_not_fit(model):
    with pytest.raises(
        ValueError, match="input_ids holds 30; expected ids below 30, .* not the one of this checkpoint"
    ):
        model.get_text_features(torch.tensor([[2, 30]]))


def test_a_vocabulary_that_grew(model):
    model.resize_token_embeddings(35)
    assert model.get_text_features(torch.tensor([[34]])).embeds.isfinite().all()
    with pytest.raises(ValueError, match="input_ids holds 35; expected ids below 35"):
        model.get_text_features(torch.tensor([[35]]))


@pytest.mark.parametrize(
    ("part", "kind", "message"),
    [
        (
            "vision_config",
            "bert",
            "vision backbone is a 'bert' model, which reads input_ids; expected a vision",
        ),
        ("text_config", "vit", "text backbone is a 'vit' model, which reads pixel_values; expected a text encoder"),
        (
            "text_config",
            "bart",
            "text backbone is a 'bart' model, an encoder and a decoder; expected an encoder",
        ),
    ],
)
def test_a_backbone_for_another_side(part, kind, message):
    small = {**SMALL, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 40}
    with pytest.raises(ValueError, match=message):
        OmitModel(tiny_config(**{part: {"model_type": kind, **small}}))


def test_width_that_a_configuration_does_not_tell():
    backbone = nn.Identity()
    backbone.config = object()
    with pytest.raises(ValueError, match="does not tell the width"):
        backbone_width(backbone)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"cls_token_id": 101, "sep_token_id": 102, "pad_token_id": 0}, ([0, 101, 102], "cls")),
        ({"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 6}, ([5, 6], "last")),
        ({"pad_token_id": 0, "unk_token_id": 1}, ([0], "mean")),
    ],
)
def test_what_a_tokenizer_decides(tokens, expected):
    class Tokenizer:
        cls_token_id = sep_token_id = bos_token_id = eos_token_id = pad_token_id = unk_token_id = None

    tokenizer = Tokenizer()
    vars(tokenizer).update(tokens)
    assert text_settings(tokenizer) == dict(zip(("special_token_ids", "text_pooling"), expected, strict=True))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", sorted(VISION.keys() - {"swin"}))
def test_the_least_picture(kind, training):
    """Of those that pad, 1 x 1."""
    options = VISION[kind][0] | ({"image_size": 64} if kind == "vit" else {})
    least = {"convnext": 8, "efficientnet": 32, "resnet": 1, "mobilevit": 1}.get(kind, 16)
    model = OmitModel(tiny_config(vision_config={"model_type": kind, **options})).train(training)
    for width, height in ((least - 1, least - 1), (1, 1), (1, 64), (64, least - 1)):
        if min(width, height) in range(1, least):
            expected = (
                f"pictures of {width} x {height} pixels; the vision backbone, {kind!r}, takes at least {least} x "
            )
            with pytest.raises(ValueError, match=expected):
                model.get_image_features(torch.rand(2, 3, height, width))
    assert model.training == training
    if not training:  # in which a batch norm wants more than one cell
        assert model.get_image_features(torch.rand(1, 3, least, least)).embeds.shape[1] == 1


def test_other_failures_of_a_backbone_are_its_own():
    model = OmitModel(tiny_config())
    model.vision_encoder.backbone.forward = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        model.get_image_features(torch.rand(1, 3, 64, 64))


# Text encoders of 40 positions, and the tokens that they read: some begin to count after the padding's id.
POSITIONS = {
    "bert": (SMALL, 40),
    "electra": ({**SMALL, "embedding_size": 16}, 40),
    "distilbert": (TEXT_ENCODERS["distilbert"], 40),
    "clip_text_model": (SMALL, 40),
    "siglip_text_model": ({**SMALL, "pad_token_id": 1}, 40),
    "gpt2": ({"n_embd": 16, "n_layer": 1, "n_head": 2}, 40),
    "opt": ({**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16, "pad_token_id": 1}, 40),
    "roberta": ({**SMALL, "pad_token_id": 1}, 38),
    "xlm-roberta": ({**SMALL, "pad_token_id": 0}, 39),
    "camembert": ({**SMALL, "pad_token_id": 1}, 38),
    "mpnet": ({**SMALL, "pad_token_id": 1}, 38),
}


@pytest.mark.parametrize("kind", POSITIONS)
def test_the_most_tokens_that_a_text_encoder_reads(kind):
    """One more is an error that says so, and not one of torch."""
    options, limit = POSITIONS[kind]
    config = {"model_type": kind, "vocab_size": 30, "max_position_embeddings": 40, **options}
    model = OmitModel(tiny_config(text_config=config)).eval()
    backbone = model.text_encoder.backbone
    assert most_tokens(backbone) == limit
    ids = torch.full((2, limit + 1), 5)
    assert model.get_text_features(ids[:, :limit]).mask.all()
    with pytest.raises(ValueError, match=f"has {limit + 1} tokens a caption; the text encoder takes {limit}. Cut them"):
        model.get_text_features(ids)
    with pytest.raises((IndexError, RuntimeError, ValueError)):  # so that the limit is none of ours
        backbone(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_a_tokenizer_is_cut_at_the_model_and_not_above_itself(scenes_model):
    tokenizer = miniatures.text_tokenizer("bert")
    backbone = OmitModel(tiny_config(text_config={"model_type": "bert", **SMALL})).text_encoder.backbone  # 512
    for own, expected in ((int(1e30), 512), (64, 64), (513, 512)):
        tokenizer.model_max_length = own
        fit_tokenizer(backbone, tokenizer)
        assert tokenizer.model_max_length == expected
    assert most_tokens(scenes_model.text_encoder.backbone) is None  # a BiGRU reads any number
