"""A recipe: everything that an experiment depends on, and the rules for its values."""

import difflib
import math
import types
import typing
from dataclasses import dataclass
from typing import Literal

from huggingface_hub.dataclasses import type_validator
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig

from omit_hf.command_line import expanded
from omit_hf.modeling.configuration_omit import OmitConfig, check_fields
from omit_hf.parsing import MAX_SHOWN, parse_json, shown
from omit_hf.training.config_fields import OfConfig
from omit_hf.training.low_rank import LowRank
from omit_hf.training.recipe_fields import DataFields, LossFields, ModelFields, OptimisationFields, RunFields

BACKBONES = ("vision_model", "text_model", "vision_config", "text_config")
IN_JSON = ("data_options", "vision_config", "text_config", "image_processor", "lora")  # on a command line
# Fields whose leading ~ is the home folder. cache_folder and word_vectors keep theirs until they are opened, so that a
# recipe reads the same on every machine.
PATHS = ("data", "data_options", "clip_model", "vision_model", "text_model", "output_dir")


# The last group first: that is the order in which a dataclass takes the fields of its bases.
@dataclass
class Recipe(RunFields, OptimisationFields, LossFields, ModelFields, DataFields):
    """The fields of a recipe file, which are the options of `omit-hf train` too; of all groups, side by side.

    Raises:
        ValueError: for the first thing that `validate` finds wrong.
    """

    def __post_init__(self):
        for name in IN_JSON:
            if isinstance(getattr(self, name), str):
                setattr(self, name, _object(name, getattr(self, name)))
        if isinstance(self.report_to, str):
            self.report_to = [self.report_to]
        for name in PATHS:
            setattr(self, name, expanded(getattr(self, name)))
        self.validate()

    def validate(self) -> None:
        """Check the fields: their types, then group by group, then across groups.

        Raises:
            ValueError: names the first wrong field, its value, and what was expected.
        """
        for name, kind in TYPES.items():
            try:
                type_validator(name, getattr(self, name), kind)
            except TypeError:
                raise ValueError(f"{name} is {shown(getattr(self, name))}; expected {_words(kind)}.") from None
        try:
            OmitConfig(**self.config_values())
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__)) from error
        self._check_data()
        self._check_model()
        self._check_loss()
        self._check_optimisation()
        self._check_run()
        self._check_groups()

    def config_values(self) -> dict:
        """Collect the fields of `OmitConfig` that the recipe sets, without its two parts; None sets nothing."""
        return {name: getattr(self, name) for name in OfConfig.names if getattr(self, name) is not None}

    @property
    def takes_regions(self) -> bool:
        """Tell whether the images are precomputed regions."""
        return isinstance(self.vision_config, dict) and self.vision_config.get("model_type") == "omit_region"

    def _check_data(self) -> None:
        self._at_least(0, "num_workers")
        for name in ("word_augmentation", "caption_noise"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share from 0 to below 1.")
        if self.epoch_steps is None:
            if self.vocabulary_file is not None:
                raise ValueError(
                    f"vocabulary_file is {self.vocabulary_file!r}, and without epoch_steps all training captions make "
                    "the vocabularies; leave it out."
                )
        else:
            self._at_least(1, "epoch_steps", "shuffle_buffer", "vocabulary_images")
            for name in ("cache_states", "caption_noise", "check_images"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} is {getattr(self, name)}, and epoch_steps reads the training split as a stream; "
                        f"expected one of them. Leave {name} out."
                    )
            if self.takes_regions:
                raise ValueError("epoch_steps reads pictures as a stream; expected none for precomputed regions.")
        if not 0 < self.image_crop <= 1:
            raise ValueError(f"image_crop is {self.image_crop}; expected a share above 0, up to 1 for no crop.")

    def _check_model(self) -> None:
        self._check_sides()
        if self.text_config is not None and self.text_config.get("model_type") != "omit_bigru":
            raise ValueError(
                f"text_config has model_type {shown(self.text_config.get('model_type'))}; expected 'omit_bigru'. For a "
                "transformer, which needs its tokenizer, give text_model."
            )
        if self.vision_config is not None and "model_type" not in self.vision_config:
            raise ValueError("vision_config has no model_type; expected that of a vision backbone, such as 'resnet'.")
        if self.vision_config is not None and not self.takes_regions and self.image_processor is None:
            raise ValueError(
                "vision_config is given without image_processor; an untrained backbone has none of its own."
            )
        for name in ("vision_config", "text_config"):
            if getattr(self, name) is not None:
                _check_part(name, getattr(self, name))
        if self.word_vectors is not None and self.text_config is None:
            raise ValueError("word_vectors is given without text_config; expected an omit_bigru to put them into.")
        self._at_least(1, "min_word_count")
        if self.unfreeze_epochs != sorted(self.unfreeze_epochs) or min(self.unfreeze_epochs, default=0) < 0:
            raise ValueError(
                f"unfreeze_epochs is {shown(self.unfreeze_epochs)}; expected epochs from 0 in ascending order, the "
                "last stage's first."
            )
        if self.unfreeze_epochs and self.freeze_vision:
            raise ValueError("unfreeze_epochs and freeze_vision are given; expected one of them.")
        if self.lora is not None:
            self._check_lora(LowRank.of(self.lora))

    def _check_lora(self, lora: LowRank) -> None:
        if lora.adapts("vision") and self.takes_regions:
            raise ValueError(f"lora has side {lora.side!r}; expected 'text', since omit_region has no backbone.")
        if lora.adapts("text") and self.text_config is not None:
            raise ValueError(
                f"lora has side {lora.side!r}; expected 'vision', since an omit_bigru is trained from nothing."
            )
        for name, side in (("freeze_vision", "vision"), ("unfreeze_epochs", "vision"), ("freeze_text", "text")):
            if getattr(self, name) and lora.adapts(side):
                raise ValueError(
                    f"{name} and lora with side {lora.side!r} are given; expected one of them: lora freezes the "
                    "backbones that it adapts."
                )

    def _check_sides(self) -> None:
        if self.clip_model is not None:
            others = [name for name in BACKBONES if getattr(self, name) is not None]
            if others:
                raise ValueError(
                    f"clip_model, which is for both sides, and {', '.join(others)} are given; expected one."
                )
            return
        for side in ("vision", "text"):
            pretrained, untrained = getattr(self, f"{side}_model"), getattr(self, f"{side}_config")
            if (pretrained is None) == (untrained is None):
                given = "both" if pretrained is not None else "neither"
                raise ValueError(
                    f"{given} of {side}_model and {side}_config is given; expected one of them, or clip_model."
                )

    def _check_loss(self) -> None:
        self._at_least(0, "all_negatives_epochs")

    def _check_optimisation(self) -> None:
        self._at_least(1, "num_epochs", "batch_size", "gradient_accumulation_steps")
        if self.batch_size < 2:
            raise ValueError("batch_size is 1; expected at least 2, or there are no negatives.")
        if self.mini_batch_size is not None and not 1 <= self.mini_batch_size < self.batch_size:
            raise ValueError(
                f"mini_batch_size is {self.mini_batch_size}; expected 1 to {self.batch_size - 1}, less than "
                "batch_size, or none for whole batches."
            )
        self._at_least(0, "warmup_steps")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number greater than 0.")
        for name in ("weight_decay", "vision_lr_factor", "text_lr_factor"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number not below 0.")
        if not 0 < self.decay_factor <= 1:
            raise ValueError(f"decay_factor is {self.decay_factor}; expected a number above 0, up to 1.")
        if min(self.decay_epochs, default=0) < 0:
            raise ValueError(f"decay_epochs is {shown(self.decay_epochs)}; expected epochs from 0.")

    def _check_run(self) -> None:
        if self.output_dir == "":
            raise ValueError("output_dir is empty; expected a folder.")
        if self.resume and self.overwrite_output_dir:
            raise ValueError(
                "resume and overwrite_output_dir are both on; expected one: to go on with the run, or to delete it."
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; expected an integer from 0 to 2**32 - 1.")
        if self.max_steps is not None:
            self._at_least(1, "max_steps")
        self._at_least(1, "checkpoint_steps", "keep_checkpoints", "log_steps", "eval_batch_size", "eval_memory")
        self._at_least(0, "cpu_threads")

    def _check_groups(self) -> None:
        of_pictures = ("freeze_vision", "freeze_batch_norm", "unfreeze_epochs", "image_processor", "image_flip")
        no_use = [name for name in of_pictures if getattr(self, name)] + ["image_crop"] * (self.image_crop != 1)
        if self.takes_regions and no_use:
            raise ValueError(f"{', '.join(no_use)}: of no use to omit_region, which has no backbone and no pictures.")
        if not self.cache_states:
            return
        if not (self.freeze_vision or self.freeze_text):
            raise ValueError("cache_states is on, but no backbone is frozen; set freeze_vision or freeze_text.")
        if self.freeze_text and self.word_augmentation:
            raise ValueError("word_augmentation has no effect on cached states of the text backbone; set it to 0.")
        if self.freeze_vision and (self.image_crop < 1 or self.image_flip):
            raise ValueError(
                "image_crop and image_flip have no effect on cached states of the vision backbone; leave them out."
            )

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}.")


TYPES = typing.get_type_hints(Recipe)


def _object(name: str, text: str) -> dict | None:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{name} is {shown(text)}; expected JSON ({error}).") from error
    if not isinstance(value, dict | None):
        raise ValueError(f"{name} is {shown(text)}; expected JSON with names and values in {{}}.")
    return value


def _words(kind) -> str:
    """Spell out a type for a message, such as "int or None"."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join(map(_words, typing.get_args(kind)))
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(typing.get_args(kind))}"
    if kind is types.NoneType:
        return "None"
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _check_part(name: str, config: dict) -> None:
    """Check that a backbone's configuration has only fields of its kind; transformers takes any."""
    kind = config["model_type"]
    if not isinstance(kind, str) or len(kind) > MAX_SHOWN:
        raise ValueError(f"{name} has model_type {shown(kind)}; expected a name, such as 'resnet'.")
    if kind not in CONFIG_MAPPING:
        close = difflib.get_close_matches(kind, CONFIG_MAPPING, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "expected one that transformers knows, such as 'resnet'."
        raise ValueError(f"{name}: model_type is {shown(kind)}; {hint}")
    try:
        default = AutoConfig.for_model(kind)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from error
    # Fields and properties, such as out_features.
    known = {each for each in dir(default) if each[0] != "_" and not callable(getattr(type(default), each, None))}
    check_fields(name, config, known)
