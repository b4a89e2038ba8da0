"""Mean, generalised and probabilistic pooling against plain loops in float64."""

import math

import numpy as np
import pytest
import torch
from oracles import softmax
from samples import features, head_of, item

from omit_hf.modeling import pooled_heads_omit
from omit_hf.modeling.pooled_heads_omit import position_codes


def vectors(side) -> np.ndarray:
    return side["embeds"] * side["norms"][:, None]


def unit(vector) -> np.ndarray:
    norm = math.sqrt(float(vector @ vector))
    return vector / norm if norm > 0 else vector


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(parameters, suffix, inputs) -> list[np.ndarray]:
    """The states of a GRU, step by step."""
    weights = {name: parameters[f"{name}_l0{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    state, states = np.zeros(weights["weight_hh"].shape[1]), []
    for each in inputs:
        r_in, z_in, n_in = np.split(weights["weight_ih"] @ each + weights["bias_ih"], 3)
        r_state, z_state, n_state = np.split(weights["weight_hh"] @ state + weights["bias_hh"], 3)
        update = sigmoid(z_in + z_state)
        state = (1 - update) * np.tanh(n_in + sigmoid(r_in + r_state) * n_state) + update * state
        states.append(state)
    return states


def generalised_pooling(pooling, fragments) -> np.ndarray:
    if len(fragments) == 0:
        return np.zeros(fragments.shape[1])
    parameters = {name: each.detach().numpy() for name, each in pooling.gru.named_parameters()}
    codes = [
        np.array([f(n / 10000 ** (2 * j / 32)) for j in range(16) for f in (math.sin, math.cos)])
        for n in range(1, len(fragments) + 1)
    ]
    forward, backward = gru(parameters, "", codes), gru(parameters, "_reverse", codes[::-1])[::-1]
    linear = pooling.weight.weight.detach().numpy()[0]
    theta = softmax([float(linear @ (a + b) / 2) for a, b in zip(forward, backward, strict=True)])
    pooled = np.array(
        [
            sum(share * value for share, value in zip(theta, sorted(fragments[:, d], reverse=True), strict=True))
            for d in range(fragments.shape[1])
        ]
    )
    return unit(pooled)


def gaussian(deviation, fragments) -> tuple[np.ndarray, np.ndarray]:
    hidden, attention = (each.weight.detach().numpy() for each in (deviation.hidden, deviation.attention))
    weights = softmax([float(attention[0] @ np.tanh(hidden @ fragment)) for fragment in fragments])
    attended = sum((w * f for w, f in zip(weights, fragments, strict=True)), np.zeros(hidden.shape[1]))
    linear = deviation.log_variance
    log_variance = linear.weight.detach().numpy() @ attended + linear.bias.detach().numpy()
    return unit(fragments.sum(axis=0)), np.sqrt(np.exp(log_variance))


def score(name, head, image, text) -> float:
    v, t = vectors(image), vectors(text)
    if name == "mean":
        return float(unit(v.sum(axis=0)) @ unit(t.sum(axis=0)))
    if name == "gpo":
        return float(generalised_pooling(head.image_pooling, v) @ generalised_pooling(head.text_pooling, t))
    (mean_v, sigma_v), (mean_t, sigma_t) = gaussian(head.image_deviation, v), gaussian(head.text_deviation, t)
    return -math.sqrt(sum((mean_v - mean_t) ** 2) + sum((sigma_v - sigma_t) ** 2))


@pytest.mark.parametrize("name", ["mean", "gpo", "pem"])
def test_score_is_that_of_a_double_loop(name):
    head, image, text = head_of(name), features(1, [5, 1, 3, 0, 5], 2), features(2, [4, 2, 0], 1)
    similarity = head(image, text)
    for i in range(5):
        for t in range(3):
            expected = score(name, head, item(image, i), item(text, t))
            assert similarity[i, t].item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", ["mean", "gpo", "pem"])
def test_no_images_and_no_captions(name):
    head, image, text = head_of(name), features(1, [5, 1]), features(2, [4, 2, 3])
    assert head(image.select(slice(0)), text).shape == (0, 3)
    assert head(image, text.select(slice(0))).shape == (2, 0)


@pytest.mark.parametrize("name", ["mean", "gpo", "pem"])
def test_gradients(name, monkeypatch):
    monkeypatch.setattr(pooled_heads_omit, "POSITION_SIZE", 4)  # a GRU of 240 weights, each of which is tried
    head, image, text = head_of(name), features(1, [3, 2], 1), features(2, [2, 1], 1)

    def values(image_embeds, text_embeds, *parameters):
        image.embeds, text.embeds = image_embeds * image.mask[..., None], text_embeds * text.mask[..., None]
        return head(image, text)

    inputs = (image.embeds.clone().requires_grad_(), text.embeds.clone().requires_grad_(), *head.parameters())
    assert torch.autograd.gradcheck(values, inputs)


def test_generalised_pooling_can_be_the_mean_and_the_maximum():
    """With equal weights, and with all weight on the first rank."""
    head, image, text = head_of("gpo"), features(1, [4]), features(2, [3])
    for pooling in (head.image_pooling, head.text_pooling):
        torch.nn.init.zeros_(pooling.weight.weight)
    torch.testing.assert_close(head(image, text), head_of("mean")(image, text))

    head.image_pooling.weights = head.text_pooling.weights = lambda sizes, like: torch.eye(like.shape[1])[:1].double()
    top = [(each.embeds * each.norms[..., None]).amax(dim=1) for each in (image, text)]
    torch.testing.assert_close(head(image, text), torch.cosine_similarity(*top)[:, None])


def test_equal_gaussians_have_no_distance():
    head, image = head_of("pem"), features(1, [4, 2])
    head.text_deviation.load_state_dict(head.image_deviation.state_dict())
    scores = head(image, image)
    assert (scores.diagonal() == 0).all()
    assert scores[0, 1] < -0.1


def test_position_codes_of_position_one():
    codes = position_codes(3, 32)
    assert codes.shape == (3, 32)
    assert codes[0, :2].tolist() == pytest.approx([math.sin(1), math.cos(1)])
    assert codes[2, 2].item() == pytest.approx(math.sin(3 / 10000 ** (2 / 32)), abs=1e-6)
