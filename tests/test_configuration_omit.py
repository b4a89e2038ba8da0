import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny import REGIONS, TEXT, VISION, tiny_config
from transformers import AutoConfig, BertConfig, CLIPConfig, ResNetConfig

from omit_hf import OmitConfig
from omit_hf.modeling import BiGRUConfig, RegionEncoderConfig


def test_defaults_are_the_papers():
    config = OmitConfig()
    assert (config.matching, config.dustbin, config.marginals) == ("omit", "global", "uniform")
    assert (config.regularization, config.num_iterations, config.projection_dim) == (0.02, 3, 1024)
    assert isinstance(config.text_config, BiGRUConfig)
    assert config.text_config.embedding_size == 300
    assert isinstance(config.vision_config, ResNetConfig)


def test_parts_as_objects_or_dicts():
    config = OmitConfig(vision_config=ResNetConfig(depths=[1, 1, 1, 1]), text_config={"model_type": "bert"})
    assert config.vision_config.depths == [1, 1, 1, 1]
    assert isinstance(config.text_config, BertConfig)


def test_defaults_of_regions():
    regions = OmitConfig(vision_config={"model_type": "omit_region"}).vision_config
    assert isinstance(regions, RegionEncoderConfig)
    assert (regions.feature_size, regions.hidden_size, regions.kept_share) == (2048, 512, 0.8)


def test_save_and_load(tmp_path):
    config = tiny_config(matching="ot", regularization=1, special_token_ids=[0, 3], text_pooling="cls")
    config.save_pretrained(tmp_path)
    for loaded in (OmitConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, OmitConfig)
        assert loaded.to_diff_dict() == config.to_diff_dict()
        assert isinstance(loaded.text_config, BiGRUConfig)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matching": "magic"}, "matching"),
        ({"dustbin": "none"}, "dustbin"),
        ({"marginals": "even"}, "marginals"),
        ({"loss": "hinge"}, "loss"),
        ({"projection_dim": "wide"}, "projection_dim"),
        ({"projection_dim": 0}, "projection_dim is 0; expected at least 1"),
        ({"regularization": 0}, "regularization is 0; expected a number greater than 0"),
        ({"regularization": float("inf")}, "regularization is inf"),
        ({"regularization": "0.02"}, "regularization"),
        ({"score": "global"}, "score"),
        *[({"global_weight": bad}, f"global_weight is {bad}; expected a share") for bad in (-0.1, 1.5, float("nan"))],
        ({"global_weight": "0.2"}, "global_weight"),
        ({"global_weight": 0.2, "matching": "mean"}, "global_weight is 0.2; expected 0, since 'mean' has no such term"),
        ({"global_weight": 1, "matching": "maxsim"}, "global_weight is 1; expected 0, since 'maxsim' has no such term"),
        ({"num_iterations": 0}, "num_iterations is 0; expected at least 1"),
        ({"num_iterations": 2.5}, "num_iterations"),
        ({"margin": -0.1}, "margin is -0.1; expected a number not below 0"),
        ({"logit_scale_init_value": float("nan")}, "logit_scale_init_value is nan; expected a number"),
        ({"logit_scale_init_value": -float("inf")}, "logit_scale_init_value is -inf; expected a number"),
        ({"logit_scale_init_value": 4.7}, "logit_scale_init_value is 4.7; expected a number not above ln 100 = 4.6052"),
        ({"special_token_ids": ["[CLS]"]}, "special_token_ids"),
        ({"special_token_ids": [0, -1]}, r"special_token_ids is \[0, -1\]; expected ids from 0"),
        ({"text_config": CLIPConfig()}, r"whole 'clip' model; use its text_config, as in CLIPConfig\(…\).text_config"),
        ({"vision_config": {"model_type": "clip"}}, "whole 'clip' model; use its vision_config"),
        ({"text_config": {**TEXT, "pad_token_id": 30}}, "pad_token_id is 30; expected a word .* from 0 to 29, or None"),
        ({"text_config": {**TEXT, "pad_token_id": -1}}, "pad_token_id is -1; expected a word"),
        ({"text_config": {**TEXT, "vocab_size": 0}}, "vocab_size is 0; expected at least 1"),
        ({"text_config": {**TEXT, "dropout": 1.0}}, "dropout is 1.0; expected a share"),
        ({"vision_config": {**REGIONS, "feature_size": 0}}, "feature_size is 0; expected at least 1"),
        ({"vision_config": {**REGIONS, "dropout": -1}}, "dropout is -1; expected a share"),
        ({"vision_config": {**REGIONS, "kept_share": 0}}, "kept_share is 0; expected a share above 0"),
    ],
)
def test_wrong_types_and_ranges(options, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**options)


def test_the_largest_logit_scale():
    assert tiny_config(logit_scale_init_value=4.6052).logit_scale_init_value == 4.6052  # ln 100 as it is often written


def test_unknown_part():
    with pytest.raises(ValueError, match="no_such_model"):
        OmitConfig(vision_config=VISION, text_config={"model_type": "no_such_model"})


def test_configuration_of_another_model(tmp_path):
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="configuration of a 'clip' model; expected 'omit'"):
        OmitConfig.from_pretrained(tmp_path)
