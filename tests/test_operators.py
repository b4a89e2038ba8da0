"""What torch.compile makes of a model: one graph, with the scores and the gradients of the model itself."""

import copy
import dataclasses
import logging

import pytest
import torch
from miniatures import SMALL
from tiny import REGIONS, TEXT, tiny_config
from torch import nn

from omit_hf import OmitModel
from omit_hf.modeling.matching_omit import MATCHING
from omit_hf.modeling.transport_omit import Side, TransportOptions, transport_similarity

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # which draws other numbers in a graph
BERT = {"model_type": "bert", "vocab_size": 30, **SMALL, **NO_DROPOUT}
VIT = {"model_type": "vit", "image_size": 32, "patch_size": 8, **SMALL, **NO_DROPOUT}
ONE_GRAPH = {"backend": "aot_eager", "fullgraph": True}


def tiny_inputs() -> dict[str, torch.Tensor]:
    """Three pairs; one caption is shorter, one is empty."""
    torch.manual_seed(1)
    words = torch.tensor([[2, 3, 4, 5], [6, 7, 0, 0], [0, 0, 0, 0]])
    return {"pixel_values": torch.rand(3, 3, 32, 32), "input_ids": words, "attention_mask": (words != 0).long()}


@pytest.fixture(autouse=True)
def forget_graphs():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def step(model: nn.Module, call, inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a training step and the gradients."""
    model.zero_grad()
    loss = call(**inputs, return_loss=True).loss
    loss.backward()
    return loss.detach(), {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def check(config, inputs, **options) -> None:
    torch.manual_seed(0)
    model = OmitModel(config).train()
    twin = copy.deepcopy(model)
    expected, gradients = step(twin, twin, inputs)
    loss, found = step(model, torch.compile(model, **ONE_GRAPH, **options), inputs)
    torch.testing.assert_close(loss, expected)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("matching", "loss"), [*((name, "infonce") for name in MATCHING if name != "gpo"), ("omit", "triplet")]
)
def test_a_training_step_is_one_graph(matching, loss):
    check(tiny_config(matching=matching, loss=loss), tiny_inputs())


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "cpu"},
        {"backend": "numba"},
        {"backend": "reference"},
        {"regularization": 0.002},  # which no compiled backend takes
        {"marginals": "cross_global"},
        {"dustbin": "learned"},
        {"dustbin": "scalar"},
        {"score": "augmented", "global_weight": 0.2},
        {"vision_config": VIT, "text_config": BERT},
        {"text_config": {**TEXT, "num_hidden_layers": 2}},
    ],
)
def test_whatever_is_transported(options):
    check(tiny_config(loss="infonce", **options), tiny_inputs())


@pytest.mark.parametrize("sides", ["image", "text"])
def test_of_what_is_frozen_there_is_no_gradient(sides):
    torch.manual_seed(0)
    model = OmitModel(tiny_config()).train()
    getattr(model, "vision_encoder" if sides == "image" else "text_encoder").requires_grad_(False)
    inputs = tiny_inputs()
    expected, gradients = step(model, model, inputs)
    loss, found = step(model, torch.compile(model, **ONE_GRAPH), inputs)
    torch.testing.assert_close(loss, expected)
    assert found.keys() == gradients.keys()


def test_each_encoder_and_the_score_are_one_graph():
    model, inputs = OmitModel(tiny_config()).eval(), tiny_inputs()
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        image = torch.compile(model.get_image_features, **ONE_GRAPH)(inputs["pixel_values"])
        words = torch.compile(model.get_text_features, **ONE_GRAPH)(**text)
        score = torch.compile(model.similarity, **ONE_GRAPH)(image, words)
        torch.testing.assert_close(score, model(**inputs).similarity)


def test_padded_regions_break_a_training_step_in_three_places():
    model, inputs = OmitModel(tiny_config(vision_config=REGIONS)), tiny_inputs()
    del inputs["pixel_values"]
    inputs |= {"region_features": torch.rand(3, 4, 10), "region_mask": torch.arange(4) < torch.tensor([[4], [2], [1]])}
    explained = torch._dynamo.explain(lambda: model.train()(**inputs, return_loss=True))()
    assert explained.graph_break_count <= 3
    score = torch.compile(model.eval(), **ONE_GRAPH)
    torch.testing.assert_close(score(**inputs).similarity, model(**inputs).similarity)


def test_another_number_of_words_and_pairs():
    """With sizes that torch.compile leaves open."""
    torch.manual_seed(0)
    model = OmitModel(tiny_config()).eval()
    compiled = torch.compile(model, dynamic=True, **ONE_GRAPH)
    for captions, words in ((3, 4), (5, 7), (2, 3)):
        inputs = {
            "input_ids": torch.randint(1, 30, (captions, words)),
            "pixel_values": torch.randn(captions, 3, 32, 32),
        }
        torch.testing.assert_close(compiled(**inputs).similarity, model(**inputs).similarity)


def test_padding_on_the_left_is_refused_all_the_same():
    model = OmitModel(tiny_config()).eval()
    encode = torch.compile(model.get_text_features, **ONE_GRAPH)
    with pytest.raises(ValueError, match="a token after padding"):
        encode(input_ids=torch.tensor([[0, 3]]), attention_mask=torch.tensor([[0, 1]]))


def test_the_operator_chooses_its_backend_as_it_does_outside(caplog):
    torch.manual_seed(0)
    sides = [
        Side(torch.randn(2, 3, 4), torch.full((2, 1, 3), 1 / 3)),
        Side(torch.randn(2, 2, 4), torch.full((1, 2, 2), 0.5)),
    ]
    with caplog.at_level(logging.INFO):
        compiled = torch.compile(transport_similarity, **ONE_GRAPH)(*sides, TransportOptions(regularization=1e-3))
    assert "Backend 'cpu' cannot be used" in caplog.text
    assert torch.equal(compiled, transport_similarity(*sides, TransportOptions(regularization=1e-3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_are_those_of_the_transport(dtype):
    torch.manual_seed(0)
    rows = [torch.nn.functional.normalize(torch.randn(2, 3, 4), dim=-1).to(dtype).requires_grad_() for _ in range(2)]
    sides = Side(rows[0], torch.full((2, 1, 3), 1 / 3)), Side(rows[1], torch.full((1, 2, 3), 1 / 3))
    compiled = torch.compile(transport_similarity, **ONE_GRAPH)(*sides, TransportOptions())
    expected = transport_similarity(*sides, TransportOptions())
    assert compiled.dtype == expected.dtype
    found, true = (torch.autograd.grad(each.sum(), rows) for each in (compiled, expected))
    assert all(map(torch.equal, found, true))


@pytest.mark.parametrize("value", [9.0, 1e30])
def test_the_scale_stays_below_its_bound(value):
    torch.manual_seed(0)
    model = OmitModel(tiny_config(loss="infonce")).train()
    with torch.no_grad():
        model.logit_scale.fill_(value)
    out = model.eval()(**tiny_inputs())
    torch.testing.assert_close(out.logits_per_image, out.similarity * 100)
    model.train()
    compiled = torch.compile(model, **ONE_GRAPH)(**tiny_inputs(), return_loss=True)
    compiled.loss.backward()
    torch.testing.assert_close(compiled.logits_per_image, compiled.similarity * 100)
    assert model.logit_scale.grad.item() != 0


def test_the_operators_are_what_they_say():
    """Their names, their types and, by torch's own check, that they change no input and have the shapes promised."""
    taken = [each.name for each in torch.ops.omit_hf.transport.default._schema.arguments]
    assert taken[4:] == [field.name for field in dataclasses.fields(TransportOptions)]
    torch.manual_seed(0)
    rows = [torch.nn.functional.normalize(torch.randn(2, 3, 4), dim=-1).requires_grad_() for _ in range(2)]
    sides = rows[0], torch.full((2, 1, 3), 1 / 3), rows[1], torch.full((1, 2, 3), 1 / 3)
    torch.library.opcheck(torch.ops.omit_hf.transport.default, (*sides, 0.1, 3, 1, "auto", "float32", 2**20))
    gru = OmitModel(tiny_config()).text_encoder.backbone.gru
    words, attended = torch.randn(2, 3, 8, requires_grad=True), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    torch.library.opcheck(torch.ops.omit_hf.bigru.default, (words, attended, list(gru.parameters()), 1))
