"""Configuration of OMIT and of its own encoders. Source: ``docs/concepts/method.md#encoders``."""

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .matching_omit import MATCHING

MAX_LOGIT_SCALE = math.log(100)


def check_fields(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise `ValueError` for the first name that is not known, with the nearest that is."""
    known = sorted(known)
    for name in (each for each in names if each not in known):
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.65)
        some = ", ".join(known[:50]) + (" …" if len(known) > 50 else ".")
        hint = f"did you mean {close[0]!r}?" if close else f"expected some of {some}"
        raise ValueError(f"{where} has the unknown field {name!r:.80}; {hint}")


def check_numbers(config: PreTrainedConfig, expected: str, test: Callable[[float], bool], *names: str) -> None:
    for name in names:
        if not test(getattr(config, name)):
            raise ValueError(f"{name} is {getattr(config, name)}; expected {expected}.")


@strict
class BiGRUConfig(PreTrainedConfig):
    """Word embeddings and a bidirectional GRU: the classical text encoder of image-text matching.

    Args:
        vocab_size: words of the tokenizer.
        embedding_size: width of the word embeddings (300 in the paper, as in GloVe).
        hidden_size: width of a direction, and of the output, the mean of both.
        num_hidden_layers: stacked GRU layers.
        dropout: share of the word embeddings' entries dropped during training.
        pad_token_id: id of padding; its embedding is zero.
    """

    model_type = "omit_bigru"

    vocab_size: int = 10000
    embedding_size: int = 300
    hidden_size: int = 1024
    num_hidden_layers: int = 1
    dropout: float | int = 0.0
    pad_token_id: int | None = 0

    def validate_sizes(self):
        sizes = ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers")
        check_numbers(self, "at least 1", lambda size: size >= 1, *sizes)
        check_numbers(self, "a share from 0 to below 1", lambda share: 0 <= share < 1, "dropout")
        padding = f"a word of the vocabulary, from 0 to {self.vocab_size - 1}, or None"
        check_numbers(self, padding, lambda word: word is None or 0 <= word < self.vocab_size, "pad_token_id")


@strict
class RegionEncoderConfig(PreTrainedConfig):
    """Projection of precomputed region features, the classical image encoder of image-text matching.

    Args:
        feature_size: width of a region's features (2048 of a Faster R-CNN with bottom-up attention).
        hidden_size: width within the two-layer MLP, which is added to a linear projection.
        dropout: share of the MLP's hidden entries dropped during training.
        kept_share: share of an image's K regions that a training pass keeps, at random: int(kept_share · K), but at
            least one. Evaluation keeps all.
    """

    model_type = "omit_region"

    feature_size: int = 2048
    hidden_size: int = 512
    dropout: float | int = 0.0
    kept_share: float | int = 0.8

    def validate_sizes(self):
        check_numbers(self, "at least 1", lambda size: size >= 1, "feature_size", "hidden_size")
        check_numbers(self, "a share from 0 to below 1", lambda share: 0 <= share < 1, "dropout")
        check_numbers(self, "a share above 0, up to 1 for all regions", lambda share: 0 < share <= 1, "kept_share")


@strict
class OmitConfig(PreTrainedConfig):
    """Configuration of an [`OmitModel`]: two encoders, a matching head and a loss.

    Args:
        vision_config: `omit_region`, whose precomputed regions are the image fragments, or any vision configuration of
            `AutoModel` or `AutoBackbone`, whose grid cells or patches are; an object, or a dict with `model_type`.
        text_config: `omit_bigru` or any text encoder of `AutoModel`; its words or sub-words are the text fragments.
        projection_dim: D, the common width of fragments and global features.
        matching: the similarity head: `omit` (partial transport), `ot` (full transport); `maxsim` (late interaction),
            `chan`, `scan_t2i`, `scan_i2t` (a fragment's counterpart by itself); `mean`, `gpo`, `pem` (one pooled vector
            or Gaussian a side).
        regularization: λ of the entropic transport, in units of a cosine (`omit`, `ot`).
        num_iterations: n, the Sinkhorn iterations (`omit`, `ot`).
        dustbin: what takes the fragments without a counterpart (`omit`): the `global` feature of a side, one `learned`
            vector a side, or one learned similarity, `scalar`.
        marginals: how a side's mass is shared out (`omit`, `ot`): `uniform`, by `norm` of the fragment before
            normalisation, or by softmax of its similarity to the global feature of its own side (`self_global`) or
            of the other side (`cross_global`).
        score: what of the plan is scored (`omit`): pairs of fragments, `local`, or dustbins too, `augmented`.
        global_weight: w from 0 to 1, the share of ⟨v̄, t̄⟩ in the score (`omit`, `ot`); 0 is the paper's.
        backend: what computes the transport (`omit`, `ot`): `auto`, the fastest that can serve the inputs on their
            device, or by name `reference`, `cpu`, `numba` or `triton`. Late interaction (`maxsim`, `chan`) goes tile by
            tile on a CPU with `auto`, `cpu` and `numba`, and in plain torch otherwise.
        loss: `triplet` (hinge over hardest negatives) or `infonce` (symmetric cross-entropy).
        margin: α of the triplet loss, in units of the similarity.
        logit_scale_init_value: logarithm of the factor from similarity to logits, at most ln 100; learned with
            `infonce`, and clamped to that.
        text_pooling: which state is the global feature of a caption: the `mean` of its fragments, the first token
            (`cls`) or the last one (`last`, for encoders that end on EOS).
        vision_pooling_head: let the attention pooling head of a SigLIP vision backbone give the global feature of an
            image, and pass each patch through it alone; see `GridEncoder`.
        special_token_ids: ids that are never text fragments, as the tokenizer has them (CLS, SEP, padding …).
        fragment_boxes: what `OmitModel.fragment_boxes` measured, by size of image; training clears it.
    """

    model_type = "omit"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="omit_bigru"),
    }

    vision_config: PreTrainedConfig | dict | None = None
    text_config: PreTrainedConfig | dict | None = None
    projection_dim: int = 1024
    matching: str = "omit"
    regularization: float | int = 0.02
    num_iterations: int = 3
    dustbin: Literal["global", "learned", "scalar"] = "global"
    marginals: Literal["uniform", "norm", "self_global", "cross_global"] = "uniform"
    score: Literal["local", "augmented"] = "local"
    global_weight: float | int = 0.0
    backend: Literal["auto", "reference", "cpu", "numba", "triton"] = "auto"
    loss: Literal["triplet", "infonce"] = "triplet"
    margin: float | int = 0.05
    logit_scale_init_value: float | int = 2.6592
    text_pooling: Literal["mean", "cls", "last"] = "mean"
    vision_pooling_head: bool = False
    special_token_ids: list[int] | None = None
    fragment_boxes: dict | None = None

    def validate_values(self):
        if self.matching not in MATCHING:
            raise ValueError(f"matching is {self.matching!r:.80}; expected one of {', '.join(map(repr, MATCHING))}.")
        if self.global_weight != 0 and "global_weight" not in MATCHING[self.matching].fields:
            found = f"global_weight is {self.global_weight}; expected 0"
            raise ValueError(f"{found}, since {self.matching!r} has no such term.")
        check_numbers(self, "a share from 0, the paper's, to 1", lambda share: 0 <= share <= 1, "global_weight")
        check_numbers(self, "at least 1", lambda number: number >= 1, "projection_dim", "num_iterations")
        check_numbers(self, "a number greater than 0", lambda number: 0 < number < math.inf, "regularization")
        check_numbers(self, "a number not below 0", lambda number: 0 <= number < math.inf, "margin")
        expected, most = "a number not above ln 100 = 4.6052", MAX_LOGIT_SCALE + 1e-4  # 4.6052 itself will do
        check_numbers(self, expected, lambda scale: -math.inf < scale < most, "logit_scale_init_value")
        if any(token < 0 for token in self.special_token_ids or ()):
            raise ValueError(f"special_token_ids is {self.special_token_ids}; expected ids from 0.")

    def validate_parts(self):
        for name in ("vision_config", "text_config"):
            part = getattr(self, name)
            if hasattr(part, name):
                remedy = f"use its {name}, as in {type(part).__name__}(…).{name}"
                raise ValueError(f"{name} is that of a whole {part.model_type!r} model; {remedy}.")

    def to_diff_dict(self) -> dict:
        """What is saved: not where the parts came from, which may be folders of this machine."""
        values = super().to_diff_dict()
        for name in ("vision_config", "text_config"):
            values.get(name, {}).pop("_name_or_path", None)
        return values

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            remedy = "OmitModel.from_vision_text_pretrained builds on it as a backbone"
            raise ValueError(f"This is the configuration of a {found!r} model; expected {cls.model_type!r}. {remedy}.")
        return super().from_dict(config_dict, **kwargs)


for part in (BiGRUConfig, RegionEncoderConfig):  # which the code of a checkpoint does not replace where the package is
    if __name__.startswith("omit_hf.") or part.model_type not in CONFIG_MAPPING:
        AutoConfig.register(part.model_type, part, exist_ok=True)
OmitConfig.register_for_auto_class()  # so that its code is saved with it
