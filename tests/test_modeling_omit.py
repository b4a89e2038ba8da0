import shutil
import subprocess
import sys

import miniatures
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from tiny import CODE, PROGRAMS, TEXT, VISION, tiny_config
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    pipeline,
)

from omit_hf import OmitModel, OmitProcessor, partial_sinkhorn_similarity
from omit_hf.data import build_word_tokenizer
from omit_hf.modeling.backbones_omit import load
from omit_hf.modeling.matching_omit import MATCHING
from omit_hf.modeling.modeling_omit import MAX_LOGIT_SCALE

BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}


def test_shapes(model, inputs):
    out = model(**inputs, output_transport=True)
    assert out.similarity.shape == out.logits_per_image.shape == (3, 2)
    assert out.transport_plan.shape == (3, 2, 6 * 4 + 1, 4 + 1)
    assert out.image_embeds.shape == (3, 24, 16)
    assert out.image_mask.shape == (3, 24)
    assert out.image_pooled.shape == (3, 16)
    assert out.text_embeds.shape == (2, 4, 16)
    assert out.text_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert out.text_pooled.shape == (2, 16)
    assert out.loss is None
    torch.testing.assert_close(out.logits_per_image, out.similarity * model.logit_scale.exp())
    assert torch.equal(out.logits_per_text, out.logits_per_image.T)


def test_similarity_is_that_of_the_public_function(model, inputs):
    out = model(**inputs)
    expected = partial_sinkhorn_similarity(
        out.image_embeds, out.image_mask, out.image_pooled, out.text_embeds, out.text_mask, out.text_pooled
    )
    torch.testing.assert_close(out.similarity, expected)


def test_features_and_similarity_apart(model, inputs):
    image = model.get_image_features(inputs["pixel_values"])
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    out = model(**inputs)
    assert torch.equal(image.embeds, out.image_embeds)
    assert torch.equal(text.pooled, out.text_pooled)
    assert torch.equal(model.similarity(image, text), out.similarity)
    torch.testing.assert_close(model.similarity(image, text, memory_budget=1), out.similarity)
    assert image.last_hidden_state.shape == (3, 12, 6, 4)
    assert text.last_hidden_state.shape == (2, 4, 16)


def test_hidden_states_of_the_backbones(model, inputs):
    out = model(**inputs, output_hidden_states=True)
    assert len(out.vision_model_output.hidden_states) == 3


def test_tuples(model, inputs):
    flat, out = model(**inputs, return_dict=False), model(**inputs)
    assert torch.equal(flat[0], out.logits_per_image)
    assert len(flat) == len(out.to_tuple())


@pytest.mark.parametrize(
    ("matching", "dustbin"), [("omit", "learned"), ("omit", "scalar"), *((name, "global") for name in MATCHING)]
)
def test_round_trip_keeps_the_scores(matching, dustbin, inputs, tmp_path):
    torch.manual_seed(0)
    model = OmitModel(tiny_config(matching=matching, dustbin=dustbin, loss="infonce")).eval()
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} - CODE == {"config.json", "model.safetensors"}
    with torch.inference_mode():
        expected = model(**inputs).logits_per_image
        for auto_class in (OmitModel, AutoModel, AutoModelForZeroShotImageClassification):
            loaded = auto_class.from_pretrained(tmp_path)
            assert type(loaded) is OmitModel
            assert loaded.dtype == torch.float32
            assert torch.equal(loaded(**inputs).logits_per_image, expected)


@pytest.mark.parametrize("matching", MATCHING)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(matching, inputs, tmp_path, dtype):
    """The dtype survives saving; scores stay float32, and near those of the float32 model."""
    torch.manual_seed(0)
    model = OmitModel(tiny_config(matching=matching)).eval()
    expected = model(**inputs).similarity
    model.to(dtype).save_pretrained(tmp_path)
    loaded = OmitModel.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    out = loaded(**inputs)
    assert out.image_embeds.dtype == out.text_embeds.dtype == dtype
    assert out.similarity.dtype == torch.float32
    assert torch.equal(out.similarity, model(**inputs).similarity)
    torch.testing.assert_close(out.similarity, expected, rtol=0, atol=0.1)
    assert OmitModel.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_double_precision(model, inputs):
    exact = model.double()(**{**inputs, "pixel_values": inputs["pixel_values"].double()})
    assert exact.similarity.dtype == exact.image_embeds.dtype == torch.float64
    torch.testing.assert_close(model.float()(**inputs).similarity, exact.similarity.float(), rtol=1e-4, atol=1e-5)


def test_autocast_leaves_the_transport_alone(model, inputs):
    expected = model(**inputs).similarity
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(**inputs)
    assert out.similarity.dtype == torch.float32
    torch.testing.assert_close(out.similarity, expected, rtol=0, atol=0.1)


def test_a_batch_may_be_split(model, inputs):
    whole = model(**inputs).similarity
    parts = [model(**{**inputs, "pixel_values": part}).similarity for part in inputs["pixel_values"].split(2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["triplet", "infonce"])
def test_loss(loss, inputs):
    torch.manual_seed(0)
    model = OmitModel(tiny_config(loss=loss))
    inputs = {**inputs, "pixel_values": inputs["pixel_values"][:2]}
    out = model(**inputs, return_loss=True)
    out.loss.backward()
    assert out.loss > 0
    assert (model.logit_scale.grad is not None) == (loss == "infonce")
    s = out.similarity.detach()
    if loss == "triplet":
        gaps = [s[0, 1] - s[0, 0], s[1, 0] - s[1, 1], s[1, 0] - s[0, 0], s[0, 1] - s[1, 1]]
        expected = sum(max(0.0, 0.05 + gap.item()) for gap in gaps) / 2
    else:
        logits = s * model.logit_scale.exp().detach()
        target = torch.arange(2)
        expected = (
            nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)
        ).item() / 2
    assert out.loss.item() == pytest.approx(expected, rel=1e-5)
    same = model(**inputs, return_loss=True, image_ids=torch.tensor([5, 5]))
    assert same.loss == 0


def test_logit_scale_is_clamped_and_can_come_back():
    model = OmitModel(tiny_config(loss="infonce")).train()
    nn.init.constant_(model.logit_scale, 9.0)
    assert model.eval()._scale().item() == pytest.approx(100)
    scale = model.train()._scale()
    assert scale.item() == pytest.approx(100)
    scale.backward()
    assert model.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE)
    assert model.logit_scale.grad > 0


def test_nothing_is_left_uninitialised(tmp_path):
    """Parameters that a checkpoint lacks are initialised as in a new model, not left as they were in memory."""
    bert = {"model_type": "bert", **BERT}
    OmitModel(tiny_config(text_config=bert)).save_pretrained(tmp_path)
    poisoned = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        fresh = OmitModel(tiny_config(dustbin="learned", loss="infonce"))
        config = tiny_config(dustbin="learned", loss="infonce")
        loaded = OmitModel.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = poisoned
    for model in (fresh, loaded):
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            assert tensor.isfinite().all(), name
        gru = model.text_encoder.backbone.gru.weight_hh_l0
        assert 0.1 < gru.std() < 0.2  # uniform within 1/√16
        assert (model.text_encoder.backbone.embeddings.weight[0] == 0).all()
        assert model.matching.image_dustbin.norm() > 0.1
        assert model.logit_scale.item() == pytest.approx(2.6592)


class TestFromVisionTextPretrained:
    @pytest.fixture
    def folders(self, tmp_path):
        torch.manual_seed(3)
        options = {key: value for key, value in VISION.items() if key != "model_type"}
        ConvNextModel(ConvNextConfig(**options)).save_pretrained(tmp_path / "vision")
        BertModel(BertConfig(**BERT)).save_pretrained(tmp_path / "text")
        tokenizer = build_word_tokenizer([f"word{n}" for n in range(30)])
        tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
        tokenizer.save_pretrained(tmp_path / "text")
        return tmp_path / "vision", tmp_path / "text"

    def test_backbones_keep_their_weights(self, folders, inputs):
        model = OmitModel.from_vision_text_pretrained(*folders, projection_dim=16, matching="ot", regularization=0.1)
        vision, text = AutoModel.from_pretrained(folders[0]), AutoModel.from_pretrained(folders[1])
        for backbone, original in ((model.vision_encoder.backbone, vision), (model.text_encoder.backbone, text)):
            state = original.state_dict()
            for name, tensor in backbone.state_dict().items():
                assert torch.equal(tensor, state[name]), name
        assert not hasattr(model.text_encoder.backbone, "pooler") or model.text_encoder.backbone.pooler is None
        assert (model.config.matching, model.config.regularization) == ("ot", 0.1)
        assert model(**inputs).similarity.shape == (3, 2)

    def test_special_tokens_come_from_the_tokenizer(self, folders):
        model = OmitModel.from_vision_text_pretrained(*folders, projection_dim=16)
        tokenizer = AutoTokenizer.from_pretrained(folders[1])
        assert model.config.special_token_ids == sorted(
            [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]
        )
        assert model.config.text_pooling == "cls"
        other = OmitModel.from_vision_text_pretrained(*folders, text_pooling="mean", special_token_ids=[7])
        assert (other.config.text_pooling, other.config.special_token_ids) == ("mean", [7])

    def test_saves_and_loads(self, folders, inputs, tmp_path):
        model = OmitModel.from_vision_text_pretrained(*folders, projection_dim=16).eval()
        model.save_pretrained(tmp_path / "both")
        loaded = OmitModel.from_pretrained(tmp_path / "both")
        assert torch.equal(loaded(**inputs).similarity, model(**inputs).similarity)

    def test_dtype(self, folders):
        model = OmitModel.from_vision_text_pretrained(*folders, projection_dim=16, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}

    def test_towers_of_clip(self, folders, tmp_path):
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        clip = CLIPModel(
            CLIPConfig(
                vision_config={**small, "image_size": 32, "patch_size": 16},
                text_config={**small, "vocab_size": 40, "eos_token_id": 3},
            )
        )
        clip.save_pretrained(tmp_path / "clip")
        model = OmitModel.from_vision_text_pretrained(
            tmp_path / "clip", tmp_path / "clip", special_token_ids=[2, 3], text_pooling="last", projection_dim=16
        )
        state = clip.state_dict()
        for side, tower in (("vision_encoder", "vision_model"), ("text_encoder", "text_model")):
            for name, tensor in getattr(model, side).backbone.state_dict().items():
                assert torch.equal(tensor, state[f"{tower}.{name}"]), name
        out = model(input_ids=torch.tensor([[2, 9, 3]]), pixel_values=torch.rand(1, 3, 32, 32))
        assert out.image_embeds.shape == (1, 4, 16)

    def test_fields_that_a_configuration_does_not_have(self, folders):
        with pytest.raises(ValueError, match="unknown field 'regularisation'; did you mean 'regularization'?"):
            OmitModel.from_vision_text_pretrained(*folders, regularisation=0.1)

    def test_a_text_model_for_the_pictures(self, folders):
        with pytest.raises(ValueError, match="vision backbone is a 'bert' model, which reads input_ids"):
            OmitModel.from_vision_text_pretrained(folders[1], folders[1])

    def test_no_tokenizer(self, folders, tmp_path):
        BertModel(BertConfig(**BERT)).save_pretrained(tmp_path / "bare")
        with pytest.raises((OSError, ValueError), match="tokenizer"):
            OmitModel.from_vision_text_pretrained(folders[0], tmp_path / "bare")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    vision = {kind: miniatures.save_vision(kind, folder / f"vision-{kind}") for kind in miniatures.VISION}
    text = {kind: miniatures.save_text(kind, folder / f"text-{kind}") for kind in miniatures.TEXT}
    return vision, text


@pytest.mark.parametrize("vision", miniatures.VISION)
@pytest.mark.parametrize("text", miniatures.TEXT)
def test_any_pair_of_pretrained_backbones(backbones, vision, text):
    folders = backbones[0][vision], backbones[1][text]
    model = OmitModel.from_vision_text_pretrained(*folders, projection_dim=16).eval()
    for backbone, folder in zip((model.vision_encoder.backbone, model.text_encoder.backbone), folders, strict=True):
        saved = type(backbone).from_pretrained(folder).state_dict()
        for name, tensor in backbone.state_dict().items():
            assert torch.equal(tensor, saved[name]), name
    processor = OmitProcessor(AutoImageProcessor.from_pretrained(folders[0]), AutoTokenizer.from_pretrained(folders[1]))
    inputs = processor(
        images=[Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")], text=["a", "bcd", "a b"]
    )
    out = model(**inputs)
    assert out.similarity.shape == (2, 3)
    assert out.similarity.isfinite().all()
    assert out.text_mask.any(1).all()


def test_a_checkpoint_does_not_tell_where_its_backbones_were(backbones, tmp_path):
    folders = backbones[0]["vit"], backbones[1]["bert"]
    OmitModel.from_vision_text_pretrained(*folders, projection_dim=16).save_pretrained(tmp_path / "first")
    OmitModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "again")
    for name in ("first", "again"):
        text = (tmp_path / name / "config.json").read_text()
        assert str(folders[0].parent) not in text
        assert str(tmp_path) not in text


class TestFromClip:
    @pytest.fixture(params=["clip", "siglip"])
    def folder(self, request, tmp_path):
        return miniatures.save_clip(request.param, tmp_path / request.param)

    @pytest.fixture
    def inputs(self, folder):
        processor = OmitProcessor(AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
        torch.manual_seed(0)
        pictures = [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8) for _ in range(3)]
        return processor(images=pictures, text=["abc", "defghij k", "d", "zz"])

    def test_the_global_features_are_those_of_the_checkpoint(self, folder, inputs):
        clip, model = AutoModel.from_pretrained(folder), OmitModel.from_clip(folder).eval()
        masks = {} if clip.config.model_type == "siglip" else {"attention_mask": inputs["attention_mask"]}
        image = clip.get_image_features(inputs["pixel_values"]).pooler_output
        text = clip.get_text_features(inputs["input_ids"], **masks).pooler_output
        out = model(**inputs)
        torch.testing.assert_close(out.image_pooled, nn.functional.normalize(image, dim=-1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(out.text_pooled, nn.functional.normalize(text, dim=-1), rtol=1e-5, atol=1e-6)
        logits = clip(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"], **masks).logits_per_image
        cosine = out.image_pooled @ out.text_pooled.T * model.logit_scale.exp()
        torch.testing.assert_close(cosine + getattr(clip, "logit_bias", 0), logits, rtol=1e-4, atol=1e-4)

    def test_a_patch_is_where_its_image_would_be(self, folder, inputs):
        """Fragments lie in the shared space: what the checkpoint would make of a picture that is that patch alone."""
        clip, model = AutoModel.from_pretrained(folder), OmitModel.from_clip(folder).eval()
        states = clip.vision_model(inputs["pixel_values"]).last_hidden_state
        if clip.config.model_type == "clip":
            assert model.config.projection_dim == 24
            expected = clip.visual_projection(clip.vision_model.post_layernorm(states[:, 5]))
        else:
            expected = clip.vision_model.head(states[:, 4:5])
        found = model.get_image_features(inputs["pixel_values"]).embeds[:, 4]
        torch.testing.assert_close(found, nn.functional.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)

    def test_saves_and_loads(self, folder, inputs, tmp_path):
        model = OmitModel.from_clip(folder, matching="ot", loss="infonce").eval()
        assert model.config.matching == "ot"
        model.save_pretrained(tmp_path / "omit")
        loaded = OmitModel.from_pretrained(tmp_path / "omit")
        assert torch.equal(loaded(**inputs).similarity, model(**inputs).similarity)
        model(**{**inputs, "pixel_values": inputs["pixel_values"][[0, 1, 2, 0]]}, return_loss=True).loss.backward()
        assert model.vision_encoder.projection.weight.grad.norm() > 0

    def test_the_states_of_a_frozen_one_can_be_cached(self, folder, inputs):
        model = OmitModel.from_clip(folder).eval()
        states, _ = model.vision_encoder.encode(inputs["pixel_values"])
        live = model.get_image_features(inputs["pixel_values"])
        cached = model.get_image_features(image_states=states)
        assert torch.equal(cached.embeds, live.embeds)
        assert torch.equal(cached.pooled, live.pooled)

    def test_another_width(self, folder):
        with pytest.raises(ValueError, match=r"projection_dim is 7; expected \d+, as wide as .* is\."):
            OmitModel.from_clip(folder, projection_dim=7)

    def test_another_model(self, backbones):
        with pytest.raises(ValueError, match="'bert' model; expected 'clip' or 'siglip'.*from_vision_text_pretrained"):
            OmitModel.from_clip(backbones[1]["bert"])

    def test_zero_shot_pipeline(self, folder, tmp_path):
        OmitModel.from_clip(folder).save_pretrained(tmp_path / "omit")
        processor = OmitProcessor(AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
        processor.save_pretrained(tmp_path / "omit")
        classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "omit"))
        picture = Image.new("RGB", (32, 32), "red")
        answer = classify(picture, candidate_labels=["ab", "c"], hypothesis_template="{}")
        model = OmitModel.from_pretrained(tmp_path / "omit")
        expected = model(**processor(images=picture, text=["ab", "c"])).logits_per_image[0].softmax(-1)
        assert {each["label"]: each["score"] for each in answer} == pytest.approx(
            dict(zip(["ab", "c"], expected.tolist(), strict=True)), rel=1e-4
        )


def test_a_tokenizer_that_does_not_fit(backbones, tmp_path):
    shutil.copytree(backbones[1]["bert"], tmp_path / "bert")
    miniatures.text_tokenizer("roberta").save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="tokenizer has 261 tokens, and the text encoder 'bert' embeds 58"):
        OmitModel.from_vision_text_pretrained(backbones[0]["vit"], tmp_path / "bert")


def test_loading_leaves_the_training_code_alone(scenes_model, processor, tmp_path):
    """A process that only loads a model imports neither the training loop nor matplotlib."""
    scenes_model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    command = [sys.executable, PROGRAMS / "list_modules.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_auto_processor_is_known(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == "OmitProcessor"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": None}, "No image given; expected pixel_values or image_states"),
        ({"input_ids": None}, "No text given; expected input_ids"),
        (
            {"attention_mask": torch.ones(2, 3)},
            r"attention_mask has shape \(2, 3\); expected that of input_ids, \(2, 4\)",
        ),
        ({"input_ids": torch.tensor([2, 3])}, r"input_ids has shape \(2,\); expected \[B, L\]"),
        (
            {"text_states": torch.zeros(1, 4, 16)},
            r"text_states has shape \(1, 4, 16\); expected \[2, 4, 'width'\], a state for each of input_ids",
        ),
        ({"return_loss": True}, "The loss got 3 images and 2 captions; expected as many"),
    ],
)
def test_bad_input(model, inputs, change, message):
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **change})


def test_bad_input_to_the_loss(model, inputs):
    inputs = {**inputs, "pixel_values": inputs["pixel_values"][:2], "return_loss": True}
    with pytest.raises(ValueError, match=r"image_ids has shape \(3,\); expected \(2,\)"):
        model(**inputs, image_ids=torch.arange(3))
    with pytest.raises(ValueError, match=r"image_ids is of type torch.float32; expected integers"):
        model(**inputs, image_ids=torch.tensor([0.0, 0.5]))
    for loss in ("triplet", "infonce"):
        model.config.loss = loss
        with pytest.raises(ValueError, match="negatives is 'easy'"):
            model(**inputs, negatives="easy")


VIT = {
    "model_type": "vit",
    **{name: BERT[name] for name in BERT if name != "vocab_size"},
    "image_size": 32,
    "patch_size": 8,
}


@pytest.mark.parametrize("vision", [VISION, VIT], ids=["convnext", "vit"])
def test_gradient_checkpointing(vision, monkeypatch):
    torch.manual_seed(0)
    model = OmitModel(tiny_config(vision_config=vision, text_config={"model_type": "bert", **BERT})).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    inputs = {"pixel_values": torch.rand(2, 3, 32, 32), "input_ids": torch.tensor([[2, 3], [4, 5]])}

    def gradients():
        model.zero_grad()
        model(**inputs, return_loss=True).loss.backward()
        return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}

    expected = gradients()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(1) or tensor, lambda tensor: tensor):
        found = gradients()
    kept = len(saved)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    model.gradient_checkpointing_disable()
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(1) or tensor, lambda tensor: tensor):
        gradients()
    assert kept < len(saved)


def test_gradient_checkpointing_of_backbones_that_have_none(model):
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    model = OmitModel(tiny_config(vision_config=resnet))
    with pytest.raises(ValueError, match="Neither 'resnet' nor 'omit_bigru' has gradient checkpointing"):
        model.gradient_checkpointing_enable()


def test_input_embeddings_are_those_of_the_words(model):
    assert model.get_input_embeddings() is model.text_encoder.backbone.embeddings
    other = nn.Embedding(30, 8)
    model.set_input_embeddings(other)
    assert model.text_encoder.backbone.embeddings is other


@pytest.mark.parametrize("matching", MATCHING)
def test_alignment_of_every_head_that_has_one(matching, inputs):
    model = OmitModel(tiny_config(matching=matching))
    if not model.matching.aligns:
        with pytest.raises(ValueError, match="Matching pools each side and aligns nothing"):
            model(**inputs, output_transport=True)
        return
    out = model(**inputs, output_transport=True)
    images, captions = out.similarity.shape
    assert out.alignment.shape == (images, captions, out.image_mask.shape[1], out.text_mask.shape[1])
    assert (out.transport_plan is not None) == (matching in ("omit", "ot"))
    if matching == "omit":
        assert torch.equal(out.alignment, out.transport_plan[:, :, 1:, 1:])


def test_a_configuration_that_became_invalid(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="regularization is -1; expected a number greater than 0"):
        OmitModel.from_pretrained(tmp_path, regularization=-1)
    config = tiny_config()
    config.num_iterations = 0
    with pytest.raises(StrictDataclassError, match="num_iterations is 0; expected at least 1"):
        OmitModel(config)
    config = tiny_config()
    config.text_config.pad_token_id = 99
    with pytest.raises(StrictDataclassError, match="pad_token_id is 99"):
        OmitModel(config)


def test_checkpoint_of_another_model(tmp_path):
    BertModel(BertConfig(**BERT)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="configuration of a 'bert' model; expected 'omit'"):
        OmitModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projection_dim": 8}, r"vision_encoder.projection.weight has shape \[16, 12\]; expected \[8, 12\]"),
        ({"text_config": {**TEXT, "vocab_size": 31}}, r"embeddings.weight has shape \[30, 8\]; expected \[31, 8\]"),
        ({"dustbin": "learned"}, r"2 parameters (.|\n)*matching.image_dustbin is missing\n"),
        ({"dustbin": "scalar"}, r"matching.dustbin_similarity is missing\nLoad it with the configuration that"),
    ],
)
def test_checkpoint_of_another_configuration(model, tmp_path, change, message):
    model.save_pretrained(tmp_path)
    for auto_class in (OmitModel, AutoModel):
        with pytest.raises(ValueError, match=message):
            auto_class.from_pretrained(tmp_path, config=tiny_config(**change))
    loaded, info = OmitModel.from_pretrained(
        tmp_path, config=tiny_config(**change), ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert info["missing_keys"] or info["mismatched_keys"]
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())


def test_loading_info_is_given_when_asked_for(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = OmitModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(loaded.logit_scale, model.logit_scale)
    assert isinstance(OmitModel.from_pretrained(tmp_path, matching="mean"), OmitModel)  # which needs less of it


def broken(name, change):
    def spoil(folder):
        file = folder / name
        file.write_bytes(change(file.read_bytes()))

    return pytest.param(spoil, id=f"{name}-{change.__name__}")


def cut(content):
    return content[:-100]


def foreign(content):
    return b"<!DOCTYPE html><html>404"


def deep(content):
    return b"[" * 100_000


def latin(content):
    return content[:40] + b"\xe9" + content[41:]


def a_list(content):
    return b"[1]"


def length(content):
    return (2**63).to_bytes(8, "little") + content[8:]


MODEL = [broken("model.safetensors", change) for change in (cut, foreign, latin, length, a_list)]
MODEL += [broken("config.json", change) for change in (foreign, deep, latin, a_list)]
PROCESSOR = [broken("tokenizer.json", change) for change in (cut, foreign, deep, latin, a_list)]
PROCESSOR += [broken("tokenizer_config.json", change) for change in (cut, foreign, deep, latin)]
PROCESSOR += [broken("processor_config.json", change) for change in (foreign, deep, latin, a_list)]


@pytest.mark.parametrize("spoil", MODEL)
def test_a_checkpoint_whose_files_are_broken(published, spoil):
    """Whatever kind of error Python, safetensors and tokenizers have for it."""
    assert OmitModel.from_pretrained(published)
    spoil(published)
    with pytest.raises((ValueError, OSError), match=str(published)) as caught:
        OmitModel.from_pretrained(published)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("spoil", PROCESSOR)
def test_a_processor_whose_files_are_broken(published, spoil):
    assert OmitProcessor.from_pretrained(published)
    spoil(published)
    with pytest.raises((ValueError, OSError), match=str(published)) as caught:
        OmitProcessor.from_pretrained(published)
    assert str(caught.value).isprintable()


def test_too_little_memory_stays_what_it_is(published):
    """Whoever has another device may want to try again."""

    def none_left(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        load(lambda _: none_left(), published)
