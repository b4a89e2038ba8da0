"""transformers' own common tests of models, configurations and processors, on ours.

What they skip by themselves they cannot judge here: they want a GPU, Flash Attention, DeepSpeed, a model that generates
or a processor that chats.
"""

import tarfile
import unittest
from unittest import mock

import pytest
import torch
import transformers
import transformers_sources
from miniatures import SMALL, text_tokenizer
from tiny import PROGRAMS
from transformers import PreTrainedModel, ViTImageProcessor
from transformers_sources import common_tests

from omit_hf import OmitConfig, OmitModel, OmitProcessor
from omit_hf.modeling import BiGRUConfig, OmitPreTrainedModel, RegionEncoderConfig

modeling = common_tests("test_modeling_common")
ConfigTester = common_tests("test_configuration_common").ConfigTester
ProcessorTesterMixin = common_tests("test_processing_common").ProcessorTesterMixin

VIT = {"model_type": "vit", **SMALL, "image_size": 16, "patch_size": 8}
BERT = {"model_type": "bert", **SMALL, "vocab_size": 40, "max_position_embeddings": 16}
REGIONS = {"model_type": "omit_region", "feature_size": 10, "hidden_size": 8, "kept_share": 1}
BIGRU = {"model_type": "omit_bigru", "vocab_size": 40, "embedding_size": 8, "hidden_size": 16}

SKIPPED = {
    "hidden states and attentions are those of two sides, as CLIP's are, and no fields of an OmitOutput; the tests of "
    "get_image_features and get_text_features see them": (
        "test_attention_outputs",
        "test_hidden_states_output",
        "test_retain_grad_hidden_states_attentions",
    ),
    "it subtracts all outputs, and masks are bool; test_modeling_omit.py has a test of its own": (
        "test_model_outputs_equivalence",
    ),
}
SKIPPED_WITHOUT_LAYERS = {
    "neither a region encoder nor a BiGRU has layers to checkpoint, and a model of both refuses to": (
        "test_enable_input_require_grads_with_gradient_checkpointing",
        "test_gradient_checkpointing_backward_compatibility",
        "test_gradient_checkpointing_enable_disable",
        "test_peft_gradient_checkpointing_enable_disable",
        "test_training_gradient_checkpointing",
        "test_training_gradient_checkpointing_use_reentrant_false",
        "test_training_gradient_checkpointing_use_reentrant_true",
    ),
    "a region encoder has no hidden states": ("test_get_image_features_hidden_states",),
}


def without(skipped: dict[str, tuple[str, ...]]):
    """A decorator of a class of tests that skips some of them, each of which must be there."""

    def decorate(tests):
        for reason, names in skipped.items():
            for name in names:
                setattr(tests, name, unittest.skip(reason)(getattr(tests, name)))
        return tests

    return decorate


class Side:
    """What the tests ask of the tester of a composite model's side."""

    def __init__(self, inputs, num_hidden_layers: int):
        self.inputs, self.num_hidden_layers = inputs, num_hidden_layers

    def prepare_config_and_inputs_for_common(self):
        return None, self.inputs()


class GridTester:
    """What the tests ask for: a tiny configuration, inputs and sizes."""

    batch_size, seq_length, is_training = 3, 7, True
    num_hidden_layers = 2
    vision_config, text_config = VIT, BERT
    options: dict = {}

    def __init__(self):
        self.text_model_tester = Side(self.captions, 2)
        self.vision_model_tester = Side(self.images, 2)

    def get_config(self) -> OmitConfig:
        # copies, since a configuration changes what it is given
        return OmitConfig(
            vision_config=dict(self.vision_config),
            text_config=dict(self.text_config),
            projection_dim=16,
            **self.options,
        )

    def images(self) -> dict:
        return {"pixel_values": modeling.floats_tensor([self.batch_size, 3, 16, 16])}

    def captions(self) -> dict:
        ids = 1 + modeling.ids_tensor([self.batch_size, self.seq_length], 39)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {**self.images(), **self.captions(), "return_loss": True}


class RegionTester(GridTester):
    """The classical encoders, with all that OMIT can learn."""

    vision_config, text_config = REGIONS, BIGRU
    options = {"dustbin": "learned", "marginals": "norm", "loss": "infonce", "regularization": 0.1}

    def __init__(self):
        super().__init__()
        self.text_model_tester = Side(self.captions, 1)

    def images(self) -> dict:
        return {"region_features": modeling.floats_tensor([self.batch_size, 6, 10])}


class ModelTests(modeling.ModelTesterMixin):
    all_model_classes = (OmitModel,)
    _is_composite = True
    additional_model_inputs = ["pixel_values"]
    test_can_init_all_missing_weights_before_2023 = True  # which would skip what has no year in its first lines

    # OmitModel takes no checkpoint that lacks weights; these two want to see what becomes of such weights.

    def test_can_init_all_missing_weights(self):
        with any_checkpoint():
            super().test_can_init_all_missing_weights()

    def test_reverse_loading_mapping(self):
        """Ours changes the shape of logit_scale, and not its name."""
        super().test_reverse_loading_mapping(check_keys_were_modified=False)

    def test_model_weights_reload_no_missing_tied_weights(self):
        with any_checkpoint():
            super().test_model_weights_reload_no_missing_tied_weights()


def any_checkpoint():
    return mock.patch.object(OmitPreTrainedModel, "from_pretrained", vars(PreTrainedModel)["from_pretrained"])


@without(SKIPPED)
class TestGridModel(ModelTests, unittest.TestCase):
    def setUp(self):
        self.model_tester = GridTester()


@without({**SKIPPED, **SKIPPED_WITHOUT_LAYERS})
class TestRegionModel(ModelTests, unittest.TestCase):
    has_attentions = False
    skip_test_image_features_output_shape = True  # looks for pixels

    def setUp(self):
        self.model_tester = RegionTester()


class TestConfigurations(unittest.TestCase):
    def test_omit(self):
        self.model_tester = GridTester()
        options = {"projection_dim": 37, "regularization": 0.05, "matching": "ot", "special_token_ids": [1, 2]}
        ConfigTester(self, OmitConfig, has_text_modality=False, **options).run_common_tests()

    def test_bigru(self):
        properties = ["hidden_size", "num_hidden_layers"]
        ConfigTester(self, BiGRUConfig, common_properties=properties, embedding_size=37).run_common_tests()

    def test_regions(self):
        options = {"has_text_modality": False, "common_properties": ["hidden_size"]}
        ConfigTester(self, RegionEncoderConfig, **options, feature_size=37).run_common_tests()


class TestProcessor(ProcessorTesterMixin, unittest.TestCase):
    processor_class = OmitProcessor

    @classmethod
    def _setup_image_processor(cls):
        return ViTImageProcessor(size={"height": 16, "width": 16})

    @classmethod
    def _setup_tokenizer(cls):
        return text_tokenizer("bert")

    def setUp(self):
        # Where its code is saved with it, transformers marks the object as well as the file, and the two then differ.
        marking = mock.patch.object(OmitProcessor, "_auto_class", None)
        marking.start()
        self.addCleanup(marking.stop)


# --- how they are fetched ---------------------------------------------------------------------------------------------


def test_no_registry_is_a_reason_to_skip_but_in_ci(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(transformers_sources, "RETRIES", "1")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"could not be fetched: ERROR: .*\(no registry was reached\)"):
        transformers_sources.fetched(tmp_path)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(RuntimeError, match="could not be fetched"):
        transformers_sources.fetched(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["transformers.lock"]


def test_a_release_without_sources_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers_sources, "DOWNLOAD", [str(PROGRAMS / "fail.py"), "ERROR: No such version"])
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(RuntimeError, match="could not be fetched: ERROR: No such version"):
        transformers_sources.fetched(tmp_path)


def test_an_archive_is_unpacked_once_and_whole(tmp_path, monkeypatch):
    release = f"transformers-{transformers.__version__}"
    archive = tmp_path / f"{release}.tar.gz"
    downloads = []

    def download(scratch):
        downloads.append(scratch)
        return archive

    monkeypatch.setattr(transformers_sources, "_download", download)
    (tmp_path / "some.py").write_text("number = 1")
    names = [f"{release}/tests/{name}" for name in transformers_sources.FILES]
    for inside in (names[:1], names):
        with tarfile.open(archive, "w:gz") as members:
            for name in inside:
                members.add(tmp_path / "some.py", name)
        if inside != names:
            with pytest.raises(KeyError):
                transformers_sources.fetched(tmp_path / "cache")
    for _ in range(2):
        folder = transformers_sources.fetched(tmp_path / "cache")
    assert {each.name for each in folder.iterdir()} == {"__init__.py", *transformers_sources.FILES}
    assert {each.name for each in folder.parent.iterdir()} == {"transformers.lock", release}
    assert len(downloads) == 2
