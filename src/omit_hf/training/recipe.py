"""A recipe: everything that an experiment depends on, in one flat file that the command line can override."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

import yaml
from datasets import Dataset
from huggingface_hub import hf_hub_download
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, HfArgumentParser

from omit_hf.command_line import HelpFormatter
from omit_hf.data import check_data, load_image_text
from omit_hf.modeling.configuration_omit import OmitConfig, check_fields

RECIPE_FILE = "recipe.yaml"  # beside the model
BACKBONES = ("vision_model", "text_model", "vision_config", "text_config")


def option(default, help: str):
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@strict
@dataclass
class Recipe:
    """The fields of a recipe file, which are the options of `examples/train.py` too."""

    # Data
    data: str = option(
        "scenes",
        "'scenes', the built-in benchmark; a Karpathy JSON file; hub:user/name; or a folder of precomputed regions, "
        "COCO's annotations, image folders, WebDataset archives, cut-outs or parquet files.",
    )
    data_options: dict | str | None = option(
        None, "Options of the data's loader, as JSON on the command line: image_folder, columns, skip_unreadable …"
    )
    check_images: bool = option(False, "Open every image before training begins, besides the checks that cost nothing.")
    num_workers: int = option(0, "Worker processes that load the data; 0 loads in the training process.")
    cache_folder: str = option("~/.cache/omit_hf", "Where the states of frozen backbones are kept.")
    cache_states: bool = option(False, "Run frozen backbones once and train on what they gave, from disk.")
    word_augmentation: float = option(
        0.0, "Share of the training captions' words that is masked, replaced or deleted (the paper's family: 0.2)."
    )
    caption_noise: float = option(
        0.0,
        "Share of the training captions that is given to other images, by the seed, to see what a model makes of noisy "
        "correspondence; validation and test stay as they are.",
    )
    image_crop: float = option(1.0, "Smallest share of a training image that a random crop keeps; 1 for no crop.")
    image_flip: bool = option(False, "Mirror training images at random; not where captions tell left from right.")

    # Model
    clip_model: str | None = option(
        None, "Hub id or folder of a CLIP or SigLIP, for both sides; its projections are kept."
    )
    vision_model: str | None = option(None, "Hub id or folder of a pretrained vision backbone.")
    text_model: str | None = option(None, "Hub id or folder of a pretrained text encoder, with its tokenizer.")
    vision_config: dict | str | None = option(
        None, "In its place: configuration of an untrained vision backbone, or of omit_region for precomputed regions."
    )
    text_config: dict | str | None = option(
        None, "In its place: configuration of an omit_bigru; its vocabulary is made from the training captions."
    )
    image_processor: dict | str | None = option(
        None,
        "Image processor of an untrained vision backbone: image_processor_type, size, image_mean … "
        "Of a pretrained one: what to change, such as size.",
    )
    min_word_count: int = option(
        1, "How often a training caption's word must occur to be in an omit_bigru's vocabulary."
    )
    word_vectors: str | None = option(
        None, "GloVe, word2vec or fastText text file that an omit_bigru's word embeddings start from."
    )
    freeze_vision: bool = option(False, "Do not train the vision backbone.")
    freeze_text: bool = option(False, "Do not train the text backbone.")
    freeze_batch_norm: bool = option(False, "Keep the batch-norm statistics of the vision backbone as they are.")
    unfreeze_epochs: list[int] = option(
        [],
        "Epochs, from 0, from which the vision backbone's last stage, the one before it … are trained; a stage beyond "
        "the list stays frozen. Empty to train all from the start.",
    )
    projection_dim: int = option(1024, "D, the width of fragments and global features.")
    matching: str = option(
        "omit",
        "The similarity head: partial transport, full transport (ot), late interaction (maxsim), chan, scan_t2i, "
        "scan_i2t, or one vector a side (mean, gpo, pem).",
    )
    regularization: float = option(0.02, "λ of the entropic transport, in units of a cosine.")
    num_iterations: int = option(3, "Sinkhorn iterations.")
    dustbin: Literal["global", "learned", "scalar"] = option("global", "What takes fragments without a counterpart.")
    marginals: Literal["uniform", "norm", "self_global", "cross_global"] = option(
        "uniform", "How a side's mass is shared out among its fragments."
    )
    backend: Literal["auto", "reference", "cpu", "numba", "triton"] = option(
        "auto", "What computes the transport: the fastest on the device, or one by name."
    )
    text_pooling: Literal["mean", "cls", "last"] | None = option(
        None, "Global feature of a caption; by default what the tokenizer suggests (CLS, else EOS, else the mean)."
    )

    # Loss
    loss: Literal["triplet", "infonce"] = option("triplet", "Hinge over negatives, or symmetric cross-entropy.")
    margin: float = option(0.05, "Margin of the triplet loss.")
    all_negatives_epochs: int = option(1, "Epochs of the triplet loss over all negatives, before the hardest alone.")
    logit_scale_init_value: float = option(2.6592, "Logarithm of the factor from similarity to logits, at the start.")

    # Optimisation
    num_epochs: int = option(25, "Epochs; one passes over every caption.")
    batch_size: int = option(128, "Pairs a batch, on each process.")
    gradient_accumulation_steps: int = option(1, "Batches whose gradients are added up for a step.")
    learning_rate: float = option(5e-4, "Peak learning rate of AdamW.")
    vision_lr_factor: float = option(1.0, "Factor on it for the vision backbone (the paper's family takes 0.01).")
    text_lr_factor: float = option(1.0, "Factor on it for the text backbone (the paper's family takes 0.1).")
    weight_decay: float = option(1e-4, "Weight decay, but not of biases, norms and other vectors.")
    warmup_steps: int = option(0, "Steps of linear warm-up.")
    decay_epochs: list[int] = option([], "Epochs from which the learning rate is lower by decay_factor once more.")
    decay_factor: float = option(0.1, "What the learning rate is multiplied with at each of decay_epochs.")
    max_grad_norm: float = option(2.0, "The gradient is scaled down to this norm.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "Autocast of the encoders (transport is always float32); by default what accelerate is configured for."
    )

    # Run
    output_dir: str | None = option(None, "Folder of the result; outputs/<name of the recipe file> by default.")
    overwrite_output_dir: bool = option(False, "Delete the run that the folder holds, once the new one can begin.")
    resume: bool = option(False, "Go on from the folder's last checkpoint.")
    seed: int = option(0, "Seed of weights, data order and dropout.")
    max_steps: int | None = option(
        None, "Stop after so many steps, for a trial; the schedule stays that of num_epochs."
    )
    checkpoint_steps: int = option(500, "Steps between checkpoints; the end of an epoch makes one as well.")
    keep_checkpoints: int = option(2, "How many of the last checkpoints to keep.")
    test: bool = option(True, "Test the best model at the end; off where settings are chosen, on validation alone.")
    log_steps: int = option(10, "Steps between writes to the logs; every step is in them.")
    tensorboard: bool = option(True, "Log to TensorBoard, in <output_dir>/logs.")
    eval_batch_size: int = option(128, "Images or captions encoded at once in evaluation.")
    eval_memory: int = option(2**26, "Bytes for the intermediate results of scoring a tile of pairs.")
    cpu_threads: int = option(0, "Threads of each process on a CPU; 0 shares the cores out among the processes.")

    def __post_init__(self):
        for name in ("data_options", "vision_config", "text_config", "image_processor"):
            if isinstance(getattr(self, name), str):
                try:
                    setattr(self, name, json.loads(getattr(self, name)))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{name} is {getattr(self, name)!r}; expected JSON ({error}).") from error

    def validate_numbers(self):
        OmitConfig.validate_matching(self)  # the fields that they share
        at_least_one = "num_epochs batch_size gradient_accumulation_steps checkpoint_steps keep_checkpoints log_steps"
        for name in (*at_least_one.split(), "eval_batch_size", "eval_memory", "min_word_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("num_workers", "cpu_threads", "all_negatives_epochs", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0.")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number greater than 0.")
        for name in ("weight_decay", "vision_lr_factor", "text_lr_factor"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number not below 0.")
        if not 0 < self.decay_factor <= 1:
            raise ValueError(f"decay_factor is {self.decay_factor}; expected a number above 0, up to 1.")
        if min(self.decay_epochs, default=0) < 0:
            raise ValueError(f"decay_epochs is {self.decay_epochs}; expected epochs from 0.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; expected an integer from 0 to 2**32 - 1.")
        if self.batch_size < 2:
            raise ValueError("batch_size is 1; expected at least 2, or there are no negatives.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; expected at least 1.")

    def validate_output(self):
        if self.output_dir == "":
            raise ValueError("output_dir is empty; expected a folder.")
        if self.resume and self.overwrite_output_dir:
            raise ValueError(
                "resume and overwrite_output_dir are both on; expected one: to go on with the run, or to delete it."
            )

    def validate_backbones(self):
        if self.clip_model is not None:
            others = [name for name in BACKBONES if getattr(self, name) is not None]
            if others:
                raise ValueError(
                    f"clip_model, which is for both sides, and {', '.join(others)} are given; expected one."
                )
        else:
            for side in ("vision", "text"):
                pretrained, untrained = getattr(self, f"{side}_model"), getattr(self, f"{side}_config")
                if (pretrained is None) == (untrained is None):
                    given = "both" if pretrained is not None else "neither"
                    raise ValueError(
                        f"{given} of {side}_model and {side}_config is given; expected one of them, or clip_model."
                    )
        if isinstance(self.text_config, dict) and self.text_config.get("model_type") != "omit_bigru":
            raise ValueError(
                f"text_config has model_type {self.text_config.get('model_type')!r}; expected 'omit_bigru'. For a "
                "transformer, which needs its tokenizer, give text_model."
            )
        if isinstance(self.vision_config, dict) and "model_type" not in self.vision_config:
            raise ValueError("vision_config has no model_type; expected that of a vision backbone, such as 'resnet'.")
        if self.vision_config is not None and not self.takes_regions and self.image_processor is None:
            raise ValueError(
                "vision_config is given without image_processor; an untrained backbone has none of its own."
            )
        if self.cache_states and not (self.freeze_vision or self.freeze_text):
            raise ValueError("cache_states is on, but no backbone is frozen; set freeze_vision or freeze_text.")
        if self.word_vectors is not None and self.text_config is None:
            raise ValueError("word_vectors is given without text_config; expected an omit_bigru to put them into.")

    def validate_schedule(self):
        of_pictures = ("freeze_vision", "freeze_batch_norm", "unfreeze_epochs", "image_processor", "image_flip")
        no_use = [name for name in of_pictures if getattr(self, name)] + ["image_crop"] * (self.image_crop != 1)
        if self.takes_regions and no_use:
            raise ValueError(f"{', '.join(no_use)}: of no use to omit_region, which has no backbone and no pictures.")
        if not 0 <= self.word_augmentation < 1:
            raise ValueError(f"word_augmentation is {self.word_augmentation}; expected a share from 0 to below 1.")
        if not 0 <= self.caption_noise < 1:
            raise ValueError(f"caption_noise is {self.caption_noise}; expected a share from 0 to below 1.")
        if not 0 < self.image_crop <= 1:
            raise ValueError(f"image_crop is {self.image_crop}; expected a share above 0, up to 1 for no crop.")
        if self.unfreeze_epochs != sorted(self.unfreeze_epochs) or min(self.unfreeze_epochs, default=0) < 0:
            raise ValueError(
                f"unfreeze_epochs is {self.unfreeze_epochs}; expected epochs from 0 in ascending order, the last "
                "stage's first."
            )
        if self.unfreeze_epochs and self.freeze_vision:
            raise ValueError("unfreeze_epochs and freeze_vision are given; expected one of them.")
        if self.cache_states and self.freeze_text and self.word_augmentation:
            raise ValueError("word_augmentation has no effect on cached states of the text backbone; set it to 0.")
        if self.cache_states and self.freeze_vision and (self.image_crop < 1 or self.image_flip):
            raise ValueError(
                "image_crop and image_flip have no effect on cached states of the vision backbone; leave them out."
            )

    @property
    def takes_regions(self) -> bool:
        """Whether the images are precomputed regions."""
        return isinstance(self.vision_config, dict) and self.vision_config.get("model_type") == "omit_region"

    def validate_parts(self):  # after validate_backbones (they go by the alphabet), which wants a model_type
        for name in ("vision_config", "text_config"):
            if isinstance(getattr(self, name), dict):
                _check_part(name, getattr(self, name))


def _check_part(name: str, config: dict) -> None:
    """See that a backbone's configuration has no field but those of its kind; transformers takes any."""
    try:
        default = AutoConfig.for_model(config["model_type"])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    # Fields and properties, such as out_features.
    known = {each for each in dir(default) if each[0] != "_" and not callable(getattr(type(default), each, None))}
    check_fields(name, config, known)


def parse_recipe(arguments: Sequence[str] | None = None, description: str | None = None) -> Recipe:
    """The recipe of a command line: `[RECIPE.yaml] [--field value …]`. Exits with status 2 on what is wrong with it."""
    types = recipe_types()
    parser = HfArgumentParser(Recipe, description=description, formatter_class=HelpFormatter, allow_abbrev=False)
    for each in fields(Recipe):  # the parser strips Optional from them, which validation needs
        each.type = types[each.name]
    parser.add_argument(
        "recipe_file", nargs="?", metavar="RECIPE.yaml", help="Recipe; the options override its fields."
    )
    file = parser.parse_known_args(arguments)[0].recipe_file
    try:
        if file is not None:
            parser.set_defaults(**read_recipe_file(file))
        values = vars(parser.parse_args(arguments))
        del values["recipe_file"]
        if values["output_dir"] is None:
            values["output_dir"] = str(Path("outputs") / Path(file or "omit").stem)
        return Recipe(**values)
    except StrictDataclassError as error:
        parser.error(str(error.__cause__))
    except (ValueError, OSError) as error:
        parser.error(str(error))


def read_recipe_file(file: str | Path) -> dict:
    """The fields that a recipe file sets.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no YAML mapping, or names a field that a recipe does not have.
    """
    values = read_mapping(file)
    check_fields(str(file), values, recipe_types())
    return {name: recipe_value(str(file), name, value) for name, value in values.items()}


def read_mapping(file: str | Path) -> dict:
    """What a YAML file maps.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no YAML mapping.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"No recipe at {file}; examples/configs has some.")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds {type(values).__name__}; expected fields and their values.")
    return values


def recipe_types() -> dict:
    """The fields of a recipe and their types."""
    return {each.name: each.type for each in fields(Recipe)}


def recipe_value(where: str, name: str, value):
    """The value of a field as YAML reads it, with numbers for fields that are: YAML reads 1 as an integer, and 1e-3 as
    text.

    Raises:
        ValueError: if it is no number where one is expected; begins with `where`.
    """
    if recipe_types()[name] is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError as error:
            raise ValueError(f"{where}: {name} is {value!r}; expected a number.") from error
    return value


def data_of_model(model: str | Path, data: str | None = None, data_options: dict | None = None) -> tuple[str, dict]:
    """The source and the options of the data to measure a published model on.

    Args:
        model: folder or Hub id.
        data: any source that training takes; by default what the recipe beside the model says.
        data_options: of the loader; over those of the recipe, where that gives the data.

    Raises:
        OSError: if there is no recipe beside the model, and no data are given.
    """
    if data is not None:
        return data, data_options or {}
    if Path(model).is_dir() and not (Path(model) / RECIPE_FILE).is_file():
        raise FileNotFoundError(f"{model} has no {RECIPE_FILE} that names its data; give --data.")
    file = Path(model) / RECIPE_FILE if Path(model).is_dir() else hf_hub_download(str(model), RECIPE_FILE)
    recipe = Recipe(**read_recipe_file(file))
    return recipe.data, {**(recipe.data_options or {}), **(data_options or {})}


def load_split(data: str, data_options: dict, split: str) -> Dataset:
    """One split of a source, checked.

    Raises:
        ValueError: if there is no such split, or with all that is wrong with it; and what `load_image_text` raises.
    """
    splits = load_image_text(data, **data_options)
    if split not in splits:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(splits)}.")
    check_data(splits, [split])
    return splits[split]


def write_recipe_file(recipe: Recipe, file: str | Path) -> None:
    """Write a recipe in the form that `read_recipe_file` reads."""
    Path(file).write_text(recipe_text(asdict(recipe)), encoding="utf-8")


def recipe_text(fields: dict) -> str:
    """The content of a recipe file."""
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
