import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from runs import finish, launch, log_of, run
from safetensors.torch import load_file
from tiny import REGIONS, TEXT, tiny_config, tiny_recipe

from omit_hf import OmitModel
from omit_hf.training import Recipe, gradient_cache
from omit_hf.training.gradient_cache import backward_in_chunks, check_chunks

PAIRS = 10
VIT = {"model_type": "vit", "image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2}
VIT |= {"num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(True)


def batch_of(seed=0) -> dict:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (PAIRS,), generator=random)
    return {
        "pixel_values": torch.randn(PAIRS, 3, 32, 32, generator=random, dtype=torch.float64),
        "input_ids": torch.randint(1, 30, (PAIRS, 7), generator=random),
        "attention_mask": (torch.arange(7) < lengths[:, None]).long(),
        "image_ids": torch.tensor([0, 0, 1, 2, 3, 4, 5, 5, 6, 7]),
    }


def model_of(**options) -> OmitModel:
    torch.manual_seed(0)
    model = OmitModel(tiny_config(**{"vision_config": VIT, **options}))
    with torch.no_grad():  # so that the triplet loss has hard negatives, and the scale a gradient that shows
        model.logit_scale.fill_(1.5)
    return model.double().train()


def gradients_of(model) -> dict:
    return {name: each.grad for name, each in model.named_parameters() if each.requires_grad}


def assert_same(found: dict, expected: dict) -> None:
    """Equal in float64, but for the order of sums."""
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        assert (found[name] is None) == (each is None), name
        if each is not None:
            assert (found[name] - each).norm() <= 1e-9 * each.norm().clamp_min(1e-3), name


# Marginals by `norm` read the norms, dustbins and `cross_global` the global features.
OPTIONS = [
    {},
    {"loss": "triplet", "margin": 0.5},
    {"marginals": "norm", "dustbin": "learned"},
    {"marginals": "cross_global", "loss": "infonce", "global_weight": 0.2},
    {"matching": "gpo"},
    {"matching": "maxsim", "loss": "infonce"},
    {"text_config": {**TEXT, "hidden_size": 12}, "loss": "infonce", "dustbin": "scalar"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk", [1, 4])
def test_gradients_are_those_of_the_whole_batch(accelerator, options, chunk):
    plain, chunked = model_of(**options), model_of(**options)
    batch = batch_of()
    loss = plain(**batch, return_loss=True, negatives="all").loss
    loss.backward()
    found = backward_in_chunks(accelerator, chunked, batch, chunk, "all")
    assert found.item() == pytest.approx(loss.item(), rel=1e-6)
    assert not found.requires_grad
    assert_same(gradients_of(chunked), gradients_of(plain))
    assert "image_ids" in batch


def test_gradients_add_up_as_those_of_accumulated_batches():
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    plain, chunked = model_of(), model_of()
    for seed in (0, 1):
        accelerator.backward(plain(**batch_of(seed), return_loss=True, negatives="all").loss)
        backward_in_chunks(accelerator, chunked, batch_of(seed), 4, "all")
    assert_same(gradients_of(chunked), gradients_of(plain))
    AcceleratorState._reset_state(True)


def test_both_passes_over_a_chunk_draw_the_same(accelerator):
    """The oracle keeps the graphs of all chunks, drawn in the same order."""
    vision = {**VIT, "hidden_dropout_prob": 0.4, "attention_probs_dropout_prob": 0.2}
    options = {"vision_config": vision, "text_config": {**TEXT, "dropout": 0.4}, "loss": "infonce"}
    kept, chunked, batch = model_of(**options), model_of(**options), batch_of()
    torch.manual_seed(1)
    parts = []
    for start in range(0, PAIRS, 4):
        rows = {name: each[start : start + 4] for name, each in batch.items() if name != "image_ids"}
        parts.append((kept.get_image_features(rows.pop("pixel_values")), kept.get_text_features(**rows)))
    names = ("embeds", "mask", "pooled", "norms")
    image, text = (
        type(side[0])(**{n: torch.cat([p[n] for p in side]) for n in names}) for side in zip(*parts, strict=True)
    )
    loss = kept.similarity_and_loss(image, text, batch["image_ids"], "all", False)[1]
    loss.backward()
    drawn_after = torch.get_rng_state()
    torch.manual_seed(1)
    found = backward_in_chunks(accelerator, chunked, batch, 4, "all")
    assert torch.equal(torch.get_rng_state(), drawn_after)
    assert found.item() == pytest.approx(loss.item(), rel=1e-6)
    assert_same(gradients_of(chunked), gradients_of(kept))


@pytest.mark.parametrize("frozen", ["vision_encoder.backbone", "text_encoder"])
def test_frozen_parts_get_no_gradient(accelerator, frozen):
    plain, chunked = model_of(), model_of()
    for model in (plain, chunked):
        model.get_submodule(frozen).requires_grad_(False)
        model.train()
    plain(**batch_of(), return_loss=True).loss.backward()
    backward_in_chunks(accelerator, chunked, batch_of(), 3, "hardest")
    assert_same(gradients_of(chunked), gradients_of(plain))
    assert all(each.grad is None for each in chunked.get_submodule(frozen).parameters())


def test_only_a_chunk_is_encoded_with_a_graph(accelerator, monkeypatch):
    seen, encode = [], gradient_cache._encode

    def watched(model, inputs):
        image, text = encode(model, inputs)
        seen.append((len(inputs["input_ids"]), image.embeds.requires_grad))
        return image, text

    monkeypatch.setattr(gradient_cache, "_encode", watched)
    backward_in_chunks(accelerator, model_of(), batch_of(), 4, "all")
    assert seen == [(4, False), (4, False), (2, False), (4, True), (4, True), (2, True)]


def test_batch_statistics_are_refused(accelerator):
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    model = model_of(vision_config=resnet)
    with pytest.raises(ValueError, match=r"such as vision_encoder.backbone.*freeze_batch_norm: true"):
        check_chunks(accelerator, model)
    model.vision_encoder.batch_norm_frozen = True
    check_chunks(accelerator, model.train())
    with pytest.raises(ValueError, match="such as vision_encoder.mlp.1, normalise by the statistics of a whole batch"):
        check_chunks(accelerator, model_of(vision_config=REGIONS))


def test_sharded_parameters_are_refused(accelerator):
    sharding = copy.copy(accelerator)
    sharding.state = type("State", (), {"distributed_type": gradient_cache.DistributedType.FSDP})()
    with pytest.raises(ValueError, match="FSDP shards the parameters"):
        check_chunks(sharding, model_of())


@pytest.mark.parametrize("value", [0, -1, 10, 11])
def test_a_chunk_is_smaller_than_the_batch(value):
    with pytest.raises(ValueError, match=f"mini_batch_size is {value}; expected 1 to 9, less than batch_size"):
        Recipe(**tiny_recipe(batch_size=10, mini_batch_size=value))


def test_a_batch_of_a_resnet_ends_before_the_first_step(tmp_path):
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    with pytest.raises(ValueError, match="freeze_batch_norm: true"):
        run(tmp_path / "run", vision_config=resnet, mini_batch_size=5)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_takes_the_same_steps(tmp_path, precision):
    options = {"num_epochs": 1, "mixed_precision": precision}
    for name, size in (("plain", None), ("chunks", 4)):
        run(tmp_path / name, mini_batch_size=size, **options)
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("plain", "chunks")]
    if precision == "bf16":  # whose rounding depends on the batch and the processor, and grows from step to step
        assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-3)
        assert losses[1][1] == pytest.approx(losses[0][1], rel=torch.finfo(torch.bfloat16).eps)
    else:
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path):
    options = {"loss": "infonce", "num_epochs": 2, "learning_rate": 1e-3, "seed": 1, "mini_batch_size": 4}
    options["data_options"] = {**tiny_recipe()["data_options"], "train_size": 16}
    finish(launch(tmp_path / "two", processes=2, batch_size=10, **options))
    run(tmp_path / "one", batch_size=20, **{**options, "mini_batch_size": None})
    weights = [load_file(tmp_path / name / "checkpoints/step-00000008/model.safetensors") for name in ("one", "two")]
    for name, expected in weights[0].items():
        assert (weights[1][name] - expected).norm() < 1e-4 * expected.norm().clamp_min(1e-3), name
