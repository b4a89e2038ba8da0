import numpy as np
import pytest
import torch
from miniatures import SMALL, VISION
from tiny import REGIONS, tiny_config
from torch import nn
from torch.nn.functional import normalize
from transformers.modeling_outputs import BaseModelOutput

from omit_hf import OmitModel
from omit_hf.alignment import receptive_fields
from omit_hf.alignment.cells import grid_cells
from omit_hf.alignment.receptive_fields import measure_spans

RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
PATCHES = {**SMALL, "image_size": 32, "patch_size": 8}


def model_of(**vision) -> OmitModel:
    torch.manual_seed(0)
    return OmitModel(tiny_config(vision_config=vision)).eval()


class Convolution(nn.Module):
    """A backbone of one convolution, whose cells look where its kernel lies."""

    def __init__(self, kernel: int, stride: int, padding: int):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 512, kernel, stride, padding)  # so many features that the energy is even
        self.config, self.dtype = tiny_config().vision_config, torch.float32

    def forward(self, pixels):
        return BaseModelOutput(last_hidden_state=self.convolution(pixels))


def encoder_of(backbone):
    encoder = model_of(**RESNET).vision_encoder
    encoder.backbone = backbone
    encoder.projection = nn.Linear(512, 512)
    nn.init.orthogonal_(encoder.projection.weight)
    return encoder.eval()


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip_vision_model"])
def test_patches_are_where_they_are_cut(kind):
    boxes = model_of(model_type=kind, **PATCHES).fragment_boxes(32, 40)
    np.testing.assert_array_equal(boxes, grid_cells(np.array([0, 0, 40, 32]), rows=4, columns=5))


def test_of_pixels_that_no_patch_holds_no_patch_tells():
    boxes = model_of(model_type="dinov2", **PATCHES).fragment_boxes(36, 47)
    np.testing.assert_array_equal(boxes, grid_cells(np.array([0, 0, 40, 32]), rows=4, columns=5))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "expected"),
    [
        (8, 8, 0, [[0, 8], [8, 16], [16, 24], [24, 32]]),
        (8, 8, 4, [[0, 4], [4, 12], [12, 20], [20, 28], [28, 32]]),  # half a cell up and left, but for the first
        (12, 8, 2, [[0, 10], [6, 18], [14, 26], [22, 32]]),  # which overlap
        (4, 8, 0, [[0, 4], [8, 12], [16, 20], [24, 28]]),  # which leave pixels out
    ],
)
def test_a_convolution_looks_where_its_kernel_lies(kernel, stride, padding, expected):
    encoder = encoder_of(Convolution(kernel, stride, padding))
    rows, columns = measure_spans(encoder, 32, 32)
    np.testing.assert_allclose(rows, expected, atol=0.7)
    np.testing.assert_allclose(columns, expected, atol=0.7)


def test_the_cells_of_a_resnet_look_up_and_left():
    boxes = model_of(**RESNET).fragment_boxes(64, 96)
    even = grid_cells(np.array([0, 0, 96, 64]), rows=8, columns=12)
    moved = (boxes.numpy() - even)[:, :2] + (boxes.numpy() - even)[:, 2:]
    inner = moved.reshape(8, 12, 2)[1:-1, 1:-1] / 2
    assert (inner < 0).all()
    assert (inner > -8).all()
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 96).all()
    assert (boxes[:, 3] <= 64).all()


def test_the_profile_is_that_of_the_whole_jacobian():
    """Of every feature of every cell, without random directions, in float64."""
    model = model_of(**RESNET).double()
    pixels = torch.randn(16, 3, 32, 32, dtype=torch.float64).requires_grad_()
    cells = normalize(model.vision_encoder(pixels)[0], dim=-1).unflatten(1, (4, 4))
    energy = torch.zeros(4, 32)
    for row in range(4):
        for column in range(4):
            for feature in range(16):
                target = cells[:, row, column, feature].sum()
                (gradient,) = torch.autograd.grad(target, pixels, retain_graph=True)
                energy[row] += gradient.square().sum((0, 1, 3))
    expected = receptive_fields._spans(energy.double())
    rows, _ = measure_spans(model.vision_encoder, 32, 32)
    np.testing.assert_allclose(rows, expected, atol=1.5)


@pytest.mark.parametrize("kind", ["resnet", "swin"])
def test_lines_of_a_large_grid_are_measured_at_once(kind, monkeypatch):
    """As one by one, since no pixel is seen by two lines that lie so far apart."""
    encoder = model_of(model_type=kind, **VISION[kind]).vision_encoder
    one_by_one = measure_spans(encoder, 40, 8 * 60)
    monkeypatch.setattr(receptive_fields, "APART", 16)
    at_once = measure_spans(encoder, 40, 8 * 60)
    assert [len(each) for each in at_once] == [5, 60]
    for whole, found in zip(one_by_one, at_once, strict=True):
        np.testing.assert_allclose(found, whole, atol=1e-9)


def test_quantiles_lie_within_pixels():
    energy = torch.tensor([[0.0, 2, 2, 0], [4, 0, 0, 4], [1, 1, 1, 1]])
    np.testing.assert_allclose(receptive_fields._quantile(energy, 0.25), [1.5, 0.5, 1])
    np.testing.assert_allclose(receptive_fields._spans(energy), [[1, 3], [0, 4], [0, 4]])


def test_a_backbone_that_hides_its_pixels(caplog, monkeypatch):
    monkeypatch.setattr(receptive_fields.logger, "propagate", True)

    class Rounding(Convolution):
        def forward(self, pixels):
            return super().forward(pixels.round())

    class Detached(Convolution):
        def forward(self, pixels):
            return super().forward(pixels.detach())

    for kind in (Rounding, Detached):
        caplog.clear()
        with caplog.at_level("WARNING"):
            rows, columns = measure_spans(encoder_of(kind(8, 8, 4)), 30, 20)
        assert rows == [[0, 7.5], [7.5, 15], [15, 22.5], [22.5, 30]]
        assert columns[0] == pytest.approx([0, 20 / 3])
        assert "No gradient reaches the pixels" in caplog.text
        assert "divide the image evenly" in caplog.text


def test_the_checkpoint_keeps_what_was_measured(tmp_path, monkeypatch):
    model = model_of(**RESNET)
    boxes = model.fragment_boxes(32, 48)
    model.fragment_boxes(48, 48)
    model.save_pretrained(tmp_path)
    loaded = OmitModel.from_pretrained(tmp_path)
    monkeypatch.setattr(OmitModel, "measure_spans", None)  # as without the package
    assert torch.equal(loaded.fragment_boxes(32, 48), boxes)
    assert list(loaded.config.fragment_boxes) == ["32 x 48", "48 x 48"]
    with pytest.raises(ImportError, match="keeps no boxes for 64 x 64 pixels; `import omit_hf`"):
        loaded.fragment_boxes(64, 64)


def test_it_is_measured_once_a_size(monkeypatch):
    model, calls = model_of(**RESNET), []
    monkeypatch.setattr(OmitModel, "measure_spans", lambda self, *args: calls.append(args) or measure_spans(*args))
    for _ in range(2):
        model.fragment_boxes(32, 32)
        model.fragment_boxes(40, 32)
    assert [args[1:] for args in calls] == [(32, 32), (40, 32)]


def test_weights_that_move_forget_it(tmp_path):
    model = model_of(**RESNET)
    model.fragment_boxes(32, 32)
    model.save_pretrained(tmp_path)
    trained = OmitModel.from_pretrained(tmp_path)
    assert trained.eval().config.fragment_boxes
    assert trained.train().config.fragment_boxes is None
    other = OmitModel(OmitModel.from_pretrained(tmp_path).config)  # untrained
    assert other.config.fragment_boxes is None


def test_nothing_of_the_model_is_changed():
    model = model_of(**RESNET)
    model.vision_encoder.backbone.requires_grad_(False)
    model.vision_encoder.train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    with torch.inference_mode():
        boxes = model.fragment_boxes(32, 32)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    model.config.fragment_boxes = None
    assert torch.equal(model.fragment_boxes(32, 32), boxes)


def test_regions_have_boxes_of_their_own():
    with pytest.raises(ValueError, match="fragments are regions; expected a model of pictures"):
        OmitModel(tiny_config(vision_config=REGIONS)).fragment_boxes(32, 32)


def test_a_size_that_the_model_does_not_take():
    model = model_of(model_type="convnext", patch_size=8, num_stages=2, hidden_sizes=[8, 12], depths=[1, 1])
    with pytest.raises(ValueError, match="takes at least 16 x 16"):
        model.fragment_boxes(8, 8)
    assert model.config.fragment_boxes is None
