import pytest
import torch
from tiny import TEXT, tiny_config
from torch import nn

from omit_hf import OmitModel
from omit_hf.modeling.encoders_omit import backbone_width, text_settings

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
    projection = model.vision_encoder.projection
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)
    prefix = states.shape[1] - cells
    expected = states[:, 0] if has_cls else states.mean(1)
    assert (prefix > 0) == has_cls
    torch.testing.assert_close(out.pooled, nn.functional.normalize(projection(expected), dim=-1))
    torch.testing.assert_close(out.embeds, nn.functional.normalize(projection(states[:, prefix:]), dim=-1))
    assert model.vision_encoder.projection.in_features == backbone_width(model.vision_encoder.backbone)


def test_an_earlier_stage_by_autobackbone():
    options, _, _ = VISION["resnet"]
    config = {"model_type": "resnet", **options, "out_features": ["stage1"]}
    model = OmitModel(tiny_config(vision_config=config))
    assert type(model.vision_encoder.backbone).__name__ == "ResNetBackbone"
    out = model.get_image_features(torch.rand(2, 3, 64, 96))
    assert out.embeds.shape == (2, 16 * 24, 16)


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
    def test_captions_without_a_word(self, model, length):
        ids = torch.zeros(2, length, dtype=torch.long)
        out = model.get_text_features(ids, torch.zeros_like(ids))
        assert out.embeds.shape == (2, length, 16)
        assert not out.mask.any()
        assert (out.pooled == 0).all()

    def test_no_captions(self, model, inputs):
        """As there may be no images."""
        ids = torch.zeros(0, 3, dtype=torch.long)
        out = model.get_text_features(ids, torch.zeros_like(ids), output_hidden_states=True)
        assert out.embeds.shape == (0, 3, 16)
        assert len(out.hidden_states) == 2
        assert model(**{**inputs, "input_ids": ids, "attention_mask": None}).similarity.shape == (3, 0)
        assert model(**{**inputs, "pixel_values": inputs["pixel_values"][:0]}).similarity.shape == (0, 2)

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
    with pytest.raises(ValueError, match="AutoModel has no model for .*siglip_text_model"):
        OmitModel(tiny_config(text_config={"model_type": "siglip_text_model"}))


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
